"""What docs/results.md says of figures: every goal that is missed, and why; nothing where none is."""

from __future__ import annotations

from typing import Any

import pytest

from scaler.backtest.matrix import Plan, Variant
from scaler.backtest.page import everybody, groups, markdown, no_tuned_keda, reasons, rows_of_variants, what_is_missing
from scaler.backtest.report import summary_of

Row = dict[str, Any]


def row(**changes: Any) -> Row:
    """A cell in which everything is as it should be."""
    fields: Row = {
        "trace": "flash",
        "cold_start_seconds": 60.0,
        "wait_seconds": 60.0,
        "attainment": 0.95,
        "requests": 1_000,
        "share": 0.955,
        "share_low": 0.94,
        "share_high": 0.97,
        "kept": True,
        "seeds": 5,
        "unseen_seeds": 5,
        "fast_seeds": 1,
        "uncounted_seeds": 1,
        "queue_only_seeds": 1,
        "tuned_seeds": 5,
        "grid_points": 336,
        "cost": 1.2,
        "wait_p50": 0.0,
        "wait_p95": 50.0,
        "wait_p99": 70.0,
        "starts": 100.0,
        "reversals": 0.0,
        "tuned": "2 each",
        "tuned_minimum": 0,
        "tuned_share": 0.96,
        "tuned_cost": 2.0,
        "tuned_starts": 100.0,
        "ratio": 0.6,
        "ratio_low": 0.5,
        "ratio_high": 0.7,
        "fixed_replicas": 3,
        "fixed_cost": 3.0,
        "bound_cost": 1.0,
        "ratio_to_bound": 1.2,
        "unseen_share": 0.95,
        "unseen_kept": True,
        "unseen_cost": 1.3,
        "fast_share": 0.96,
        "fast_kept": True,
        "fast_cost": 1.2,
        "uncounted_share": 0.95,
        "uncounted_kept": True,
        "uncounted_cost": 1.4,
        "queue_only_share": 0.93,
        "queue_only_kept": False,
        "queue_only_cost": 1.6,
    }
    return fields | changes


def plan() -> Plan:
    return Plan(traces=("flash",), cold_starts_seconds=(60.0,), wait_factors=(1.0,), attainments=(0.95,))


def test_where_every_goal_is_reached_no_reason_is_given() -> None:
    assert reasons([row()]) == []
    assert "| none |" in groups([row()])[-1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kept": False, "share": 0.9, "share_high": 0.93}, "100 requests late of 1000, 55 may be"),
        ({"kept": False, "share": 0.9, "share_high": 0.96}, "in all of them the 95 % interval reaches the promise"),
        ({"kept": False, "share": 0.9, "wait_seconds": 30.0}, "no replica that is started for a request can serve it"),
        ({"kept": False, "share": 0.9, "wait_seconds": 120.0}, "being lazy pays here until a burst comes"),
        ({"kept": False, "share": 0.9}, "serves at the deadline itself"),
        ({"ratio": 1.4, "ratio_low": 1.2}, "dearer than 1.05 times tuned KEDA in 1 (the worst 1.40)"),
        ({"ratio": 1.4, "ratio_low": 1.2, "share": 0.99}, "ours keeps more than it must"),
        ({"ratio": 1.4, "ratio_low": 1.2, "tuned_minimum": 4}, "how many replicas to keep for ever (4)"),
        ({"ratio": 1.4, "ratio_low": 1.0}, "the 95 % interval begins at 1.05 or below"),
        (
            {"ratio_to_bound": 2.0, "cost": 2.0},
            "above 1.3 times the bound in 1: replicas start, or wait for requests, 50 %",
        ),
    ],
    ids=["late", "noise", "wait below", "wait above", "wait as long", "dear", "loose", "minimum", "wide", "bound"],
)
def test_a_missed_goal_is_told_with_the_figures_that_explain_it(changes: Row, said: str) -> None:
    assert said in "; ".join(reasons([row(**changes)]))


