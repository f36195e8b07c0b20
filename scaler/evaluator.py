"""One workload's life: read, decide, remember, announce, expire.

A workload is (namespace, name, digest of the metadata). It has no task: outcomes of reads come in through
`on_outcome`, calls through `metrics` and `is_active`, both answered from memory, and `tick` does what time
does. All of it is synchronous and takes the time from a clock that is handed in; the only wait is `first`,
for a workload that nothing is known of yet.

When one ScaledObject shows up with a second digest for the same source, it is either a second trigger, which
KEDA then calls together with the first, or the same trigger with a rotated `FromEnv` secret, whose old digest
lives on in KEDA's push stream only. So a workload that is not called while its sibling is, is superseded: it
reads nothing, announces nothing, exports nothing, and its streams carry what the sibling decides.

What a workload holds is in workload.py, what goes over from one to the next in handover.py, and how several `slo`
triggers of one ScaledObject are sized together in joint.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Protocol

from scaler.core import warm_pool
from scaler.core.cold_starts import PHASES
from scaler.core.decide import Memory, Policy, decide
from scaler.core.model import Decision, ReplicaView, Sample, Step
from scaler.core.replicas import most_useful
from scaler.dry_run import TrialOf, Watched, with_cold_starts
from scaler.errors import (
    LimitReached,
    PilotlightError,
    Problem,
    SourceError,
    SourceNoData,
    SourceUnavailable,
    TriggerInvalid,
    bare,
    quoted,
)
from scaler.handover import Past, Remembering, learned_key, trial_key
from scaler.joint import Believing, decided_together, joint_warnings, sized_memory, sized_with, trial_memory
from scaler.settings import Settings
from scaler.slices import Slices
from scaler.state import Durable, Key
from scaler.telemetry import Telemetry, WorkloadFacts
from scaler.trigger import Trigger, parse_trigger
from scaler.workload import Digest, ScaledObject, Stream, Workload, siblings

# A sibling that is called this much later than a workload has taken its place. KEDA calls the triggers of one
# ScaledObject in parallel, or within one HPA sync; its shortest polling interval is 1 s, the usual one 30 s.
_SUPERSEDED_AFTER_SECONDS = 10.0
# Calls closer together than this are one poll (GetMetricSpec, GetMetrics, IsActive, retries).
_ONE_POLL_SECONDS = 1.0
# A longer gap between calls is an outage of KEDA's rather than a polling interval.
_LONGEST_INTERVAL_SECONDS = 7200.0
# Metadata that was refused is remembered for this long, so that repeats cost nothing.
_REFUSED_SECONDS = 30.0
_REFUSED_KEPT = 4096
# Workloads above the limit that are kept for their metric specs only.
_OVERFLOW_KEPT = 1024
# When that many workloads were called that are gone is remembered.
_CALLED_KEPT = 20_000
_SWEEP_SECONDS = 5.0
# Cold starts that were reported since a workload was last read; only the newest of more are learned from.
_COLD_STARTS_UNREAD = 64
# What a dry run would have cost is logged this often.
_DRY_RUN_TOLD_SECONDS = 3600.0
# Workloads looked at before the clock is: a fifth of a millisecond.
_SWEEP_CHUNK = 100
# Above it the milli-values of Kubernetes' quantities overflow int64.
_LARGEST_VALUE = 9.0e15


class Reading(Protocol):
    """Who reads for workloads and hands the outcomes to `Evaluator.on_outcome`: `Readers`."""

    def subscribe(self, trigger: Trigger, subscriber: Workload, *, private_addresses: bool) -> Any:
        """Read from now on; what is returned is given back to `unsubscribe`. Raises LimitReached."""

    def unsubscribe(self, query: Any, subscriber: Workload) -> None:
        """Read no more."""


class Keeping(Remembering, Protocol):
    """What outlives the process, and takes note of it: `StateFile`."""

    def learn(self, key: Key, policy: Policy[Any] | Durable, *, decision: Decision, state: Any) -> None:
        """Take note of what was learned under `key`, without an observation."""

    def keep(
        self,
        key: Key,
        policy: Policy[Any],
        *,
        decision: Decision,
        state: Any,
        sample: Sample,
        view: ReplicaView | None,
        dry_run_desired: int | None = None,
    ) -> None:
        """Take note of one evaluation."""


class Evaluator:
    """Every workload, and the rules of their lives. Not thread-safe: one event loop owns it."""

    def __init__(
        self,
        *,
        settings: Settings,
        telemetry: Telemetry,
        keeper: Keeping | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        chance: Random | None = None,
    ) -> None:
        self._settings = settings
        self._keeper = keeper
        self._telemetry = telemetry
        self._clock = clock
        self._wall = wall  # for a series that tells a moment to others; nothing is decided by it
        self._chance = chance or Random()  # noqa: S311 - spreads load, guards nothing
        self._readers: Reading | None = None
        self._workloads: dict[Digest, Workload] = {}
        self._objects: dict[tuple[str, str], ScaledObject] = {}
        self._overflow: OrderedDict[Digest, Workload] = OrderedDict()
        self._refused: OrderedDict[Digest, tuple[float, PilotlightError]] = OrderedDict()
        self._called: OrderedDict[Digest, float] = OrderedDict()
        self._past = Past(keeper, stands_seconds=settings.reading.failing_active_seconds)
        self._streams: dict[Stream, None] = {}
        self._streaming: dict[Workload, None] = {}
        self._draining = False
        self._sweep_at = -math.inf
        telemetry.facts = self.facts
        telemetry.gauges.update(
            scaler_workloads=("Workloads served.", self.__len__),
            scaler_workloads_failing=("Workloads whose source can't be read.", self._count_failing),
            scaler_workloads_failing_active=(
                "Failing workloads kept active by slow repeats of `true`.",
                lambda: self._count_failing(active=True),
            ),
            scaler_streams=("Open push streams.", lambda: len(self._streams)),
        )

    def attach(self, readers: Reading) -> None:
        """Read through `readers` from now on; they hand outcomes to `on_outcome`."""
        self._readers = readers

    # --- who there is ---

    def __len__(self) -> int:
        return len(self._workloads)

    def __iter__(self) -> Iterator[Workload]:
        return iter(tuple(self._workloads.values()))

    @property
    def open_streams(self) -> int:
        """How many push streams are open."""
        return len(self._streams)

    def facts(self) -> Iterator[WorkloadFacts]:
        """What the series show: every workload but the superseded ones."""
        return (workload.facts for workload in tuple(self._workloads.values()) if not workload.superseded)

    def _count_failing(self, *, active: bool = False) -> int:
        return sum(
            workload.error is not None
            and not workload.superseded
            and (not active or (workload.memory.last is not None and workload.memory.last.active))
            for workload in self._workloads.values()
        )

    def of(self, namespace: str, name: str) -> list[Workload]:
        """The workloads of a ScaledObject that count."""
        found = self._objects.get((namespace, name))
        return [workload for workload in found.workloads if not workload.superseded] if found else []

    def undisturbed(self, digest: Digest) -> Workload | None:
        """The workload of this digest, called now, where its last answers stand as they are.

        None where there is anything to look at: it is not known, fails for too long, waits for its first
        reading, or shares its ScaledObject with others.
        """
        workload = self._workloads.get(digest)
        if workload is None:
            return None
        now = self._clock()
        if now > workload.good_until or workload.restored or len(workload.scaled_object.workloads) > 1:
            return None
        if now - workload.called_at > _ONE_POLL_SECONDS:
            self._touch(workload, now)
        else:
            workload.called_at = workload.touched_at = now
        return workload

    def known(self, digest: Digest, *, called: bool = True) -> Workload | None:
        """The workload of this digest; None where it must be admitted first.

        `called`: KEDA calls it now, rather than opening a stream.
        """
        workload = self._workloads.get(digest)
        if workload is None or (workload.trigger.refusal is not None and self._stale_refusal(workload)):
            return None
        if called:
            self._touch(workload, self._clock())
        return workload

    def admit(
        self, digest: Digest, namespace: str, name: str, metadata: Mapping[str, str], *, called: bool = True
    ) -> Workload:
        """The workload of this digest, which is not known yet.

        Above the limit of workloads it carries LimitReached as its error and is read by nobody; its metric
        spec still stands. Raises TriggerInvalid and LimitReached for metadata that can't be used at all.
        """
        now = self._clock()
        refused = self._refused.get(digest)
        if refused is not None and now < refused[0]:
            raise refused[1]
        overflown = self._overflow.get(digest)
        if overflown is not None and self._is_full(overflown.trigger):
            return overflown
        try:
            self._check_size(namespace, name, metadata)
            trigger = parse_trigger(namespace, name, metadata, self._settings)
        except PilotlightError as err:
            self._refused[digest] = (now + _REFUSED_SECONDS, bare(err))
            while len(self._refused) > _REFUSED_KEPT:
                self._refused.popitem(last=False)
            self._telemetry.trigger_refused(str(err))
            raise
        self._refused.pop(digest, None)
        workload = self._enter(digest, trigger, now)
        if called:
            self._touch(workload, now)
        return workload

    def _check_size(self, namespace: str, name: str, metadata: Mapping[str, str]) -> None:
        problems = [
            Problem(
                field=field, value=value, expected="expected a Kubernetes name: letters, digits, - and ., at most 253"
            )
            for field, value in (("namespace", namespace), ("name", name))
            if not _is_object_name(value)
        ]
        if problems:
            raise TriggerInvalid(tuple(problems), subject="ScaledObjectRef")
        limits = self._settings.limits
        if len(metadata) > limits.metadata_keys:
            raise LimitReached(
                f"the metadata of {quoted(f'{namespace}/{name}')} has {len(metadata)} keys; at most "
                f"{limits.metadata_keys} are allowed (limits.metadataKeys)"
            )
        size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
        if size > limits.metadata_bytes:
            raise LimitReached(
                f"the metadata of {quoted(f'{namespace}/{name}')} has {size} bytes; at most "
                f"{limits.metadata_bytes} are allowed (limits.metadataBytes)"
            )

    def _enter(self, digest: Digest, trigger: Trigger, now: float) -> Workload:
        past = self._workloads.get(digest)
        if past is not None:  # its refusal was looked at anew
            past.trigger, past.spec_body = trigger, None
            if trigger.refusal is None:
                past.error, past.failing_since = None, math.inf
            self._start_reading(past)
            return past
        if self._is_full(trigger):
            return self._enter_overflow(digest, trigger, now)
        self._overflow.pop(digest, None)
        scaled_object = self._object(trigger.namespace, trigger.name)
        workload = Workload(digest, trigger, scaled_object, now)
        self._past.remember(workload, now)
        workload.called_at = self._called.pop(digest, -math.inf)
        self._workloads[digest] = workload
        scaled_object.workloads.append(workload)
        self._start_reading(workload)
        self._telemetry.workload_started(workload.facts, (*trigger.warnings, *joint_warnings(workload)))
        return workload

    def _is_full(self, trigger: Trigger) -> str | None:
        """The limit that keeps a new workload out, in words, or None."""
        limits = self._settings.limits
        if len(self._workloads) >= limits.workloads:
            return f"{limits.workloads} workloads are served, the limit; raise limits.workloads or add an instance"
        found = self._objects.get((trigger.namespace, trigger.name))
        if found is not None and len(found.workloads) >= limits.workloads_per_object:
            return (
                f"{limits.workloads_per_object} different triggers of this ScaledObject are served, the limit; "
                "raise limits.workloadsPerObject"
            )
        return None

    def _enter_overflow(self, digest: Digest, trigger: Trigger, now: float) -> Workload:
        workload = Workload(digest, trigger, ScaledObject(trigger.namespace, trigger.name), now)
        workload.error = LimitReached(f"{quoted(workload.label)} is not read: {self._is_full(trigger)}")
        self._overflow[digest] = workload
        while len(self._overflow) > _OVERFLOW_KEPT:
            self._overflow.popitem(last=False)
        return workload

    def _object(self, namespace: str, name: str) -> ScaledObject:
        found = self._objects.get((namespace, name))
        if found is None:
            found = self._objects[namespace, name] = ScaledObject(namespace, name)
        return found

    def _stale_refusal(self, workload: Workload) -> bool:
        """Whether a refused trigger should be parsed anew: a person may have mended the cause."""
        return self._clock() - workload.failing_since > _REFUSED_SECONDS

    def _touch(self, workload: Workload, now: float) -> None:
        """A call came: learn the interval between polls, and see who of several digests is the one called."""
        gap = now - workload.called_at
        workload.called_at = workload.touched_at = now
        if gap > _ONE_POLL_SECONDS:
            interval = workload.interval_seconds * 0.995
            workload.interval_seconds = max(interval, gap) if gap <= _LONGEST_INTERVAL_SECONDS else interval
        if len(workload.scaled_object.workloads) > 1:
            self._judge(workload.scaled_object)

    # --- reading ---

    def _start_reading(self, workload: Workload) -> None:
        trigger, now = workload.trigger, self._clock()
        if workload.query is not None or self._readers is None:
            return
        if trigger.refusal is not None:
            first = workload.error is None
            workload.error, workload.failing_since = bare(trigger.refusal), now
            if first:
                self._telemetry.failing(workload.facts, trigger.refusal)
            return
        rights = self._settings.rights(trigger.namespace)
        try:
            workload.query = self._readers.subscribe(trigger, workload, private_addresses=rights.private_addresses)
        except PilotlightError as err:
            self._failed(workload, err, now)

    def _stop_reading(self, workload: Workload) -> None:
        if workload.query is not None and self._readers is not None:
            self._readers.unsubscribe(workload.query, workload)
            workload.query = None

    def on_outcome(self, workload: Workload, outcome: object, now: float) -> None:
        """A reading, or why there is none: decide, remember, announce."""
        if workload.superseded or workload.query is None:
            return
        if isinstance(outcome, SourceError):
            self._failed(workload, outcome, now)
            return
        trigger = workload.trigger
        view = workload.scaled_object.view_at(now)
        if view is not None and (view.cold_starts_seconds, view.phases_seconds) != (
            workload.cold_starts,
            workload.cold_start_phases,
        ):
            view = replace(view, cold_starts_seconds=workload.cold_starts, phases_seconds=workload.cold_start_phases)
        before = workload.memory.last
        joint, together = workload.scaled_object.joint, sized_with(workload, sized_memory)
        warm_steps: tuple[Step, ...] = ()
        sample: Sample | None = None
        try:
            sample = _sample(trigger, outcome, view, now)
            if trigger.warm_for is not None and trigger.goals.answer == "warm":
                sample, warm_steps = self._warm_sample(trigger, now)
            if together:
                decision, memory = decided_together(
                    trigger.policy, workload, together, sized_memory, joint, sample=sample, view=view, now=now
                )
            else:
                decision, memory = decide(
                    trigger.policy, trigger.goals, workload.memory, sample=sample, view=view, now_seconds=now
                )
        except SourceError as err:
            self._failed(workload, err, now)
            return
        except Exception as err:  # noqa: BLE001 - our bug must not reach other workloads, nor a replica count
            self._telemetry.bug("evaluation_failed", err, workload=workload.label)
            if sample is not None and workload.unread is not None:
                workload.start_anew(now)
            self._failed(
                workload, SourceUnavailable("the evaluation failed for a reason that only Pilotlight's log tells"), now
            )
            return
        if decision is None:
            return
        if warm_steps:
            decision = replace(decision, steps=(*warm_steps, *decision.steps))
            memory = replace(memory, last=decision)
        if now <= workload.blank_until:
            decision, memory = _not_below_peak(workload, decision, memory, view)
        if sized_memory(workload) is not None:  # what another trigger reads leaves theirs as it is
            joint.memory = memory if together else None
        dry_run_desired = None
        if workload.dry_run is not None:
            dry_run_desired = self._watch(workload, workload.dry_run, decision, sample, view)
        if self._keeper is not None:
            if workload.dry_run is not None and workload.dry_run.memory.last is not None:
                assert trigger.dry_run is not None
                self._keeper.learn(
                    trial_key(trigger),
                    TrialOf(trigger.dry_run),
                    decision=workload.dry_run.memory.last,
                    state=workload.dry_run.kept,
                )
            self._keeper.keep(
                learned_key(trigger),
                trigger.policy,
                decision=decision,
                state=memory.state,
                sample=sample,
                view=view,
                dry_run_desired=dry_run_desired,
            )
        if workload.warm is not None or trigger.goals.warm != "off":
            self.hint(workload)
        self._telemetry.evaluations += 1
        workload.restored = False
        workload.unread = None
        workload.cold_starts = workload.cold_start_phases = ()
        workload.memory = memory
        workload.good_until = now + trigger.goals.hold_seconds + self._patience(workload)
        if workload.error is not None:
            self._telemetry.recovered(workload.facts, now - workload.failing_since)
            workload.error, workload.failing_since = None, math.inf
        if before is None or _differs(before, decision):
            workload.metrics_body = None
            if before is not None and before.target_value != decision.target_value:
                workload.spec_body = None
                self._announce_spec(workload)
            self._telemetry.decided(workload.facts, before, decision)
        self._wake(workload)
        if decision.active and not (before is not None and before.active):
            self._announce(workload, now)
        elif before is None:
            self._send(workload, active=False)
        elif before.active and not decision.active:
            for stream in workload.streams or ():
                stream.retract()

    def _warm_sample(self, trigger: Trigger, now: float) -> tuple[Sample, tuple[Step, ...]]:
        """The size of the pool as a sample, and why. Raises SourceNoData where the ScaledObject isn't known."""
        name = trigger.warm_for or ""
        found = self.pool_hint(trigger.namespace, name, asked_as=f"warmFor {quoted(name)}")
        if found is None:
            raise SourceNoData(
                f"warmFor {quoted(name)}: no ScaledObject of namespace {quoted(trigger.namespace)} with that name and "
                "policy slo has been read yet; its trigger must point at this scaler"
            )
        hint = found[1]
        raw = {"expected_demand": hint.expected_demand, "lead_time_seconds": hint.lead_time_seconds}
        value = float(hint.replicas)
        return Sample(at_seconds=now, metric_value=value, active=hint.replicas >= 1, raw=raw), (hint.step,)

    def pool_hint(
        self, namespace: str, name: str, metric_name: str = "", *, asked_as: str
    ) -> tuple[Workload, warm_pool.WarmHint] | None:
        """The hint of the first of a ScaledObject's triggers (or of one) that has one; None: nobody learns about it.

        Raises SourceNoData where the demand can't be read for longer than an answer stands: unknown is no number.
        `asked_as`: what the message begins with.
        """
        unread: PilotlightError | None = None
        for workload in self.of(namespace, name):
            if metric_name not in {"", workload.trigger.metric_name}:
                continue
            if workload.estimates is None or workload.memory.last is None:
                continue
            answer = self.metrics(workload)
            if isinstance(answer, PilotlightError):
                unread = answer  # another may tell the demand
                continue
            hint = self.hint(workload)
            if hint is not None:
                return workload, hint
        if unread is not None:
            raise SourceNoData(
                f"{asked_as}: its demand can't be read ({type(unread).__name__}); its own trigger tells why"
            )
        return None

    def hint(self, workload: Workload) -> warm_pool.WarmHint | None:
        """How many replicas to keep warm for `workload`; None where nothing is learned about its demand."""
        known, last = workload.estimates, workload.memory.last
        if known is None or last is None:
            return None
        now = self._clock()
        trigger, memory = workload.trigger, workload.memory
        view = workload.scaled_object.view_at(now)
        if view is None and memory.sample is not None and isinstance(trigger.policy, Believing):
            view = trigger.policy.believed(memory.state, last, memory.sample, trigger.goals, now_seconds=now)
        ready = last.desired_replicas
        starting: tuple[float, ...] = ()
        if view is not None:  # what the demand has asked for and the HPA has not made yet is no task of the pool
            ready, starting = view.ready, view.starting_at_seconds
            starting += (now,) * max(last.desired_replicas - view.alive, 0)
        goals = trigger.goals
        if memory.sample is not None and len(workload.scaled_object.workloads) == 1:
            most = most_useful(memory.sample, goals)
            if most is not None and most < goals.max_replicas:
                goals = replace(goals, max_replicas=most)
        hint = warm_pool.warm_hint(known, goals, ready=ready, starting_at_seconds=starting, now_seconds=now)
        workload.warm, workload.warm_until_unix_seconds = hint, self._wall() + hint.valid_seconds
        return hint

    @property
    def draining(self) -> bool:
        """Whether streams shall end."""
        return self._draining

    def _watch(
        self, workload: Workload, dry_run: Watched, decision: Decision, sample: Sample, view: ReplicaView | None
    ) -> int | None:
        """What the policy of the dry run would have asked for. Its mistakes are nobody's business but the log's.

        The replicas that are there were started for the other answer: it is not shown them, but how long they took.

        Dry runs of one ScaledObject are sized together, as they would be if they were none. What they would have cost,
        and what the answers cost, is counted once: to the trigger whose reading ends the time in question. Where
        replicas are seen these are the cost: the HPA's window and KEDA's cooldown keep more than is asked for.
        """
        trigger, now, trial = workload.trigger, decision.at_seconds, workload.scaled_object.trial
        together = sized_with(workload, trial_memory)
        group = (workload, *together)
        latest = max((one.dry_run for one in group if one.dry_run is not None), key=lambda one: one.at)
        if view is not None:
            answered: int | None = view.alive + view.terminating
        else:  # the HPA takes the largest of several answers
            lasts = (one.memory.last for one in group)
            answered = max((last.desired_replicas for last in lasts if last is not None), default=None)
        if latest.memory.last is not None and answered is not None:
            # A gap in the readings is no time: nobody knows what would have been.
            seconds = min(max(now - latest.at, 0.0), self._patience(workload)) if latest.at > -math.inf else 0.0
            dry_run.gpu_seconds += seconds * latest.memory.last.desired_replicas
            dry_run.answered_gpu_seconds += seconds * answered
        dry_run.at = now
        if view is not None:
            dry_run.memory = with_cold_starts(dry_run.memory, view)
            if trial.memory is not None:
                trial.memory = with_cold_starts(trial.memory, view)
        assert trigger.dry_run is not None
        try:
            if together:
                would, dry_run.memory = decided_together(
                    trigger.dry_run,
                    workload,
                    together,
                    trial_memory,
                    trial,
                    sample=sample,
                    view=None,
                    now=now,
                )
            else:
                would, dry_run.memory = decide(
                    trigger.dry_run, trigger.goals, dry_run.memory, sample=sample, view=None, now_seconds=now
                )
            trial.memory = dry_run.memory if together else None
        except Exception as err:  # noqa: BLE001 - see above
            self._telemetry.bug("dry_run_failed", err, workload=workload.label)
            return None
        if now - dry_run.told_at >= _DRY_RUN_TOLD_SECONDS:
            first, dry_run.told_at = dry_run.told_at == -math.inf, now
            watched = workload.watched
            if not first and watched is not None:
                self._telemetry.dry_run(workload.facts, watched)
        return None if would is None else would.desired_replicas

    def _patience(self, workload: Workload) -> float:
        """How long after a reading the next one may come before its lack counts as a failure."""
        return 4 * workload.sample_seconds + self._settings.reading.read_deadline_seconds

    def _failed(self, workload: Workload, err: PilotlightError, now: float) -> None:
        """No reading: the last decision stands for holdSeconds from when it was made."""
        first = workload.error is None
        workload.error = bare(err)
        workload.restored = False
        if first:
            workload.failing_since = now
            self._telemetry.failing(workload.facts, err)
        last = workload.memory.last
        if last is not None:
            workload.good_until = min(workload.good_until, last.at_seconds + workload.trigger.goals.hold_seconds)
            if first and last.active:
                workload.beat_at = min(workload.beat_at, now + workload.trigger.heartbeat_seconds)
        self._wake(workload)

    # --- answers ---

    async def first(self, workload: Workload) -> None:
        """Wait for the first reading, or the first failure, while the workload is as good as new."""
        first_answer_seconds = self._settings.reading.first_answer_seconds
        left_seconds = workload.admitted_at + first_answer_seconds - self._clock()
        known = workload.memory.last is not None and not workload.restored
        if known or workload.error is not None or left_seconds <= 0:
            return
        future = asyncio.get_running_loop().create_future()
        if workload.waiters is None:
            workload.waiters = []
        workload.waiters.append(future)
        try:
            async with asyncio.timeout(left_seconds):
                await future
        except TimeoutError:
            pass
        finally:
            if workload.waiters is not None and future in workload.waiters:
                workload.waiters.remove(future)

    def _wake(self, workload: Workload) -> None:
        waiters, workload.waiters = workload.waiters, None
        for future in waiters or ():
            if not future.done():
                future.set_result(None)

    def metrics(self, workload: Workload) -> Decision | PilotlightError:
        """What GetMetrics answers: the decision in force, or the error where there is none that may be given."""
        now = self._clock()
        last = workload.memory.last
        if workload.trigger.refusal is not None:
            return workload.trigger.refusal
        if last is None:
            return workload.error or _not_yet(workload)
        if now <= workload.good_until:
            return last
        return workload.error or SourceUnavailable(
            f"{quoted(workload.trigger.identity)} was last read {now - last.at_seconds:.0f} s ago"
        )

    def is_active(self, workload: Workload) -> bool | PilotlightError:
        """What IsActive answers: never turns false because of an error."""
        if workload.trigger.refusal is not None:
            return workload.trigger.refusal
        last = workload.memory.last
        return last.active if last is not None else workload.error or _not_yet(workload)

    def held(self, workload: Workload) -> Decision | None:
        """The decision in force as `decide` puts it now: with the step that says for how long it is held."""
        if workload.error is None:
            return workload.memory.last
        decision, _ = decide(
            workload.trigger.policy,
            workload.trigger.goals,
            workload.memory,
            sample=None,
            view=None,
            now_seconds=self._clock(),
        )
        return decision

    # --- replicas ---

    def report(self, namespace: str, name: str, view: ReplicaView) -> float:
        """Believe `view` for the time returned, in seconds. Raises LimitReached, TriggerInvalid."""
        for field, value in (("namespace", namespace), ("name", name)):
            if not _is_object_name(value):
                raise TriggerInvalid(
                    (Problem(field=field, value=value, expected="expected a Kubernetes name"),), subject="workload"
                )
        if (namespace, name) not in self._objects and len(self._objects) >= 2 * self._settings.limits.workloads:
            raise LimitReached("replicas of too many ScaledObjects are reported; raise limits.workloads")
        scaled_object = self._object(namespace, name)
        valid_seconds = self._settings.reading.report_valid_seconds
        scaled_object.view = view
        scaled_object.view_until = self._clock() + valid_seconds
        for workload in scaled_object.workloads:
            # Each workload sees each cold start once, however many reports come between two of its readings.
            workload.cold_starts = (*workload.cold_starts, *view.cold_starts_seconds)[-_COLD_STARTS_UNREAD:]
            phases = (*workload.cold_start_phases, *view.phases_seconds)
            workload.cold_start_phases = phases[-len(PHASES) * _COLD_STARTS_UNREAD :]
        return valid_seconds

    def view(self, workload: Workload) -> ReplicaView | None:
        """The replicas as last reported, while that is believed."""
        return workload.scaled_object.view_at(self._clock())

    # --- streams ---

    def open_stream(self, workload: Workload, *, specs: bool = False) -> Stream:
        """A push stream, with the current state in its mailbox if there is one. Raises LimitReached."""
        if len(self._streams) >= self._settings.limits.streams:
            raise LimitReached(f"{len(self._streams)} streams are open, the limit; raise limits.streams")
        # A stream must end, cleanly, before its connection does. Spread, so that not all reconnect at once.
        age = self._settings.server.max_connection_age_seconds * self._chance.uniform(0.7, 0.8)
        now = self._clock()
        stream = Stream(workload, now + age, specs=specs)
        self._streams[stream] = None
        self._lead_stream(workload, stream)
        if self._draining:
            stream.put(Stream.END)
            return stream
        if len(workload.scaled_object.workloads) > 1:
            self._judge(workload.scaled_object)
        carrier = self._carrier(workload)
        if specs:
            stream.put(carrier)
        elif carrier.memory.last is not None and not carrier.superseded:
            stream.put(carrier.memory.last.active)
        if carrier.beat_at == math.inf:
            self._plan_beat(carrier, now)
        return stream

    def close_stream(self, stream: Stream) -> None:
        """The stream has ended, for whatever reason."""
        self._streams.pop(stream, None)
        self._leave_stream(stream)
        stream.home.touched_at = self._clock()

    def _carrier(self, workload: Workload) -> Workload:
        """Who decides what the streams of `workload` say: itself, or the sibling that took its place."""
        if not workload.superseded:
            return workload
        return max(siblings(workload), key=lambda other: other.called_at, default=workload)

    def _lead_stream(self, workload: Workload, stream: Stream) -> None:
        if workload.streams is None:
            workload.streams = []
        workload.streams.append(stream)
        self._streaming[workload] = None

    def _leave_stream(self, stream: Stream) -> None:
        for workload in stream.home.scaled_object.workloads or (stream.home,):
            if workload.streams is not None and stream in workload.streams:
                workload.streams.remove(stream)
                if not workload.streams:
                    workload.streams = None
                    workload.beat_at = math.inf
                    self._streaming.pop(workload, None)

    def _send(self, workload: Workload, *, active: bool) -> None:
        for stream in workload.streams or ():
            if not stream.specs:
                stream.put(active)

    def _announce(self, workload: Workload, now: float) -> None:
        """`true` to every stream, and again after heartbeatSeconds where KEDA may need it."""
        if workload.streams is None or workload.superseded:
            return
        self._send(workload, active=True)
        self._telemetry.announced += 1
        self._plan_beat(workload, now)

    def _announce_spec(self, workload: Workload) -> None:
        for stream in workload.streams or ():
            if stream.specs:
                stream.put(workload)

    def _plan_beat(self, workload: Workload, now: float) -> None:
        workload.beat_at = now + workload.trigger.heartbeat_seconds * self._chance.uniform(0.9, 1.0)

    def _wants_beat(self, workload: Workload, now: float) -> bool:
        """Whether `true` should be repeated.

        While no replica exists, or none can be seen, or some still load; and, since KEDA does not ask IsActive
        after a failed GetMetrics, while the source fails, for holdSeconds and ten minutes more.
        """
        last = workload.memory.last
        if last is None or not last.active or workload.superseded:
            return False
        if workload.error is not None:
            hold = workload.trigger.goals.hold_seconds + self._settings.reading.failing_active_seconds
            return now - last.at_seconds <= hold
        view = workload.scaled_object.view_at(now)
        return view is None or view.alive == 0 or view.starting > 0

    # --- several digests ---

    def _judge(self, scaled_object: ScaledObject) -> None:
        """Tell the digests that KEDA calls from those that only an old stream still holds."""
        for workload in scaled_object.workloads:
            superseded = any(
                other.called_at - workload.called_at > _SUPERSEDED_AFTER_SECONDS for other in siblings(workload)
            )
            if superseded != workload.superseded:
                workload.superseded = superseded
                if superseded:
                    self._stop_reading(workload)
                else:
                    self._past.revive(workload, self._clock())
                    self._start_reading(workload)
        self._place_streams(scaled_object)
        for workload in scaled_object.workloads:
            if self._past.inherit(workload):
                self._wake(workload)

    def _place_streams(self, scaled_object: ScaledObject) -> None:
        """Streams of a superseded workload carry what its successor decides."""
        for workload in scaled_object.workloads:
            for stream in tuple(workload.streams or ()):
                carrier = self._carrier(stream.home)
                if carrier is not workload:
                    self._leave_stream(stream)
                    self._lead_stream(carrier, stream)
                    if stream.specs:
                        continue
                    if carrier.memory.last is not None and carrier.memory.last.active:
                        stream.put(carrier.memory.last.active)
                    else:
                        stream.retract()
                    self._plan_beat(carrier, self._clock())

    # --- time ---

    def tick(self, now: float) -> Iterator[None]:
        """What time does: repeats, ends of streams, expiry. Yields where others may have their turn."""
        for count, workload in enumerate(tuple(self._streaming)):
            if workload.beat_at <= now:
                if self._wants_beat(workload, now):
                    self._send(workload, active=True)
                    self._telemetry.repeated += 1
                self._plan_beat(workload, now)
            if count % _SWEEP_CHUNK == _SWEEP_CHUNK - 1:
                yield
        if now < self._sweep_at:
            return
        self._sweep_at = now + _SWEEP_SECONDS
        for count, stream in enumerate(tuple(self._streams)):
            if stream.ends_at <= now:
                stream.put(Stream.END)
            if count % _SWEEP_CHUNK == _SWEEP_CHUNK - 1:
                yield
        for count, workload in enumerate(tuple(self._workloads.values())):
            self._sweep(workload, now)
            if count % _SWEEP_CHUNK == _SWEEP_CHUNK - 1:
                yield
        for key, scaled_object in tuple(self._objects.items()):
            if not scaled_object.workloads and now > scaled_object.view_until:
                del self._objects[key]

    def _sweep(self, workload: Workload, now: float) -> None:
        if len(workload.scaled_object.workloads) > 1:
            self._judge(workload.scaled_object)
        if workload.streams or any(stream.home is workload for stream in self._streams_of(workload)):
            workload.touched_at = now
        patience = max(self._settings.reading.expiry_seconds, 3 * workload.interval_seconds)
        if now - workload.touched_at > patience:
            self._expire(workload)
        elif workload.query is None and not workload.superseded and workload.trigger.refusal is None:
            self._start_reading(workload)  # it found no room among the clients; perhaps there is some now

    def _streams_of(self, workload: Workload) -> Iterator[Stream]:
        for other in workload.scaled_object.workloads:
            yield from other.streams or ()

    def _expire(self, workload: Workload) -> None:
        self._stop_reading(workload)
        del self._workloads[workload.digest]
        workload.scaled_object.workloads.remove(workload)
        if workload.called_at > -math.inf:
            self._called[workload.digest] = workload.called_at
            while len(self._called) > _CALLED_KEPT:
                self._called.popitem(last=False)
        self._past.expired(workload)
        self._judge(workload.scaled_object)
        self._telemetry.workload_expired(workload.facts)

    async def run(self, slices: Slices) -> None:
        """Let time pass, until cancelled."""
        while True:
            await asyncio.sleep(0.5)
            slice_ends = slices.first()
            for _ in self.tick(self._clock()):
                if slices.clock() >= slice_ends:
                    slice_ends = await slices.next()

    def drain(self) -> None:
        """End every stream with OK; streams opened from now on end at once."""
        self._draining = True
        for stream in tuple(self._streams):
            stream.put(Stream.END)


