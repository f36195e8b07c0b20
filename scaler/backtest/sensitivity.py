"""How much depends on the numbers in policy slo: every constant of its modules, halved and doubled.

The constants are found in the sources, so that none is forgotten: whatever a module assigns at its top to a name in
capitals, as a number. A variant is the policy compiled anew from its sources with that one number changed; what is
worked out from it follows.
"""

from __future__ import annotations

import ast
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from scaler.core.decide import Policy

POLICY = "scaler.policies.slo"
FACTORS = (0.5, 2.0)

# What the policy shares with every other, or does not use in the matrix (the warm pool). All else that it imports is
# its own, and varied.
SHARED = frozenset(
    f"scaler.core.{name}"
    for name in ("answers", "decide", "model", "rails", "replicas", "values", "warm_pool", "window")
)
# Numbers that are no choice of the policy's.
NOT_VARIED = {
    "HOURS": "a day has 24",
    "_HOUR_SECONDS": "a unit",
    "_DAY_SECONDS": "a unit",
    "_EDGE": "guards a comparison of floats",
    "GROUPS": "the shape of a table whose rows stand beside it",
}


@lru_cache(maxsize=1)
def modules() -> tuple[str, ...]:
    """The modules of the policy, each after those that it imports."""
    found: list[str] = []

    def visit(module: str) -> None:
        for line in ast.walk(_tree(module)):
            name = line.module if isinstance(line, ast.ImportFrom) else None
            if name is not None and name.startswith(("scaler.core.", "scaler.policies.")) and name not in SHARED:
                visit(name)
        if module not in found:
            found.append(module)

    visit(POLICY)
    return tuple(found)


def constants() -> list[str]:
    """Every constant that is varied, as "module:NAME"."""
    return [f"{module}:{name}" for module in modules() for name in _numbers(_tree(module)) if name not in NOT_VARIED]


@lru_cache(maxsize=4)
def varied_policy(constant: str, factor: float) -> Policy[Any]:
    """Policy slo with one constant multiplied by a factor; whole numbers stay whole, and at least 1."""
    module_name, _, name = constant.partition(":")
    replaced: dict[str, ModuleType | None] = {}
    try:
        for module in modules()[modules().index(module_name) :]:
            tree = _tree(module)
            if module == module_name:
                _multiply(_numbers(tree)[name], factor)
            fresh = ModuleType(module)
            replaced[module] = sys.modules.get(module)
            sys.modules[module] = fresh  # for its dataclasses, and for the imports of those that follow
            exec(compile(tree, f"{module} with {name} x {factor:g}", "exec"), fresh.__dict__)  # noqa: S102 - our own source
        policy: Policy[Any] = fresh.POLICY
        return policy
    finally:
        for module, before in replaced.items():
            if before is None:
                del sys.modules[module]
            else:
                sys.modules[module] = before


def _multiply(number: ast.Constant, factor: float) -> None:
    value = number.value
    if isinstance(value, int):
        number.value = max(round(value * factor), 1)
    elif isinstance(value, float):
        number.value = value * factor


def _numbers(tree: ast.Module) -> dict[str, ast.Constant]:
    """The numbers that a module assigns to names in capitals."""
    found = {}
    for line in tree.body:
        if isinstance(line, ast.Assign) and len(line.targets) == 1:
            target, value = line.targets[0], line.value
        elif isinstance(line, ast.AnnAssign) and line.value is not None:
            target, value = line.target, line.value
        else:
            continue
        if not (isinstance(target, ast.Name) and target.id.isupper() and isinstance(value, ast.Constant)):
            continue
        if isinstance(value.value, int | float) and not isinstance(value.value, bool):
            found[target.id] = value
    return found


def _tree(module: str) -> ast.Module:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    folder = Path(spec.origin).parent  # beside a compiled module lies its source
    return ast.parse((folder / f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8"))