def test_what_was_not_run_is_said_to_be_missing() -> None:
    unrun: Row = {"share": None, "kept": None, "cost": None, "ratio": None, "ratio_to_bound": None, "seeds": 0}
    rows = [row(**unrun, grid_points=40)]
    said = " ".join(what_is_missing(rows, plan()))
    assert "of the 336 points of KEDA's grid only 40 were tried" in said
    assert "ours has fewer than 5 seeds in 1 cells (flash)" in said
    assert "| - | - | - | - | - |" in markdown(rows, plan())
    assert what_is_missing([row()], plan())[1:] == [
        "The five traces were not at hand: these are the seeded patterns that ship with the project."
    ]


def test_everybody_is_compared_over_the_cells_where_both_were_run() -> None:
    others = {"ray_share": 0.9, "ray_kept": False, "ray_cost": 4.0}
    lines = everybody([row(**others), row(**others, tuned_cost=None, ratio=None)])
    assert "| Ray Serve | 0 of 2 | 5.0 | 4.00 | 2.00 |" in lines
    assert "| **Pilotlight `slo`** | 2 of 2 | 0.0 | 1.20 | 0.60 |" in lines
    assert "| KEDA tuned in hindsight | 1 of 2 |  | 2.00 | 1.00 |" in lines


def test_sources_without_counters_are_judged_over_the_cells_that_can_be_kept() -> None:
    worse, hopeless = {"queue_only_share": 0.91}, {"queue_only_share": 0.5, "fixed_cost": None}
    unrun = {"queue_only_share": None, "queue_only_kept": None, "queue_only_cost": None, "queue_only_seeds": 0}
    rows = [row(), row(**worse, queue_only_cost=0.4), row(**hopeless), row(**unrun)]
    lines = everybody(rows)
    assert "| ... uncounted (as SQS) | 3 of 3 | 0.0 | 1.40 | 0.70 |" in lines
    assert "| ... queue only (as AMQP) | 0 of 2 | 4.0 | 1.01 | 0.50 |" in lines
    assert "as RabbitMQ tells over AMQP" in " ".join(lines)
    found = {goal: measured for goal, _, measured in summary_of(rows)}
    assert found["the same, with a source without counters (as SQS)"] == "3 of 3"
    assert found["the same, with a source that tells what waits alone (as AMQP)"] == "0 of 2"
    said = " ".join(what_is_missing(rows, plan()))
    assert "ours with what waits alone has fewer than 1 seeds in 1 cells (flash)" in said
    assert "| 0.950, 1.40 | 0.930, 1.60 |" in markdown(rows, plan())
    assert not [line for line in everybody([row(**unrun)]) if "queue only (as AMQP)" in line]


def test_cells_that_no_tuned_keda_keeps_are_listed_against_a_fixed_number() -> None:
    lines = no_tuned_keda([row(), row(tuned_cost=None, ratio=None)])
    assert lines[0].endswith("(1 of 2 cells)")
    assert lines[-1].endswith("fixed 3 at 3.00 (ours is 0.40 of that)")


def test_the_goals_are_measured_over_the_cells_that_they_are_about() -> None:
    rows = [
        row(),
        row(wait_seconds=30.0, ratio=0.4),
        row(kept=False, fixed_cost=None),
        row(ratio=None, tuned_cost=None),
    ]
    found = {goal: measured for goal, _, measured in summary_of(rows)}
    assert found["promise kept within half a point, cells that some fixed number keeps"] == "3 of 3"
    assert found["... cells with a wait below the cold start"] == "0.40 over 1 cells"
    assert found["... no cell above"] == "0 are; the worst 0.60"


def test_a_variant_is_told_by_what_it_moves() -> None:
    variant = Variant(
        constant="scaler.policies.slo:FLOOR", factor=2.0, cells=((1.1, 1.0, 0.0, -0.02), (1.1, 1.0, 0.01, 0.01))
    )
    (found,) = rows_of_variants([variant])
    assert (found["cost"], found["kept_before"], found["kept"], found["short_points"]) == (1.1, 2, 1, 1.0)
    assert "| policies.slo FLOOR | 2 | 1.100 | 1.00 | 1/2 | 1.00 |" in markdown([row()], plan(), [found])
