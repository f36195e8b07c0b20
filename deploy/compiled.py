"""The pure core, policy slo and the simulator as machine code: the same modules, compiled by mypyc.

`python deploy/compiled.py FOLDER` fills FOLDER with extension modules that go beside the sources of the package, where
Python prefers them. A decision takes a fraction of the time then, and its figures are the same to the last bit
(`python -m tests.compiled` checks that). Needs mypy, setuptools and a C compiler.

What is compiled are the modules as they are, but for what mypyc can't do or does slowly. Dataclasses have no `slots`
and are not frozen (mypyc's classes have slots anyway, and that nobody sets a field later mypy has seen); what
`dataclass` would generate stays interpreted, so `__init__` is written out, and `__reduce__`, since what mypyc makes has
no state that `pickle` could find. Classes have no type parameters.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
DATACLASSES = ("dataclass", "value_class")
PATTERNS = ("core/*.py", "simulator/*.py", "policies/slo.py")
AS_THEY_ARE = frozenset({"__init__.py", "answers.py", "arrivals.py", "values.py", "warm_pool.py"})
GENERIC = frozenset({"Doubt", "Memory", "Proposal"})  # dataclasses with a type parameter, whose name is:
PARAMETER = "StateT"
SUBSCRIPTED = """
@classmethod
def __class_getitem__(cls, item: object) -> object:
    return cls
"""
SETUP = """
from setuptools import setup
from mypyc.build import mypycify
setup(name="compiled", packages=[], ext_modules=mypycify({modules!r}, opt_level="2", group_name="pilotlight"))
"""


def sources() -> list[Path]:
    """What is compiled, relative to the package."""
    package = ROOT / "scaler"
    found = [path for pattern in PATTERNS for path in sorted(package.glob(pattern)) if path.name not in AS_THEY_ARE]
    return [path.relative_to(package) for path in found]


def compile_into(folder: Path) -> list[Path]:
    """The extension modules, copied into `folder`; their paths in it are those that they must have beside `scaler`."""
    with TemporaryDirectory(prefix="pilotlight-") as name:
        work = Path(name)
        shutil.copytree(ROOT / "scaler", work / "scaler", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd"))
        modules = [str(Path("scaler") / one) for one in sources()]
        for module in modules:
            (work / module).write_text(compilable((work / module).read_text(encoding="utf-8")), encoding="utf-8")
        (work / "setup.py").write_text(SETUP.format(modules=modules), encoding="utf-8")
        words = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(words, cwd=work, check=True, stdout=sys.stderr)  # noqa: S603 - our own words
        made = [
            path.relative_to(work)
            for path in work.rglob("*")
            if path.suffix in {".so", ".pyd"} and "build" not in path.relative_to(work).parts
        ]
        for path in made:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(work / path, folder / path)
    return sorted(made)


def compilable(text: str) -> str:
    """A module as mypyc compiles it well."""
    tree = ast.parse(text)
    needs_partial = [_change_class(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    if True in needs_partial:
        after = next(index for index, line in enumerate(tree.body) if _imports_the_future(line)) + 1
        tree.body[after:after] = ast.parse("from functools import partial").body
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "scaler.core.values":
            node.module, node.names = "dataclasses", [ast.alias("dataclass")]
    return ast.unparse(ast.fix_missing_locations(_WithoutParameters(GENERIC).visit(tree)))


def _imports_the_future(line: ast.stmt) -> bool:
    return isinstance(line, ast.ImportFrom) and line.module == "__future__"


def _change_class(node: ast.ClassDef) -> bool:
    """Make a dataclass one that mypyc compiles whole; whether it needs `partial` for that."""
    changed = False
    for decorator in node.decorator_list:
        if not (isinstance(decorator, ast.Call) and any(_is(decorator.func, name) for name in DATACLASSES)):
            continue
        decorator.func = ast.Name("dataclass", ast.Load())
        words = {word.arg: word for word in decorator.keywords if word.arg not in {"slots", "frozen"}}
        if any(word.arg == "frozen" for word in decorator.keywords):
            words["unsafe_hash"] = ast.keyword("unsafe_hash", ast.Constant(value=True))
        lines = _written_out(node, kw_only="kw_only" in words)
        if lines:
            words["init"] = ast.keyword("init", ast.Constant(value=False))
            node.body += ast.parse("\n".join(lines)).body
            changed = True
        decorator.keywords = list(words.values())
    return changed


def _written_out(node: ast.ClassDef, *, kw_only: bool) -> list[str]:
    """`__init__` as `dataclass` would make it, and `__reduce__`; nothing where a class is too special."""
    words, lines, names = ["self", "*"] if kw_only else ["self"], [], []
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name in {"__post_init__", "__init__"}:
            return []
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        name, kind = line.target.id, ast.unparse(line.annotation)
        if kind.startswith("ClassVar"):
            continue
        value = name
        if line.value is None:
            words.append(f"{name}: {kind}")
        elif isinstance(line.value, ast.Call) and _is(line.value.func, "field"):
            options = {word.arg: ast.unparse(word.value) for word in line.value.keywords}
            if "default_factory" not in options or options.get("init") == "False":
                return []
            words.append(f"{name}: {kind} | None = None")
            value = f"({options['default_factory']})() if {name} is None else {name}"
        else:
            words.append(f"{name}: {kind} = {ast.unparse(line.value)}")
        lines.append(f"    self.{name} = {value}")
        names.append(name)
    if not lines:
        return []
    made = ", ".join(f"{name}=self.{name}" for name in names)
    return [
        f"def __init__({', '.join(words)}) -> None:",
        *lines,
        "def __reduce__(self) -> tuple[object, ...]:",
        f"    return partial({node.name}, {made}), ()",
    ]


class _WithoutParameters(ast.NodeTransformer):
    """Dataclasses without type parameters; only whoever names one from outside may write `Memory[int]`."""

    def __init__(self, changed: frozenset[str]) -> None:
        self._changed = changed
        self._is_inside = False

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if node.name not in self._changed:
            return self.generic_visit(node)
        node.bases = [base for base in node.bases if not _is_generic(base)]
        node.body += ast.parse(SUBSCRIPTED).body
        self._is_inside = True
        self.generic_visit(node)
        self._is_inside = False
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if any(_is(node.value, name) for name in self._changed):
            return node.value
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if self._is_inside and node.id == PARAMETER:
            return ast.Name("Any", ast.Load())
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.module == "typing" and not any(one.name == "Any" for one in node.names):
            node.names.append(ast.alias("Any"))
        return node


def _is_generic(base: ast.expr) -> bool:
    return isinstance(base, ast.Subscript) and _is(base.value, "Generic")


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


if __name__ == "__main__":
    compile_into(Path(sys.argv[1]).resolve())
