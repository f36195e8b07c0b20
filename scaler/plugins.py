"""Finds sources and policies: a folder is its own registry, and entry points let others add theirs.

`scaler/sources/redis.py` with a module-level `SOURCE` adds `source: redis`; an installed distribution adds
one with an entry point in the group `pilotlight.sources` (or `pilotlight.policies`, attribute `POLICY`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import scaler.policies
import scaler.sources
from scaler.core.decide import Policy
from scaler.source import AnySource


@cache
def sources() -> dict[str, AnySource]:
    """Every source by its name, the built-in ones first."""
    found: dict[str, AnySource] = dict(_modules(scaler.sources, "SOURCE"))
    for entry in entry_points(group="pilotlight.sources"):
        found.setdefault(entry.name, entry.load())
    return found


@cache
def policies() -> dict[str, Policy[Any]]:
    """Every policy by its name, the built-in ones first; `steps+burst` is `steps` wrapped by `burst`.

    A module with a module-level `WRAP` (a class that takes a policy and is one) adds `<name>+<module>` for
    every policy that does not decide by a service-level objective, since that one handles bursts itself.
    """
    found: dict[str, Policy[Any]] = dict(_modules(scaler.policies, "POLICY"))
    for entry in entry_points(group="pilotlight.policies"):
        found.setdefault(entry.name, entry.load())
    wrappers: dict[str, Any] = dict(_modules(scaler.policies, "WRAP"))
    for name, policy in list(found.items()):
        if name == "slo":
            continue
        for wrapper_name, wrap in wrappers.items():
            found[f"{name}+{wrapper_name}"] = wrap(policy)
    return found


def load_libraries(names: Iterable[str]) -> dict[str, Exception]:
    """Import what the clients of these sources need: seconds on a busy machine, which no first reading should take.

    What is not installed, or can't be imported, is left to the first reading, which says so to whoever asked for it;
    what went wrong besides is returned by module.
    """
    failed: dict[str, Exception] = {}
    for name in sorted(names):
        for library in sources()[name].libraries:
            try:
                importlib.import_module(library)
            except ModuleNotFoundError:
                continue
            except Exception as err:  # noqa: BLE001 - one library's own trouble must not keep the others from serving
                failed[library] = err
    return failed


def _modules(package: ModuleType, attribute: str) -> Iterator[tuple[str, Any]]:
    """(module name, its attribute) for each module or package of the folder that has the attribute."""
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        if hasattr(module, attribute):
            yield info.name, getattr(module, attribute)
