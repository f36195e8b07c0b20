"""The classic table, end to end: `decide`, KEDA's poll and push, the HPA's syncs, and pods that start and end."""

from __future__ import annotations

import random
import re

import pytest
import yaml

from scaler.core.model import Goals
from scaler.policies.steps import POLICY
from scaler.settings import FileSettings, resolve
from scaler.simulator.arrivals import Arrival
from scaler.simulator.controllers import Pilot
from scaler.simulator.world import Outcome, World, WorldSpec, cold_start
from scaler.trigger import parse_steps, parse_trigger
from tests.services import REPOSITORY

PAGE = (REPOSITORY / "docs/examples/queue-steps.md").read_text(encoding="utf-8")
DOCUMENTED = re.search(r'steps: "([^"]+)"', PAGE)
ROWS = re.findall(r"^\| (\d+)(?:\u2013(\d+)|(\+))? \| (\d+) \|$", PAGE, re.MULTILINE)
LATER_SECONDS = 20_000.0


def play(depth: int) -> Outcome:
    """So many long requests at once, from nothing; one more long after they are done."""
    assert DOCUMENTED is not None
    trace = [Arrival(100.0, 1_000.0)] * depth + [Arrival(LATER_SECONDS, 1.0)]
    pilot = Pilot(
        policy=POLICY, goals=Goals(target_value=5.0, steps=parse_steps(DOCUMENTED.group(1))), chance=random.Random(1)
    )
    spec = WorldSpec(cold_start=cold_start(30.0), keep_timeline=True)
    return World(spec, trace, random.Random(2)).run(pilot)


def replicas_at(outcome: Outcome, at_seconds: float) -> int:
    return next((entry[1] for entry in reversed(outcome.timeline) if entry[0] <= at_seconds), 0)


def edges() -> list[tuple[int, int]]:
    """The first and the last depth of every row of the page, and what it promises."""
    found = []
    for first, last, more, replicas in ROWS:
        found += [(int(first), int(replicas)), (int(last or (500 if more else first)), int(replicas))]
    return found


def test_the_page_s_metadata_is_taken_as_it_stands() -> None:
    """With a connection of the name that it gives, as an operator sets one up: it named a region beside it."""
    found = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    ((trigger,),) = yaml.safe_load(found.group(1)).values()
    of_aws = {"source": "sqs", "namespaces": ["*"], "set": {"awsRegion": "eu-central-1", "awsAmbientIdentity": True}}
    given = FileSettings.model_validate({"connections": {trigger["metadata"]["connection"]: of_aws}})
    parsed = parse_trigger("team-a", "documents", trigger["metadata"], resolve(given, {}, where="test"))
    assert (parsed.policy_name, parsed.refusal, parsed.warnings) == ("steps", None, ())


def test_the_page_has_the_classic_table() -> None:
    assert edges() == [(0, 0), (0, 0), (1, 2), (5, 2), (6, 5), (20, 5), (21, 10), (500, 10)]


@pytest.mark.parametrize(("depth", "replicas"), edges(), ids=str)
def test_a_queue_of_this_depth_gets_the_replicas_of_its_row(depth: int, replicas: int) -> None:
    outcome = play(depth)
    assert replicas_at(outcome, 99.0) == 0
    assert replicas_at(outcome, 200.0) == replicas  # a push, then syncs every 15 s; nothing is done before 1,100 s


@pytest.mark.parametrize("depth", [1, 5, 20], ids=str)
def test_an_empty_queue_gets_no_replicas(depth: int) -> None:
    assert replicas_at(play(depth), LATER_SECONDS - 100.0) == 0


def test_on_the_way_down_replicas_follow_the_table_but_never_leave_work_behind() -> None:
    wanted = [entry[1] for entry in play(8).timeline if entry[0] < LATER_SECONDS]
    assert max(wanted) == 5
    peak = wanted.index(5)
    after = wanted[peak:]
    assert after == sorted(after, reverse=True)
    assert after[-1] == 0
    assert len(after) > 3  # in steps, since five were in flight
