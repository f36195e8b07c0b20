"""The world that policies are judged in: a queue, replicas with cold starts, and whoever scales them.

Event-driven and seeded, without a clock of its own. Requests wait in one FIFO queue. A replica works on
`concurrency` requests at once, serves only after its cold start, and is billed from its creation to the end of
the last request that it serves. Scale-in takes replicas that do not serve yet first, then the newest ready ones,
as a ReplicaSet does (kubernetes `pkg/controller/replicaset`, ActivePodsWithRanks); a terminating replica
finishes what it works on, unless a grace period kills it and its requests go back to the head of the queue.
Free slots take work in the order in which they became free, as consumers that wait at a broker do.

The world moves requests; a `Scaler` sets the wanted replicas at the moments that it names itself, and may sleep
until the next arrival. That is what makes weeks of sparse traffic cheap to run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Protocol

from scaler.core.model import ReplicaView
from scaler.simulator.arrivals import Arrival, Chance, lognormal

NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a cold start: lognormal with this mean and coefficient of variation."""

    name: str
    mean_seconds: float
    variation: float


@dataclass(frozen=True, slots=True)
class ColdStart:
    """A cold start as the sum of its phases, drawn one by one."""

    phases: tuple[Phase, ...]

    @property
    def mean_seconds(self) -> float:
        """The mean of the whole."""
        return sum(phase.mean_seconds for phase in self.phases)

    def draw(self, chance: Chance) -> float:
        """One cold start in seconds."""
        return sum(lognormal(chance, phase.mean_seconds, phase.variation) for phase in self.phases)