def published(value: float) -> tuple[float, int]:
    """The float and the integer that go on the wire for a metric or a target.

    Three decimals, as KEDA's own `%.3f`; what is above zero stays above zero; the integer, which KEDA before
    2.17 reads alone, is rounded up.

    >>> published(4.0004), published(0.0001), published(0.0)
    ((4.0, 4), (0.001, 1), (0.0, 0))
    """
    value = min(max(value, 0.0), _LARGEST_VALUE)
    rounded = round(value, 3)
    if rounded == 0.0 and value > 0.0:
        rounded = 0.001
    return rounded, math.ceil(rounded)


def _not_below_peak(
    workload: Workload, decision: Decision, memory: Memory[Any], view: ReplicaView | None
) -> tuple[Decision, Memory[Any]]:
    """Without state and without a view nobody knows how many replicas there are: nothing is let go for a while.

    "A while" is one cold start and holdSeconds from when the workload was first seen.
    """
    if decision.active:
        workload.peak = max(workload.peak, decision.desired_replicas)
    if view is not None or decision.desired_replicas >= workload.peak:
        return decision, memory
    step = Step(
        name="restart",
        before=decision.desired_replicas,
        after=workload.peak,
        reason="nothing is known from before and no replica is seen: not below the peak for {:.0f} s more",
        numbers=(workload.blank_until - decision.at_seconds,),
    )
    kept = replace(
        decision,
        active=True,
        metric_value=workload.peak * decision.target_value,
        desired_replicas=workload.peak,
        review_at_seconds=None,
        steps=(*decision.steps, step),
    )
    return kept, replace(memory, last=kept)


