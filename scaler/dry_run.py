"""A policy that is tried beside the one that answers: `dryRun: true` on a trigger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from scaler.core.decide import Memory, Policy
from scaler.core.estimate import Estimates
from scaler.core.model import ReplicaView
from scaler.state import Durable


class Watched:
    """A policy that decides, and is not asked: what it remembers, and what it would have cost."""

    __slots__ = ("answered_gpu_seconds", "at", "gpu_seconds", "memory", "resumed", "told_at")

    def __init__(self, memory: Memory[Any]) -> None:
        self.memory = memory
        self.resumed = False  # and perhaps not read since
        self.at = self.told_at = -math.inf
        self.gpu_seconds = 0.0
        self.answered_gpu_seconds = 0.0

    @property
    def kept(self) -> Trial:
        """What outlives the workload and the process."""
        return Trial(self.memory.state, self.gpu_seconds, self.answered_gpu_seconds)

    def resume(self, trial: Trial) -> None:
        """Go on from what was kept."""
        self.memory, self.resumed = Memory(state=trial.state), True
        self.gpu_seconds, self.answered_gpu_seconds = trial.gpu_seconds, trial.answered_gpu_seconds


class Trial(NamedTuple):
    """What a dry run has learned, and what it and the answers have cost since it began."""

    state: Any
    gpu_seconds: float
    answered_gpu_seconds: float


class TrialOf:
    """The form of a `Trial` in the state file, for one policy."""

    __slots__ = ("_policy",)

    def __init__(self, policy: Policy[Any]) -> None:
        self._policy = policy

    def dump(self, trial: Trial) -> dict[str, Any]:
        """As values for JSON."""
        policy = self._policy
        return {
            "state": policy.dump(trial.state) if isinstance(policy, Durable) else None,
            "gpu_seconds": trial.gpu_seconds,
            "answered_gpu_seconds": trial.answered_gpu_seconds,
        }

    def load(self, values: Mapping[str, Any], *, shift_seconds: float) -> Trial:
        """From `dump`."""
        policy = self._policy
        learned = values["state"]
        state = (
            policy.load(learned, shift_seconds=shift_seconds)
            if isinstance(policy, Durable) and learned is not None
            else policy.start()
        )
        return Trial(state, float(values["gpu_seconds"]), float(values["answered_gpu_seconds"]))


def with_cold_starts(memory: Memory[Any], view: ReplicaView) -> Memory[Any]:
    """With those that are reported: how long replicas take to serve is the same whoever asked for them."""
    if not view.cold_starts_seconds and not view.phases_seconds:
        return memory
    return replace(memory, state=_taught(memory.state, view), tentative=_taught(memory.tentative, view))


def _taught(state: Any, view: ReplicaView) -> Any:
    known = getattr(state, "estimates", None)
    if not isinstance(known, Estimates):
        return state
    cold = known.cold.fed(view.cold_starts_seconds, view.phases_seconds)
    return replace(state, estimates=replace(known, cold=cold))
