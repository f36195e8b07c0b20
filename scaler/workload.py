"""What is known of one trigger that KEDA asks about, of its ScaledObject, and of the streams that wait for it.

A workload is (namespace, name, digest of the metadata). Here is what it holds; scaler/evaluator.py has the rules.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final

from scaler.core import warm_pool
from scaler.core.decide import Memory
from scaler.core.estimate import Estimates, cold_start_first
from scaler.core.model import ReplicaView
from scaler.dry_run import Trial, Watched
from scaler.errors import PilotlightError
from scaler.state import Key, Restored
from scaler.telemetry import DryRun, Learned, WorkloadFacts
from scaler.trigger import Trigger

Digest = bytes


class Stream:
    """One open StreamIsActive or StreamMetricSpec: a mailbox with one slot in which the latest message wins."""

    __slots__ = ("_future", "_message", "ends_at", "home", "specs")

    END: Final = b"end"

    def __init__(self, home: Workload, ends_at: float, *, specs: bool) -> None:
        self.home = home
        self.ends_at = ends_at
        self.specs = specs
        self._message: object | None = None
        self._future: asyncio.Future[None] | None = None

    def put(self, message: object) -> None:
        """Leave `message` for the client, in place of one it has not got yet. Nothing follows END."""
        if self._message is self.END:
            return
        self._message = message
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def retract(self) -> None:
        """Take back a `true` that the client has not got yet: `false` is the latest now."""
        if self._message is True:
            self._message = False

    async def take(self) -> object | None:
        """The next message; None when the stream shall end."""
        while self._message is None:
            self._future = asyncio.get_running_loop().create_future()
            try:
                await self._future
            finally:
                self._future = None
        message = self._message
        if message is self.END:
            return None
        self._message = None
        return message


class ScaledObject:
    """What belongs to a (namespace, name): its workloads, and the replicas of its target if anyone sees them."""

    __slots__ = ("joint", "name", "namespace", "trial", "view", "view_until", "workloads")

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self.view: ReplicaView | None = None
        self.view_until = -math.inf
        self.workloads: list[Workload] = []
        # What its `slo` triggers, which are sized together, remember together; and what its dry runs do.
        self.joint = Joint()
        self.trial = Joint()

    def view_at(self, now: float) -> ReplicaView | None:
        """The replicas as last reported, while that is believed."""
        return self.view if now <= self.view_until else None


class Joint:
    """What triggers that are sized together remember together, and which triggers these were."""

    __slots__ = ("memory", "of")

    def __init__(self) -> None:
        self.memory: Memory[Any] | None = None
        self.of: frozenset[str] = frozenset()  # what they read, which an edit leaves as it is


class Workload:
    """One trigger that KEDA asks about. See scaler/evaluator.py for how its parts change."""

    __slots__ = (
        "admitted_at",
        "beat_at",
        "blank_until",
        "called_at",
        "cold_start_phases",
        "cold_starts",
        "digest",
        "dry_run",
        "error",
        "failing_since",
        "good_until",
        "interval_seconds",
        "memory",
        "metrics_body",
        "peak",
        "query",
        "restored",
        "scaled_object",
        "spec_body",
        "streams",
        "superseded",
        "touched_at",
        "trigger",
        "unread",
        "waiters",
        "warm",
        "warm_until_unix_seconds",
    )

    def __init__(self, digest: Digest, trigger: Trigger, scaled_object: ScaledObject, now: float) -> None:
        self.digest = digest
        self.trigger = trigger
        self.scaled_object = scaled_object
        self.query: Any = None  # the handle of what is read for it; None where nothing is
        self.touched_at = now
        self.called_at = -math.inf
        self.interval_seconds = 0.0
        self.beat_at = math.inf
        # Until when `slo`, which knows nothing yet, answers no less than `peak`, the most that it asked for so far.
        self.blank_until = -math.inf
        self.peak = 0
        # The hint for its warm pool, kept current once somebody has asked for it.
        self.warm: warm_pool.WarmHint | None = None
        self.warm_until_unix_seconds: float | None = None
        self.dry_run = None if trigger.dry_run is None else Watched(Memory(state=trigger.dry_run.start()))
        self.streams: list[Stream] | None = None
        self.waiters: list[asyncio.Future[None]] | None = None
        self.superseded = False
        self.begin(now)

    def begin(self, now: float) -> None:
        """Forget what was read: it is new, or it was superseded, and what it remembers is of before that."""
        self.admitted_at = now
        self.memory: Memory[Any] = Memory(state=self.trigger.policy.start())
        self.error: PilotlightError | None = None
        self.failing_since = math.inf
        # Until when `metrics_body` may be sent without a second look.
        self.good_until = -math.inf
        # Cold starts that were reported since it was last read, which its successor learned from if it had one.
        self.cold_starts: tuple[float, ...] = ()
        self.cold_start_phases: tuple[tuple[int, float], ...] = ()
        # The last decision is from before a restart, and nothing was read since.
        self.restored = False
        # What it went on from, and the key of that, while nothing was read since: if it expires, that is still so.
        self.unread: tuple[Key, Restored | Trial] | None = None
        # Serialised answers, filled in and used by the service.
        self.spec_body: bytes | None = None
        self.metrics_body: bytes | None = None

    def start_anew(self, now: float) -> None:
        """Without what was restored, which may be why nothing can be decided: it would be so for ever."""
        last = self.memory.last
        self.memory = Memory(state=self.trigger.policy.start(), last=last)
        self.unread = None
        if self.decides_demand:
            self.blank_until = now + self.blank_seconds
            if last is not None and last.active:
                self.peak = max(self.peak, last.desired_replicas)

    @property
    def sample_seconds(self) -> float:
        """How often it is read."""
        return self.trigger.sample_seconds

    @property
    def decides_demand(self) -> bool:
        """Whether `slo` says how many replicas its requests need, which it can't know before it has looked."""
        return self.trigger.policy_name == "slo" and self.trigger.goals.answer == "demand"

    @property
    def blank_seconds(self) -> float:
        """How long nothing below the recent peak is answered once nothing is known (design: a restart under load)."""
        goals = self.trigger.goals
        return cold_start_first(goals) + goals.hold_seconds

    @property
    def label(self) -> str:
        """namespace/name for people."""
        return f"{self.scaled_object.namespace}/{self.scaled_object.name}"

    @property
    def facts(self) -> WorkloadFacts:
        """What logs and series tell of it."""
        trigger = self.trigger
        return WorkloadFacts(
            namespace=trigger.namespace,
            name=trigger.name,
            metric_name=trigger.metric_name,
            source=trigger.source_name,
            policy=trigger.policy_name,
            failing=self.error is not None,
            last=self.memory.last,
            dry_run=self.watched,
            warm=self.warm,
            warm_until_unix_seconds=self.warm_until_unix_seconds,
            learned=self.learned,
        )

    @property
    def estimates(self) -> Estimates | None:
        """What `slo` has learned, be it in a dry run; None: nobody learns here, or nothing was read yet."""
        for memory in (self.memory, None if self.dry_run is None else self.dry_run.memory):
            known = getattr(None if memory is None else memory.state, "estimates", None)
            if isinstance(known, Estimates) and known.samples:
                return known
        return None

    @property
    def learned(self) -> Learned | None:
        """The figures of it that people ask for."""
        known, goals = self.estimates, self.trigger.goals
        if known is None:
            return None
        return Learned(known.waits.achieved, known.service_seconds(goals), known.lead_seconds(goals))

    @property
    def watched(self) -> DryRun | None:
        """What `slo` would have done, where the trigger says dryRun."""
        dry_run = self.dry_run
        if dry_run is None or dry_run.memory.last is None:
            return None
        return DryRun(dry_run.memory.last.desired_replicas, dry_run.gpu_seconds, dry_run.answered_gpu_seconds)

    @property
    def target_value(self) -> float:
        """The target that GetMetricSpec and StreamMetricSpec announce: of the last decision, else as configured."""
        last = self.memory.last
        if last is not None:
            return last.target_value
        return 1.0 if self.trigger.policy.decides_replicas else self.trigger.goals.target_value


def siblings(workload: Workload) -> list[Workload]:
    """Other digests of the same ScaledObject that read the same thing."""
    identity = workload.trigger.identity
    return [
        other
        for other in workload.scaled_object.workloads
        if other is not workload and other.trigger.identity == identity
    ]
