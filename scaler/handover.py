"""What goes over from one workload to the next: after an edit of the metadata, an expiry, or a restart.

What was learned is kept under (namespace, name, what is read, policy), without the digest of the metadata. But the
same queue may be measured otherwise now, in other units, or against another table. Replicas mean the same whatever the
metadata says, and so do requests, of which `slo` learns. All else goes over only where it says the same as before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scaler.core.decide import Memory
from scaler.core.model import Decision
from scaler.state import Key
from scaler.trigger import Trigger


def learned_key(trigger: Trigger) -> Key:
    """What is learned of it is kept under this."""
    return trigger.namespace, trigger.name, trigger.identity, trigger.policy_name


def trial_key(trigger: Trigger) -> Key:
    """... and what its dry run learns under this."""
    return trigger.namespace, trigger.name, trigger.identity, "slo dryRun"


def handed_over(memory: Memory[Any], theirs: Trigger, trigger: Trigger) -> Memory[Any]:
    """What `theirs` remembers, as far as it says something of `trigger`, which reads the same by the same policy."""
    if theirs.terms == trigger.terms:
        return memory
    state = memory.state if trigger.policy_name == "slo" else trigger.policy.start()
    last = None if memory.last is None else against(memory.last, trigger)
    return Memory(state=state, last=last, sample=memory.sample)


def against(decision: Decision, trigger: Trigger) -> Decision:
    """A decision from before an edit, as `trigger` announces it: as many replicas, within its bounds.

    A raw metric may be of another unit than the one that is read from now on, and against the new threshold it may ask
    for any number; KEDA writes that threshold into the HPA once, when it first asks after the edit.
    """
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
