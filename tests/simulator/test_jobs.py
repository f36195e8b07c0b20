"""A ScaledJob in the simulated world: what KEDA's rules make of it, and what it costs."""

from __future__ import annotations

import random

import pytest
from typer.testing import CliRunner

from scaler.cli import build_app
from scaler.core.answers import JOBS
from scaler.core.model import Goals
from scaler.simulator.arrivals import Arrival, Poisson, Service, generate
from scaler.simulator.jobs import Answered, Backlogged, JobWorld, Reader, backlogged
from scaler.simulator.rules import JobSpec, JobStrategy, JobTrigger, jobs_to_create
from scaler.simulator.world import ColdStart, Outcome, Phase, WorldSpec, cold_start

POLLING_SECONDS = 30.0


class Phased:
    """Chance that puts the grid of polls where a test wants it."""

    def __init__(self, share: float) -> None:
        self.share = share

    def random(self) -> float:
        return self.share

    def expovariate(self, lambd: float, /) -> float:
        raise NotImplementedError

    def lognormvariate(self, mu: float, sigma: float) -> float:
        raise NotImplementedError


def ten_seconds() -> ColdStart:
    """Three until the pod runs, seven to load."""
    return ColdStart((Phase("pull", 3.0, 0.0), Phase("load", 7.0, 0.0)))


def play(
    trace: list[Arrival],
    *,
    job: JobSpec | None = None,
    reader: Reader | None = None,
    per_job: int | None = 1,
    slots: int = 1,
    law: ColdStart | None = None,
) -> Outcome:
    world = JobWorld(
        spec=WorldSpec(cold_start=law or ten_seconds(), concurrency=slots, keep_timeline=True),
        job=job or JobSpec(),
        reader=reader or Backlogged(),
        trace=trace,
        chance=random.Random(1),
        requests_per_job=per_job,
    )
    return world.run(Phased(0.5))  # polls at 15, 45, 75, ...


def busy_hour(service_seconds: float = 20.0) -> list[Arrival]:
    service = Service(mean_seconds=service_seconds)
    return list(generate(Poisson(rate_per_second=0.1), service, random.Random(3), 3_600.0))


def test_a_job_is_created_at_a_poll_and_serves_after_its_cold_start() -> None:
    outcome = play([Arrival(14.0, 5.0), Arrival(16.0, 5.0)])
    assert outcome.waits_seconds == [1.0 + 10.0, 29.0 + 10.0]
    assert outcome.gpu_seconds == pytest.approx(2 * 15.0)
    assert outcome.starts == 2


def test_by_default_no_more_jobs_run_than_there_are_requests() -> None:
    outcome = play(busy_hour())
    assert outcome.starts == len(outcome.waits_seconds)
    assert all(wait <= POLLING_SECONDS + 10.0 for wait in outcome.waits_seconds)


def test_a_job_that_goes_on_while_something_waits_serves_what_others_started_for() -> None:
    outcome = play([Arrival(1.0, 5.0), Arrival(20.0, 5.0), Arrival(22.0, 5.0)], per_job=None)
    # The first serves from 25 s on; then the second and the third wait, and no poll came in between.
    assert outcome.waits_seconds == [24.0, 10.0, 13.0]
    assert outcome.starts == 1
    assert outcome.gpu_seconds == pytest.approx(40.0 - 15.0)


def test_a_job_that_finds_nothing_ends_and_its_cold_start_is_billed() -> None:
    quick = [Arrival(1.0, 1.0), Arrival(2.0, 1.0), Arrival(100.0, 1.0)]
    outcome = play(quick, per_job=None)
    # Both serve from 25 s on, at once; nothing is left to find for a third.
    assert outcome.waits_seconds[:2] == [24.0, 23.0]
    wasteful = play(quick, per_job=None, job=JobSpec(strategy=JobStrategy.EAGER, max_replicas=4))
    assert wasteful.starts >= outcome.starts
    assert wasteful.gpu_seconds >= outcome.gpu_seconds


