"""The simulator and the policy as machine code, for runs of hours: `python -m tests.compiled FOLDER`.

FOLDER gets a copy of the package in which mypyc has compiled the pure modules that a backtest spends its time in; with
FOLDER first on PYTHONPATH the same program runs several times as fast. The figures are the same to the last bit,
which is checked on one run each time something was compiled. The modules are the ones the service runs, with three
changes: `slots=True` and type parameters of dataclasses are left out, which mypyc can't compile (its classes have slots
anyway); dataclasses aren't frozen; and their `__init__` is written out, so that it is compiled too. That nobody sets a
field later, mypy has seen. simulator/arrivals.py stays as it is. Needs a C compiler; whoever has none does without.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATTERNS = ("core/*.py", "simulator/*.py", "policies/slo.py")
AS_THEY_ARE = frozenset({"__init__.py", "arrivals.py", "answers.py", "warm_pool.py"})
TRAVELLERS = frozenset({"KedaConfig"})  # between processes: what mypyc makes of `__init__` can't be unpickled
SETUP = """
from setuptools import setup
from mypyc.build import mypycify
setup(name="compiled", packages=[], ext_modules=mypycify({modules!r}, opt_level="2"))
"""
PROBE = """
import pickle
import scaler.simulator.world as world
from scaler.backtest.cases import Case, run
from scaler.simulator.baselines import keda_grid
config = next(keda_grid())
assert pickle.loads(pickle.dumps(config)) == config and hash(config)
result = run(Case(trace="flash", cold_start_seconds=30.0, scaler="slo", wait_seconds=30.0))
print(world.__file__.endswith(".py"), repr((result.gpu_seconds, result.starts, result.shares)))
"""


def sources() -> list[Path]:
    """What is compiled, relative to the package."""
    package = ROOT / "scaler"
    found = [path for pattern in PATTERNS for path in sorted(package.glob(pattern)) if path.name not in AS_THEY_ARE]
    return [path.relative_to(package) for path in found]


def digest() -> str:
    """Of everything that what is compiled depends on."""
    value = hashlib.blake2b(sys.version.encode(), digest_size=16)
    for path in [Path(__file__), *[ROOT / "scaler" / one for one in sources()]]:
        value.update(path.read_bytes())
    return value.hexdigest()


def build(folder: Path) -> bool:
    """Fill `folder`; whether anything was compiled anew. Raises where that fails, and leaves nothing half done."""
    try:
        return _built(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _built(folder: Path) -> bool:
    known, work = folder / "digest", folder / "work"
    fresh = known.exists() and known.read_text() == digest()
    package = folder / "scaler"
    if not fresh:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "scaler", work / "scaler", ignore=shutil.ignore_patterns("__pycache__"))
        modules = [str(Path("scaler") / one) for one in sources()]
        for module in modules:
            (work / module).write_text(compilable((work / module).read_text()))
        (work / "setup.py").write_text(SETUP.format(modules=modules))
        words = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(words, cwd=work, check=True, stdout=sys.stderr)
    shutil.copytree(ROOT / "scaler", package, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    if not fresh:
        for library in [*work.glob("*.so"), *(work / "scaler").rglob("*.so")]:
            shutil.copy(library, folder / library.relative_to(work))
        shutil.rmtree(work)
        check(folder)
        known.write_text(digest())
    return not fresh


def check(folder: Path) -> None:
    """That the same run comes out the same. Raises RuntimeError where not."""
    said = []
    for path in (folder, ROOT):
        words = [sys.executable, "-c", PROBE]
        environment = {**os.environ, "PYTHONPATH": str(path)}
        done = subprocess.run(words, env=environment, cwd=path, check=True, capture_output=True, text=True)
        said.append(done.stdout.split(" ", 1))
    (compiled, figures), (plain, expected) = said
    if (compiled, plain) != ("False", "True") or figures != expected:
        raise RuntimeError(f"compiled: {figures}, as it is: {expected}: these must be the same")


def compilable(text: str) -> str:
    """A module as mypyc compiles it well."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            # mypyc's protocols can't be asked for at run time; no backtest does.
            node.decorator_list = [one for one in node.decorator_list if not _is(one, "runtime_checkable")]
            _change_class(node)
    return ast.unparse(ast.fix_missing_locations(_WithoutParameters().visit(tree)))


def _change_class(node: ast.ClassDef) -> None:
    """No slots and nothing frozen; and `__init__` written out, since what `dataclass` makes stays interpreted."""
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Name)
            and decorator.func.id == "dataclass"
        ):
            words = {word.arg: word for word in decorator.keywords if word.arg not in {"slots", "frozen"}}
            if any(word.arg == "frozen" for word in decorator.keywords):
                words["unsafe_hash"] = ast.keyword("unsafe_hash", ast.Constant(value=True))
            lines = _init(node, kw_only="kw_only" in words)
            if lines is not None and node.name not in TRAVELLERS:
                words["init"] = ast.keyword("init", ast.Constant(value=False))
                node.body += ast.parse("\n".join(lines)).body
            decorator.keywords = list(words.values())


def _init(node: ast.ClassDef, *, kw_only: bool) -> list[str] | None:
    """The `__init__` that `dataclass` would make; None: too special."""
    words, lines = ["self", "*"] if kw_only else ["self"], []
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name in {"__post_init__", "__init__"}:
            return None
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        name, kind = line.target.id, ast.unparse(line.annotation)
        if kind.startswith("ClassVar"):
            continue
        value: str = name
        if line.value is None:
            words.append(f"{name}: {kind}")
        elif (
            isinstance(line.value, ast.Call) and isinstance(line.value.func, ast.Name) and line.value.func.id == "field"
        ):
            options = {word.arg: ast.unparse(word.value) for word in line.value.keywords}
            if "default_factory" not in options or options.get("init") == "False":
                return None
            words.append(f"{name}: {kind} | None = None")
            value = f"({options['default_factory']})() if {name} is None else {name}"
        else:
            words.append(f"{name}: {kind} = {ast.unparse(line.value)}")
        lines.append(f"    self.{name} = {value}")
    return [f"def __init__({', '.join(words)}) -> None:", *lines] if lines else None


class _WithoutParameters(ast.NodeTransformer):
    """Classes without type parameters, and whoever names them."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.bases = [
            base for base in node.bases if not (isinstance(base, ast.Subscript) and _is(base.value, "Generic"))
        ]
        return self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if any(_is(node.value, name) for name in ("Proposal", "Memory", "Policy", "Protocol")):
            return node.value
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == "StateT" and isinstance(node.ctx, ast.Load):
            return ast.Name("Any", ast.Load())
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.module == "typing" and not any(one.name == "Any" for one in node.names):
            node.names.append(ast.alias("Any"))
        return node


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


if __name__ == "__main__":
    made = build(Path(sys.argv[1]).resolve())
    print("compiled" if made else "compiled before", file=sys.stderr)
