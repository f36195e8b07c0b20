"""A figure beside its goal."""

from __future__ import annotations

from typing import Any


def goal(value: float | None, limit: float, *, at_least: bool = False) -> dict[str, Any]:
    """A figure with its goal: at most `limit`, or at least."""
    met = value is not None and (value >= limit if at_least else value <= limit)
    return {"value": value, "goal": limit, "met": met}
