"""An import-linter contract by allow-list and deny-list: which modules a part of the house may import directly.

import-linter's own `forbidden` contract needs every name in it to exist, so it breaks while modules are still to come,
and it can't say "the standard library and nothing else". This one takes names as prefixes, whether they exist or not.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from importlinter import Contract, ContractCheck, fields, output

if TYPE_CHECKING:
    from grimp import ImportGraph

FOUND = "found"


def _within(module: str, names: list[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


class DirectImports(Contract):
    """Options:

    - `source_modules`: the packages judged, with all that is in them; `except_modules`: parts of them that are not.
    - `denied`: names, own or foreign, that they may not import.
    - `allowed`: if given, the only names of `scaler` and `loadgen` that they may import.
    - `standard_library_only`: True: foreign packages are denied, too.
    """

    type_name = "direct_imports"

    source_modules = fields.ListField(subfield=fields.StringField())
    except_modules = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    denied = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    allowed = fields.ListField(subfield=fields.StringField(), required=False)
    standard_library_only = fields.BooleanField(required=False, default=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002 -- the base class's signature
        found: list[tuple[str, int, str]] = []
        for importer in sorted(graph.modules):
            if not _within(importer, self._names("source_modules")) or _within(importer, self._names("except_modules")):
                continue
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                if not self._may_import(imported):
                    found.extend(
                        (importer, detail["line_number"], imported)
                        for detail in graph.get_import_details(importer=importer, imported=imported)
                    )
        return ContractCheck(kept=not found, metadata={FOUND: found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, line, imported in check.metadata[FOUND]:
            output.print_error(f"{importer} may not import {imported} (line {line})", bold=False)

    def _may_import(self, imported: str) -> bool:
        if _within(imported, self._names("denied")):
            return False
        if _within(imported, ["scaler", "loadgen"]):
            allowed: Any = self.allowed
            return allowed is None or _within(imported, self._names("allowed") + self._names("source_modules"))
        return not self.standard_library_only or imported.split(".", maxsplit=1)[0] in sys.stdlib_module_names

    def _names(self, field: str) -> list[str]:
        return [str(name) for name in getattr(self, field)]
