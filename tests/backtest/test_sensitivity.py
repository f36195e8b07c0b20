"""Every constant of the policy is found, and a variant is the policy with one number changed."""

from __future__ import annotations

import sys
from dataclasses import replace
from statistics import StatisticsError

import pytest

from scaler.backtest import cases
from scaler.backtest.cases import Case, run, simulated
from scaler.backtest.matrix import Plan, Variant
from scaler.backtest.page import _sensitivity, rows_of_variants
from scaler.backtest.sensitivity import FACTORS, constants, modules, varied_policy
from scaler.core import holds
from scaler.core.decide import Proposal, Situation
from scaler.policies import slo


def test_the_constants_of_the_policy_and_of_what_only_it_imports_are_found() -> None:
    assert modules()[-1] == "scaler.policies.slo"
    assert {"scaler.core.estimate", "scaler.core.holds"} < set(modules())
    found = constants()
    assert len(found) == len(set(found)) > 10
    assert "scaler.policies.slo:HPA_WAIT_SECONDS" in found
    assert not any(name.endswith((":_DAY_SECONDS", ":GROUPS")) for name in found)


@pytest.mark.parametrize("constant", constants())
@pytest.mark.parametrize("factor", FACTORS)
def test_the_policy_still_serves_everybody_with_any_constant_halved_or_doubled(constant: str, factor: float) -> None:
    case = Case(
        trace="bursts:every_seconds=900,burst_rate_per_second=1",
        cold_start_seconds=20.0,
        scaler="slo",
        wait_seconds=20.0,
        days=0.05,
        service_seconds=4.0,
        varied=(constant, factor),
    )
    result = run(case)
    assert result.gpu_seconds >= result.busy_seconds


def test_a_variant_that_can_not_decide_is_told_from_one_that_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        decides_replicas, problems, start = slo.POLICY.decides_replicas, slo.POLICY.problems, slo.POLICY.start

        def propose(self, situation: Situation, state: slo.SloState) -> Proposal[slo.SloState]:
            raise StatisticsError(f"{situation.now_seconds} {state}")

    monkeypatch.setattr(cases, "varied_policy", lambda *_: Broken())
    case = Case(trace="flash", cold_start_seconds=20.0, scaler="slo", wait_seconds=20.0, varied=("x", 2.0))
    assert simulated(case).stopped
    assert not simulated(replace(case, varied=None)).stopped
    variant = Variant(constant="a:X", factor=2.0, cells=((1.0, 1.0, 0.0, 0.0),), failed=2)
    assert "`X` times 2 the policy can't decide" in " ".join(
        _sensitivity(rows_of_variants([variant]), Plan(traces=("flash",)))
    )


def test_a_variant_leaves_the_policy_as_it_is() -> None:
    before = slo.HPA_WAIT_SECONDS
    varied = varied_policy("scaler.policies.slo:HPA_WAIT_SECONDS", 2.0)
    assert varied is not slo.POLICY
    assert sys.modules[type(varied).__module__] is slo
    assert before == slo.HPA_WAIT_SECONDS


def test_what_is_worked_out_from_a_constant_follows() -> None:
    varied = varied_policy("scaler.core.holds:FIRST_SECONDS", 2.0)
    fresh = type(varied).propose.__globals__["in_use"].__globals__
    assert (fresh["FIRST_SECONDS"], fresh["_EDGES"][1]) == (2 * holds.FIRST_SECONDS, 2 * holds._EDGES[1])
