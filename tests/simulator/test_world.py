"""The world against theory and against its own rules."""

import math
import random

import pytest

from scaler.simulator.arrivals import Arrival, Poisson, Service, generate
from scaler.simulator.keda import OUR_BEHAVIOR, Fixed, KedaHpa, after
from scaler.simulator.rules import KedaSpec
from scaler.simulator.world import NEVER, ColdStart, Outcome, Phase, World, WorldSpec, cold_start


class Script:
    """Scales to given counts at given moments."""

    def __init__(self, moves: list[tuple[float, int]]) -> None:
        self.moves = list(moves)

    def begin(self, world: World) -> float:  # noqa: ARG002 - the shape of a Scaler
        return self.moves[0][0] if self.moves else NEVER

    def look(self, world: World, now_seconds: float) -> float:
        world.scale_to(self.moves.pop(0)[1], now_seconds)
        return self.moves[0][0] if self.moves else NEVER

    def arrived(self, world: World, now_seconds: float) -> float:  # noqa: ARG002 - the shape of a Scaler
        return self.moves[0][0] if self.moves else NEVER


def ten_seconds() -> ColdStart:
    return ColdStart((Phase("load", 10.0, 0.0),))


def play(
    trace: list[Arrival], moves: list[tuple[float, int]], *, initial: int = 0, c: int = 1, grace: float | None = None
) -> Outcome:
    spec = WorldSpec(cold_start=ten_seconds(), concurrency=c, initial_replicas=initial, grace_seconds=grace)
    return World(spec, trace, random.Random(0)).run(Script(moves))


@pytest.mark.parametrize(("servers", "rate"), [(1, 0.12), (10, 1.8), (40, 7.6)], ids=str)
def test_a_fixed_number_of_replicas_waits_as_erlang_c_says(servers: int, rate: float) -> None:
    chance, service_seconds = random.Random(7), 5.0
    trace, at_seconds = [], 0.0
    for _ in range(250_000):
        at_seconds += chance.expovariate(rate)
        trace.append(Arrival(at_seconds, chance.expovariate(1 / service_seconds)))
    spec = WorldSpec(cold_start=cold_start(60.0), initial_replicas=servers, scored_from_seconds=2_000.0)
    outcome = World(spec, trace, chance).run(Fixed())
    load, blocked = rate * service_seconds, 1.0
    for k in range(1, servers + 1):
        blocked = load * blocked / (k + load * blocked)
    waits = blocked / (1 - (load / servers) * (1 - blocked))
    expected = waits * service_seconds / (servers - load)
    assert sum(outcome.waits_seconds) / len(outcome.waits_seconds) == pytest.approx(expected, rel=0.03)


def test_a_replica_serves_after_its_cold_start_and_is_billed_from_its_creation() -> None:
    outcome = play([Arrival(0.0, 5.0), Arrival(1.0, 5.0)], [(2.0, 1)])
    assert outcome.waits_seconds == [12.0, 16.0]
    assert outcome.gpu_seconds == pytest.approx(22.0 - 2.0)
    assert outcome.starts == 1


def test_concurrency_lets_a_replica_work_on_several_at_once() -> None:
    outcome = play([Arrival(0.0, 5.0)] * 3, [], initial=1, c=2)
    assert outcome.waits_seconds == [0.0, 0.0, 5.0]


def test_scale_in_takes_what_does_not_serve_yet_first() -> None:
    outcome = play([Arrival(0.0, 30.0), Arrival(1.0, 1.0)], [(2.0, 3), (5.0, 1)], initial=1)
    assert outcome.gpu_seconds == pytest.approx(31.0 + 2 * 3.0)
    assert outcome.waits_seconds == [0.0, 29.0]


def test_a_terminating_replica_finishes_and_is_billed_until_then() -> None:
    outcome = play([Arrival(0.0, 30.0), Arrival(0.0, 30.0)], [(5.0, 1)], initial=2)
    assert outcome.waits_seconds == [0.0, 0.0]
    assert outcome.gpu_seconds == pytest.approx(60.0)


def test_a_grace_period_kills_and_the_request_waits_again() -> None:
    outcome = play([Arrival(0.0, 30.0), Arrival(0.0, 30.0)], [(5.0, 1)], initial=2, grace=10.0)
    assert sorted(outcome.waits_seconds) == [0.0, 30.0]
    assert outcome.gpu_seconds == pytest.approx(15.0 + 60.0)


def test_what_is_before_the_scored_span_runs_and_does_not_count() -> None:
    spec = WorldSpec(cold_start=ten_seconds(), initial_replicas=1, scored_from_seconds=100.0)
    outcome = World(spec, [Arrival(0.0, 1.0), Arrival(150.0, 1.0)], random.Random(0)).run(Fixed())
    assert outcome.waits_seconds == [0.0]
    assert outcome.gpu_seconds == pytest.approx(51.0)


def test_the_same_seed_gives_the_same_run() -> None:
    def once() -> tuple[float, int]:
        trace = list(generate(Poisson(rate_per_second=0.2), Service(mean_seconds=8), random.Random(1), 3_000))
        keda = KedaSpec(cooldown_seconds=60.0)
        scaler = KedaHpa(keda=keda, hpa=keda.hpa(behavior=OUR_BEHAVIOR), target=2.0, chance=random.Random(2))
        outcome = World(WorldSpec(cold_start=cold_start(30.0)), trace, random.Random(3)).run(scaler)
        return outcome.gpu_seconds, outcome.starts

    assert once() == once()


def test_stock_keda_leaves_zero_within_a_poll_and_returns_after_its_cooldown() -> None:
    keda = KedaSpec(cooldown_seconds=60.0)
    scaler = KedaHpa(keda=keda, hpa=keda.hpa(), target=5.0, chance=random.Random(2))
    spec = WorldSpec(cold_start=ten_seconds(), keep_timeline=True)
    outcome = World(spec, [Arrival(100.0, 5.0), Arrival(1_000.0, 5.0)], random.Random(0)).run(scaler)
    wanted = [entry[1] for entry in outcome.timeline]
    assert 0 in wanted[1:]
    assert all(10.0 <= wait <= 10.0 + keda.polling_seconds for wait in outcome.waits_seconds)


def test_cold_starts_have_the_mean_and_the_variation_that_is_asked_for() -> None:
    chance, law = random.Random(1), cold_start(60.0, 0.25)
    draws = [law.draw(chance) for _ in range(20_000)]
    mean = sum(draws) / len(draws)
    deviation = math.sqrt(sum((draw - mean) ** 2 for draw in draws) / len(draws))
    assert mean == pytest.approx(60.0, rel=0.01)
    assert deviation / mean == pytest.approx(0.25, rel=0.03)


@pytest.mark.parametrize(("now", "expected"), [(0.0, 5.0), (4.9, 5.0), (5.0, 20.0), (21.0, 35.0)], ids=str)
def test_the_next_point_of_a_grid_is_strictly_later(now: float, expected: float) -> None:
    assert after(now, 15.0, 5.0) == expected
