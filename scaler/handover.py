"""What goes over from one workload to the next: after an edit of the metadata, an expiry, or a restart.

What was learned is kept under (namespace, name, what is read, policy), without the digest of the metadata. But the
same queue may be measured otherwise now, in other units, or against another table. Replicas mean the same whatever the
metadata says, and so do requests, of which `slo` learns. All else goes over only where it says the same as before.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any, Protocol

from scaler.core.decide import Memory, Policy
from scaler.core.model import Decision
from scaler.dry_run import Trial, TrialOf
from scaler.state import Durable, Key, Restored
from scaler.trigger import Trigger
from scaler.workload import Workload, siblings

# What that many workloads knew that are gone is remembered.
_PAST_KEPT = 20_000


class Remembering(Protocol):
    """What outlives the process: `StateFile`."""

    def restored(self, key: Key, policy: Policy[Any] | Durable) -> Restored | None:
        """What is known of `key` from before the restart; once."""


class Past:
    """What was known of workloads: of those that are gone, of other digests of the same, from before a restart.

    `stands_seconds`: so long after a first cold start and holdSeconds an old decision says something about now.
    """

    def __init__(self, keeper: Remembering | None, *, stands_seconds: float) -> None:
        self._keeper = keeper
        self._stands_seconds = stands_seconds
        # Decisions are kept as they were made: `against` puts them into the terms of whoever goes on from them.
        self._known: OrderedDict[Key, Restored | Trial] = OrderedDict()

    def remember(self, workload: Workload, now: float) -> None:
        """What was learned of it under another digest, before it expired, or before the process restarted."""
        trigger = workload.trigger
        goals, key = trigger.goals, learned_key(trigger)
        if workload.dry_run is not None and (trial := self._trial(workload)) is not None:
            workload.dry_run.resume(trial)
        found = self._taken(key)
        other = _same_but_for_digest(workload)
        theirs = None if other is None else _kept(handed_over(other.memory, other.trigger, trigger)) or _unread(other)
        whose = None
        if other is not None and (found is None or _is_later(theirs, found)):  # edited, or a secret rotated
            found, whose = theirs, None if other.memory.last is None else other.trigger
            workload.blank_until = max(workload.blank_until, other.blank_until)
            workload.peak = max(workload.peak, other.peak)
        if found is None and self._keeper is not None:
            found = self._keeper.restored(key, trigger.policy)
        workload.unread = None if found is None else (key, found)
        state = None if found is None else found.state
        blank_seconds = workload.blank_seconds
        last = None if found is None else against(found.decision, trigger, whose=whose)
        # Older than holdSeconds it tells no more which replicas there are: the service may have gone on without being
        # able to write, and KEDA's fallback or a person may have decided meanwhile.
        is_fresh = state is not None and last is not None and now - last.at_seconds <= goals.hold_seconds
        cautious = workload.decides_demand and not is_fresh
        if cautious and state is None and (trial := self._trial(workload)) is not None:
            state = trial.state  # it takes over what it learned while it was only tried; of replicas it knows nothing
            if found is None:
                workload.unread = trial_key(trigger), trial
        if last is not None and now - last.at_seconds > blank_seconds + self._stands_seconds:
            last = None  # as old as this it says nothing about now; what was learned does
        if last is not None and _more_was_asked_since(workload, last):
            last = None  # by another policy meanwhile: what this one said then would take them away
        if last is not None:
            workload.restored = True
            if trigger.refusal is None:
                workload.good_until = last.at_seconds + goals.hold_seconds
        if last is not None or state is not None:
            sample = None if found is None or last is None else found.sample
            workload.memory = Memory(state=trigger.policy.start() if state is None else state, last=last, sample=sample)
        if cautious:
            workload.blank_until = now + blank_seconds
            if last is not None and last.active and now - last.at_seconds <= blank_seconds:
                workload.peak = last.desired_replicas

    def revive(self, workload: Workload, now: float) -> None:
        """KEDA calls an old digest again: the edit was taken back, and what it remembers is of before the edit."""
        self._put_by(workload)
        workload.begin(now)
        if now > workload.blank_until:
            workload.peak = 0
        self.remember(workload, now)

    def inherit(self, workload: Workload) -> bool:
        """Go on from what was read under the old digest after its own came, which can't be read; whether there was any.

        Not where it was read itself since.
        """
        trigger, last = workload.trigger, workload.memory.last
        if workload.superseded or trigger.refusal is not None or (last is not None and workload.unread is None):
            return False
        other = _same_but_for_digest(workload, superseded=True)
        theirs = None if other is None else other.memory.last
        if other is None or theirs is None or (last is not None and theirs.at_seconds <= last.at_seconds):
            return False
        memory = handed_over(other.memory, other.trigger, trigger)
        workload.memory = replace(memory, last=against(theirs, trigger, whose=other.trigger))
        workload.unread = learned_key(trigger), Restored(decision=theirs, state=memory.state, sample=memory.sample)
        workload.good_until = theirs.at_seconds + trigger.goals.hold_seconds
        workload.metrics_body = workload.spec_body = None
        return True

    def expired(self, workload: Workload) -> None:
        """It is gone; what it knew is kept, unless another digest goes on from there."""
        if workload.superseded and _same_but_for_digest(workload) is not None:
            return
        self._put_by(workload)
        if workload.dry_run is not None:
            self._keep(trial_key(workload.trigger), workload.dry_run.kept)

    def _put_by(self, workload: Workload) -> None:
        """Keep what it knows for whoever comes under its key, unless later knowledge is kept there."""
        key, known = workload.unread or (learned_key(workload.trigger), _kept(workload.memory))
        if known is not None and not _is_later(self._known.get(key), known):
            self._keep(key, known)

    def _keep(self, key: Key, known: Restored | Trial) -> None:
        self._known[key] = known
        while len(self._known) > _PAST_KEPT:
            self._known.popitem(last=False)

    def _taken(self, key: Key) -> Restored | None:
        known = self._known.pop(key, None)
        return known if isinstance(known, Restored) else None

    def _trial(self, workload: Workload) -> Trial | None:
        """What a dry run learned: of a trigger that was changed, that expired, or before the process restarted."""
        trigger, key = workload.trigger, trial_key(workload.trigger)
        dry_runs = [
            other.dry_run
            for other in workload.scaled_object.workloads
            if other.dry_run is not None
            and (other.dry_run.memory.last is not None or other.dry_run.resumed)
            and trial_key(other.trigger) == key
        ]
        if dry_runs:
            return max(dry_runs, key=lambda dry_run: dry_run.at).kept
        trial = self._known.pop(key, None)
        if isinstance(trial, Trial):
            return trial
        found = None if self._keeper is None else self._keeper.restored(key, TrialOf(trigger.dry_run or trigger.policy))
        state = None if found is None else found.state
        return state if isinstance(state, Trial) else None


def learned_key(trigger: Trigger) -> Key:
    """What is learned of it is kept under this."""
    return trigger.namespace, trigger.name, trigger.identity, trigger.policy_name


def trial_key(trigger: Trigger) -> Key:
    """... and what its dry run learns under this."""
    return trigger.namespace, trigger.name, trigger.identity, "slo dryRun"


def handed_over(memory: Memory[Any], theirs: Trigger, trigger: Trigger) -> Memory[Any]:
    """What `theirs` remembers, as far as it says something of `trigger`, which reads the same by the same policy.

    Its last decision is as it was: see `against`.
    """
    if theirs.terms == trigger.terms:
        return memory
    state = memory.state if trigger.policy_name == "slo" else trigger.policy.start()
    return Memory(state=state, last=memory.last, sample=memory.sample)


def against(decision: Decision, trigger: Trigger, *, whose: Trigger | None = None) -> Decision:
    """A decision from before an edit, as `trigger` announces it: as many replicas, within its bounds.

    Where it is known `whose` it is, and that says the same, it stands as it is: what several triggers need together
    may be above the bounds of one.

    A raw metric may be of another unit than the one that is read from now on, and against the new threshold it may ask
    for any number; KEDA writes that threshold into the HPA once, when it first asks after the edit.
    """
    if whose is not None and whose.terms == trigger.terms:
        return decision
    goals, decides = trigger.goals, trigger.policy.decides_replicas
    target_value = 1.0 if decides else goals.target_value
    metric_value = decision.metric_value
    if decision.target_value != target_value:
        metric_value *= target_value / decision.target_value
    most = max(goals.max_replicas, goals.min_replicas)
    if decides and decision.desired_replicas > most:
        metric_value = float(most)
    desired = min(max(decision.desired_replicas, goals.min_replicas), most) if decision.active else goals.min_replicas
    return replace(decision, metric_value=metric_value, target_value=target_value, desired_replicas=desired)


def _same_but_for_digest(workload: Workload, *, superseded: bool = False) -> Workload | None:
    """Of those under whose key this one learns, too, the one to go on from; None: there is none that knows anything.

    Its metadata was edited, a secret rotated, or a second trigger asks the same of the same thing. Of several whose
    decisions may still stand that with the most replicas: the HPA takes the largest answer, so it stays what it is.
    With `superseded` only those that KEDA does not call any more.
    """
    key = learned_key(workload.trigger)
    others = [
        other
        for other in siblings(workload)
        if learned_key(other.trigger) == key and (other.superseded or not superseded)
    ]
    lasts = [(other, last) for other in others if (last := other.memory.last) is not None]
    if not lasts:
        return next((other for other in others if _unread(other) is not None), None)
    newest_at_seconds = max(last.at_seconds for _, last in lasts)
    hold_seconds = workload.trigger.goals.hold_seconds
    standing = [one for one in lasts if newest_at_seconds - one[1].at_seconds <= hold_seconds]
    best, _ = max(standing, key=lambda one: (one[1].active, _asks_for(one[1]), one[1].at_seconds))
    return best


def _asks_for(decision: Decision) -> float:
    """Replicas, in whatever unit its metric is."""
    return decision.metric_value / decision.target_value


def _kept(memory: Memory[Any]) -> Restored | None:
    """What outlives a workload, where it has decided anything."""
    last = memory.last
    return None if last is None else Restored(decision=last, state=memory.state, sample=memory.sample)


def _unread(workload: Workload) -> Restored | None:
    """What it was to go on from, where nothing was read since."""
    known = None if workload.unread is None else workload.unread[1]
    return known if isinstance(known, Restored) else None


def _is_later(one: object, other: object) -> bool:
    """Whether `one` is of a later decision."""
    if not isinstance(one, Restored) or not isinstance(other, Restored):
        return False
    return one.decision.at_seconds > other.decision.at_seconds


def _more_was_asked_since(workload: Workload, last: Decision) -> bool:
    """Whether another digest has read the same later than this was decided, and asks for more replicas."""
    for other in siblings(workload):
        theirs = other.memory.last
        if theirs is None or other.unread is not None or theirs.at_seconds <= last.at_seconds:
            continue
        if theirs.active > last.active or _asks_for(theirs) > _asks_for(last):
            return True
    return False
