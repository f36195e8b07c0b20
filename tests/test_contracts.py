"""The rules of who may import whom catch what they are for."""

from __future__ import annotations

import tomllib

import pytest
from grimp import ImportGraph

from tests.contracts import DirectImports
from tests.services import REPOSITORY

MODULES = (
    "scaler.core.decide",
    "scaler.core.window",
    "scaler.policies.slo",
    "scaler.simulator.rules",
    "scaler.simulator.world",
    "scaler.sources.sqs",
    "scaler.promql.pool",
    "scaler.evaluator",
    "scaler.errors",
    "scaler._generated.externalscaler_pb2",
    "scaler.cli.demo",
    "scaler.cli.serve",
    "loadgen.keda",
    "math",
    "time",
    "os",
    "grpc",
    "aiokafka",
)


def contracts() -> list[DirectImports]:
    """The contracts of pyproject.toml that are ours."""
    options = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert options["contract_types"] == ["direct_imports: tests.contracts.DirectImports"]
    return [
        DirectImports(
            name=contract["name"],
            session_options=options,
            # import-linter's own reader writes booleans as text, too
            contract_options={key: str(value) if isinstance(value, bool) else value for key, value in contract.items()},
        )
        for contract in options["contracts"]
        if contract["type"] == DirectImports.type_name
    ]


def broken_by(importer: str, imported: str) -> list[str]:
    """The names of the contracts that one import breaks."""
    graph = ImportGraph()
    for module in MODULES:
        graph.add_module(module)
    graph.add_import(importer=importer, imported=imported, line_number=1, line_contents=f"import {imported}")
    return [contract.name for contract in contracts() if not contract.check(graph, verbose=False).kept]


@pytest.mark.parametrize(
    ("importer", "imported", "word"),
    [
        ("scaler.core.decide", "time", "pure"),
        ("scaler.policies.slo", "os", "pure"),
        ("scaler.simulator.world", "aiokafka", "pure"),
        ("scaler.core.decide", "scaler.evaluator", "pure"),
        ("scaler.core.decide", "scaler.errors", "pure"),
        ("scaler.sources.sqs", "scaler.evaluator", "Sources"),
        ("scaler.promql.pool", "scaler.evaluator", "Sources"),
        ("scaler.sources.sqs", "grpc", "Sources"),
        ("loadgen.keda", "scaler.evaluator", "loadgen uses"),
        ("loadgen.keda", "scaler.core.decide", "loadgen uses"),
        ("scaler.cli.serve", "loadgen.keda", "demo"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(importer: str, imported: str, word: str) -> None:
    broken = broken_by(importer, imported)
    assert len(broken) == 1, broken
    assert word in broken[0]


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("scaler.core.decide", "math"),
        ("scaler.core.decide", "scaler.core.window"),
        ("scaler.simulator.world", "scaler.core.decide"),
        ("scaler.sources.sqs", "aiokafka"),
        ("scaler.sources.sqs", "scaler.promql.pool"),
        ("scaler.evaluator", "scaler.sources.sqs"),
        ("loadgen.keda", "scaler._generated.externalscaler_pb2"),
        ("loadgen.keda", "scaler.simulator.rules"),
        ("loadgen.keda", "grpc"),
        ("scaler.cli.demo", "loadgen.keda"),
    ],
)
def test_an_import_that_the_design_wants_breaks_none(importer: str, imported: str) -> None:
    assert broken_by(importer, imported) == []