def _is_object_name(text: str) -> bool:
    return (
        0 < len(text) <= 253
        and text.isascii()
        and text[0].isalnum()
        and text[-1].isalnum()
        and text.replace("-", "").replace(".", "").replace("_", "").isalnum()
    )


def _sample(trigger: Trigger, reading: object, view: ReplicaView | None, now: float) -> Sample:
    """What `reading` means for this trigger. Raises SourceNoData where that is nothing."""
    sample: Sample = trigger.source.sample(trigger.config, reading, now_seconds=now, view=view)
    if not sample.is_finite:
        raise SourceNoData(f"{quoted(trigger.identity)} gave a value that is no number")
    stale_seconds = trigger.goals.stale_seconds
    if stale_seconds is not None and now - sample.at_seconds > stale_seconds:
        raise SourceNoData(
            f"the sample of {quoted(trigger.identity)} is {now - sample.at_seconds:.0f} s old; "
            f"staleSeconds is {stale_seconds:g}"
        )
    return sample


def _differs(before: Decision, after: Decision) -> bool:
    return (
        before.active != after.active
        or before.metric_value != after.metric_value
        or before.target_value != after.target_value
    )


def _not_yet(workload: Workload) -> PilotlightError:
    return SourceUnavailable(f"{quoted(workload.trigger.identity)} has not been read yet; ask again in a moment")