def cold_start(mean_seconds: float, variation: float = 0.25) -> ColdStart:
    """Scheduling, image pull and model load as 5, 25 and 70 % of the mean; the whole has this variation."""
    shares = (("schedule", 0.05), ("pull", 0.25), ("load", 0.70))
    each = variation / math.sqrt(sum(share * share for _, share in shares))
    return ColdStart(tuple(Phase(name, mean_seconds * share, each) for name, share in shares))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSpec:
    """What does not depend on who scales.

    `scored_from_seconds`: before it, everything runs and nothing counts. `grace_seconds` None: a terminating
    replica may finish. `keep_timeline`: remember replicas over time, for plots. `block_seconds`: GPU-seconds are also
    summed by blocks of the scored span, for confidence intervals. `most_gpu_seconds`: a run that has cost more is
    stopped, for a search that knows something cheaper.
    """

    cold_start: ColdStart
    concurrency: int = 1
    initial_replicas: int = 0
    scored_from_seconds: float = 0.0
    grace_seconds: float | None = None
    keep_timeline: bool = False
    block_seconds: float = NEVER
    most_gpu_seconds: float = NEVER


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What happened from `scored_from_seconds` on.

    `waits_seconds` and `arrived_at_seconds` run in parallel, in order of arrival. `reversals`: a change of the
    wanted replicas against the direction of the one before, within two cold starts or a minute. `timeline`:
    (at_seconds, wanted, ready, starting, waiting). `stopped`: it cost more than `most_gpu_seconds`, and what was left
    to serve has a wait of -1.
    """

    waits_seconds: list[float]
    arrived_at_seconds: list[float]
    gpu_seconds: float
    starts: int
    reversals: int
    looks: int
    end_at_seconds: float
    busy_seconds: float
    gpu_seconds_by_block: list[float] = field(default_factory=list)
    timeline: list[tuple[float, int, int, int, int]] = field(default_factory=list)
    stopped: bool = False

    def share_within(self, wait_seconds: float) -> float:
        """The share of requests that started within `wait_seconds`; 1 where there were none."""
        if not self.waits_seconds:
            return 1.0
        return sum(1 for wait in self.waits_seconds if wait <= wait_seconds) / len(self.waits_seconds)


class Scaler(Protocol):
    """Who sets the wanted replicas."""

    def begin(self, world: World) -> float:
        """Called once at time 0: when to look first."""

    def look(self, world: World, now_seconds: float) -> float:
        """Look at the world, call `world.scale_to` if need be; when to look next (NEVER: at the next arrival)."""

    def arrived(self, world: World, now_seconds: float) -> float:
        """A request arrived while nobody was going to look: when to look next."""


_STARTING, _READY, _TERMINATING, _GONE = range(4)


class _Replica:
    __slots__ = ("busy", "created_at_seconds", "epoch", "state", "work")

    def __init__(self, created_at_seconds: float) -> None:
        self.state = _STARTING
        self.busy = 0
        self.created_at_seconds = created_at_seconds
        self.work: set[int] | None = None  # request indices, only where a grace period may kill
        self.epoch = 0


class World:
    """Requests, replicas and the bill. Scalers read the counts and call `scale_to`."""

    def __init__(self, spec: WorldSpec, trace: Sequence[Arrival], chance: Chance) -> None:
        self.spec = spec
        self._chance = chance
        self._arrivals = [arrival[0] for arrival in trace]
        self._services = [arrival[1] for arrival in trace]
        self._waits = [-1.0] * len(trace)
        self._next = 0
        self._queue: deque[int] = deque()
        self._free: deque[_Replica] = deque()
        self._heap: list[tuple[float, int, _Replica, int]] = []  # (at, order, replica, request or -1 for ready)
        self._order = 0
        self._ready: list[_Replica] = []
        self._starting: list[_Replica] = []
        self._terminating = 0
        self._completed = 0
        self._now_seconds = 0.0
        self._billed = 0
        self._billed_at_seconds = 0.0
        self._gpu_seconds = 0.0
        self._busy_seconds = 0.0
        self._starts = 0
        self._reversals = 0
        self._last_change: tuple[float, int] = (-math.inf, 0)
        self._cold_starts: list[float] = []
        self._blocks: list[float] = []
        self._timeline: list[tuple[float, int, int, int, int]] = []
        self._kills: list[tuple[float, int, _Replica]] = []
        self.looks = 0
        self.replicas_version = 0
        for _ in range(spec.initial_replicas):
            replica = _Replica(0.0)
            self._bill(0.0, 1)
            self._starting.append(replica)
            self._becomes_ready(replica, 0.0)

    # --- what scalers see ---

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def arrived(self) -> int:
        """Requests ever arrived."""
        return self._next

    @property
    def completed(self) -> int:
        """Requests ever finished."""
        return self._completed

    @property
    def in_system(self) -> int:
        """Requests waiting or being worked on."""
        return self._next - self._completed

    @property
    def replicas(self) -> int:
        """Ready and starting: spec.replicas and status.replicas alike, since pods are created at once."""
        return len(self._ready) + len(self._starting)

    @property
    def ready(self) -> int:
        """Replicas that serve."""
        return len(self._ready)

    @property
    def starting(self) -> int:
        """Replicas that do not serve yet."""
        return len(self._starting)

    @property
    def next_arrival_at_seconds(self) -> float:
        """When the next request will arrive: for skipping idle stretches, not for deciding."""
        return self._arrivals[self._next] if self._next < len(self._arrivals) else NEVER

    def view(self, now_seconds: float) -> ReplicaView:
        """The replicas as a watcher of the cluster sees them; cold starts are told once."""
        cold_starts, self._cold_starts = tuple(self._cold_starts), []
        return ReplicaView(
            at_seconds=now_seconds,
            ready=len(self._ready),
            starting_at_seconds=tuple([replica.created_at_seconds for replica in self._starting]),
            terminating=self._terminating,
            status_replicas=len(self._ready) + len(self._starting),
            cold_starts_seconds=cold_starts,
        )

    def scale_to(self, wanted: int, now_seconds: float) -> None:
        """Create or take replicas at once, until there are `wanted` of them."""
        there = len(self._ready) + len(self._starting)
        if wanted == there:
            return
        self._note_change(wanted - there, now_seconds)
        while there < wanted:
            there += 1
            replica = _Replica(now_seconds)
            self._bill(now_seconds, 1)
            if now_seconds >= self.spec.scored_from_seconds:
                self._starts += 1
            self._starting.append(replica)
            self._push(now_seconds + self.spec.cold_start.draw(self._chance), replica, -1)
        while there > wanted:
            there -= 1
            if self._starting:
                self._starting.pop().state = _GONE
                self._bill(now_seconds, -1)
                continue
            replica = self._ready.pop()
            if replica.busy == 0:
                replica.state = _GONE
                self._bill(now_seconds, -1)
                continue
            replica.state = _TERMINATING
            self._terminating += 1
            if self.spec.grace_seconds is not None:
                self._order += 1
                heappush(self._kills, (now_seconds + self.spec.grace_seconds, self._order, replica))
        if self.spec.keep_timeline:
            self._mark(now_seconds)

    # --- running ---

    def run(self, scaler: Scaler) -> Outcome:
        """Everything until the last request is served."""
        arrivals = self._arrivals
        look_at_seconds = scaler.begin(self)
        total = len(arrivals)
        most_gpu_seconds, stopped = self.spec.most_gpu_seconds, False
        while self._completed < total:
            if most_gpu_seconds != NEVER and self._spent(self._now_seconds) > most_gpu_seconds:
                stopped = True
                break
            if look_at_seconds == NEVER:
                if self._next >= total:
                    self._advance(NEVER)
                    if self._completed < total:
                        raise RuntimeError("requests remain, nothing serves them and the scaler never looks again")
                    break
                at_seconds = arrivals[self._next]
                self._advance(at_seconds)
                look_at_seconds = scaler.arrived(self, at_seconds)
                continue
            self._advance(look_at_seconds)
            if self._completed >= total:
                break
            self.looks += 1
            look_at_seconds = scaler.look(self, look_at_seconds)
        end_at_seconds = self._now_seconds
        self._bill(end_at_seconds, 0)
        first = next((i for i, at in enumerate(arrivals) if at >= self.spec.scored_from_seconds), total)
        return Outcome(
            waits_seconds=self._waits[first:],
            arrived_at_seconds=arrivals[first:],
            gpu_seconds=self._gpu_seconds,
            starts=self._starts,
            reversals=self._reversals,
            looks=self.looks,
            end_at_seconds=end_at_seconds,
            busy_seconds=sum(self._services[first:]) / self.spec.concurrency,
            gpu_seconds_by_block=self._blocks,
            timeline=self._timeline,
            stopped=stopped,
        )

    def _spent(self, now_seconds: float) -> float:
        """GPU-seconds up to now."""
        since_seconds = max(self._billed_at_seconds, self.spec.scored_from_seconds)
        return self._gpu_seconds + self._billed * max(now_seconds - since_seconds, 0.0)

    def _advance(self, until_seconds: float) -> None:
        """Arrivals, completions and readiness up to and including `until_seconds`: the hot loop."""
        arrivals, services, waits = self._arrivals, self._services, self._waits
        heap, queue, free = self._heap, self._queue, self._free
        upcoming, total = self._next, len(arrivals)
        next_arrival = arrivals[upcoming] if upcoming < total else NEVER
        order = self._order
        kills = self._kills
        while True:
            at_seconds = heap[0][0] if heap else NEVER
            if kills and kills[0][0] <= min(at_seconds, next_arrival, until_seconds):
                self._next, self._order = upcoming, order
                self._kill(*heappop(kills)[::2])
                order = self._order
                continue
            if next_arrival < at_seconds:
                if next_arrival > until_seconds:
                    break
                while free:
                    replica = free.popleft()
                    if replica.state == _READY:
                        replica.busy += 1
                        waits[upcoming] = 0.0
                        order += 1
                        heappush(heap, (next_arrival + services[upcoming], order, replica, upcoming))
                        if replica.work is not None:
                            replica.work.add(upcoming)
                        break
                else:
                    queue.append(upcoming)
                self._now_seconds = next_arrival
                upcoming += 1
                next_arrival = arrivals[upcoming] if upcoming < total else NEVER
                continue
            if at_seconds > until_seconds or at_seconds == NEVER:
                break
            self._now_seconds = at_seconds
            _, _, replica, request = heap[0]
            if request < 0:
                heappop(heap)
                if replica.state == _STARTING:
                    self._next, self._order = upcoming, order
                    self._becomes_ready(replica, at_seconds)
                    order = self._order
                continue
            if replica.state == _GONE:  # killed while it worked
                heappop(heap)
                continue
            self._completed += 1
            if replica.work is not None:
                replica.work.discard(request)
            if replica.state == _READY:
                if queue:
                    request = queue.popleft()
                    waits[request] = at_seconds - arrivals[request]
                    order += 1
                    heapreplace(heap, (at_seconds + services[request], order, replica, request))
                    if replica.work is not None:
                        replica.work.add(request)
                else:
                    heappop(heap)
                    replica.busy -= 1
                    free.append(replica)
                continue
            heappop(heap)
            replica.busy -= 1
            if replica.busy == 0:
                replica.state = _GONE
                self._terminating -= 1
                self._bill(at_seconds, -1)
        self._next, self._order = upcoming, order

    def _becomes_ready(self, replica: _Replica, now_seconds: float) -> None:
        replica.state = _READY
        self._starting.remove(replica)
        self._ready.append(replica)
        self._cold_starts.append(now_seconds - replica.created_at_seconds)
        self.replicas_version += 1
        if self.spec.grace_seconds is not None:
            replica.work = set()
        for _ in range(self.spec.concurrency):
            if self._queue:
                request = self._queue.popleft()
                self._waits[request] = now_seconds - self._arrivals[request]
                replica.busy += 1
                if replica.work is not None:
                    replica.work.add(request)
                self._push(now_seconds + self._services[request], replica, request)
            else:
                self._free.append(replica)
        if self.spec.keep_timeline:
            self._mark(now_seconds)

    def _kill(self, now_seconds: float, replica: _Replica) -> None:
        """The grace period is over: what it worked on goes back to the head of the queue, in order."""
        if replica.state != _TERMINATING:
            return
        replica.state = _GONE
        self._terminating -= 1
        self._bill(now_seconds, -1)
        for request in sorted(replica.work or (), reverse=True):
            self._queue.appendleft(request)
        while self._queue and self._free:
            other = self._free.popleft()
            if other.state == _READY:
                request = self._queue.popleft()
                self._waits[request] = now_seconds - self._arrivals[request]
                other.busy += 1
                if other.work is not None:
                    other.work.add(request)
                self._push(now_seconds + self._services[request], other, request)

    def _push(self, at_seconds: float, replica: _Replica, request: int) -> None:
        self._order += 1
        heappush(self._heap, (at_seconds, self._order, replica, request))

    def _bill(self, now_seconds: float, change: int) -> None:
        since_seconds = max(self._billed_at_seconds, self.spec.scored_from_seconds)
        if now_seconds > since_seconds and self._billed:
            self._gpu_seconds += self._billed * (now_seconds - since_seconds)
            if self.spec.block_seconds != NEVER:
                self._bill_blocks(since_seconds, now_seconds)
        self._billed_at_seconds = now_seconds
        self._billed += change
        self.replicas_version += 1

    def _bill_blocks(self, since_seconds: float, until_seconds: float) -> None:
        block_seconds, origin_seconds = self.spec.block_seconds, self.spec.scored_from_seconds
        while since_seconds < until_seconds:
            block = int((since_seconds - origin_seconds) / block_seconds + 1e-9)
            end_seconds = min(origin_seconds + (block + 1) * block_seconds, until_seconds)
            while len(self._blocks) <= block:
                self._blocks.append(0.0)
            self._blocks[block] += self._billed * (end_seconds - since_seconds)
            since_seconds = end_seconds

    def _note_change(self, change: int, now_seconds: float) -> None:
        at_seconds, direction = self._last_change
        sign = 1 if change > 0 else -1
        near_seconds = max(2 * self.spec.cold_start.mean_seconds, 60.0)
        scored = now_seconds >= self.spec.scored_from_seconds
        if scored and sign == -direction and now_seconds - at_seconds <= near_seconds:
            self._reversals += 1
        self._last_change = (now_seconds, sign)

    def _mark(self, now_seconds: float) -> None:
        ready, starting = len(self._ready), len(self._starting)
        self._timeline.append((now_seconds, ready + starting, ready, starting, len(self._queue)))