def test_slots_are_filled_and_a_job_ends_with_its_last_request() -> None:
    outcome = play([Arrival(1.0, 5.0), Arrival(2.0, 30.0)], slots=2, per_job=2, reader=Backlogged(target=2.0))
    assert outcome.waits_seconds == [24.0, 23.0]
    assert outcome.starts == 1
    assert outcome.gpu_seconds == pytest.approx(10.0 + 30.0)


def test_a_free_slot_takes_what_comes_while_the_others_work() -> None:
    outcome = play([Arrival(0.0, 300.0), Arrival(150.0, 10.0), Arrival(160.0, 10.0)], per_job=None, slots=2)
    assert outcome.waits_seconds == [25.0, 0.0, 0.0]
    outcome = play([Arrival(0.0, 300.0), Arrival(150.0, 10.0), Arrival(151.0, 10.0)], per_job=2, slots=2)
    assert outcome.waits_seconds[:2] == [25.0, 0.0]
    assert outcome.waits_seconds[2] > 0.0  # it takes no third


def test_never_more_jobs_than_max_replicas() -> None:
    burst = [Arrival(float(i), 40.0) for i in range(14)]
    outcome = play(burst, job=JobSpec(max_replicas=5))
    assert max(entry[1] for entry in outcome.timeline) == 5
    assert len(outcome.waits_seconds) == 14


def test_as_many_jobs_are_answered_as_there_are_requests_however_few_less_they_become() -> None:
    """KEDA creates what is answered less the jobs that run: the HPA's tolerance, kept here too, made idle jobs."""
    answered = Answered(policy=JOBS, goals=Goals(target_value=1.0, min_replicas=10, max_replicas=30))
    for index, there in enumerate((20, 19, 18, 11, 10, 30, 29)):
        trigger = answered.read(waiting=0, in_flight=there, now_seconds=5.0 * index)
        assert trigger.queue_length == there
        assert jobs_to_create(JobSpec(max_replicas=30), [trigger], running=there, pending=0) == 0


@pytest.mark.parametrize("strategy", list(JobStrategy), ids=lambda one: str(one.value))
def test_every_strategy_serves_every_request(strategy: JobStrategy) -> None:
    outcome = play(busy_hour(), job=JobSpec(strategy=strategy, max_replicas=20), reader=backlogged(strategy, 1.0))
    assert all(wait >= 0 for wait in outcome.waits_seconds)
    assert outcome.gpu_seconds >= outcome.busy_seconds


def test_a_length_that_counts_requests_in_flight_makes_the_other_strategies_run_away() -> None:
    job = JobSpec(strategy=JobStrategy.ACCURATE, max_replicas=50)
    meant = play(busy_hour(120.0), job=job, reader=backlogged(JobStrategy.ACCURATE, 1.0))
    runaway = play(busy_hour(120.0), job=job, reader=Backlogged(counts_in_flight=True))
    assert runaway.starts > 1.5 * meant.starts


def test_pilotlights_answer_is_one_job_for_each_slots_worth_of_requests() -> None:
    answered = Answered(policy=JOBS, goals=Goals(target_value=1.0, concurrency=2, max_replicas=50))
    assert answered.read(waiting=3, in_flight=2, now_seconds=0.0) == JobTrigger(
        active=True, queue_length=3.0, target=1.0
    )
    assert not answered.read(waiting=0, in_flight=0, now_seconds=30.0).active
    outcome = play(busy_hour(), reader=Answered(policy=JOBS, goals=Goals(target_value=1.0)), law=cold_start(30.0))
    assert outcome.starts == len(outcome.waits_seconds)


def test_the_verb_runs_a_scaled_job_and_says_which_strategies_there_are() -> None:
    words = ["backtest", "--trace", "documents", "--job-strategy", "default", "--threshold", "1", "--json"]
    done = CliRunner().invoke(build_app(), words)
    assert done.exit_code == 0, done.output
    assert '"policy": "jobs"' in done.stdout
    wrong = CliRunner().invoke(build_app(), [*words, "--job-strategy", "greedy"])
    assert "there are: default, custom, accurate, eager" in str(wrong.exception)
    wrong = CliRunner().invoke(build_app(), [*words, "--policy", "knative"])
    assert "does not scale a ScaledJob" in str(wrong.exception)
