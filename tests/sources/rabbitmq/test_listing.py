"""Which requests are worth sending, and what their answers may look like."""

from __future__ import annotations

import json

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from scaler.errors import SourceUnavailable
from scaler.sources.rabbitmq.config import pattern
from scaler.sources.rabbitmq.listing import (
    QueueQuery,
    bulk_is_cheaper,
    decoded,
    literal_of,
    page_of,
    row_of,
)


@pytest.mark.parametrize(
    ("queues", "single", "matched", "expected"),
    [
        (10, 1, [], False),
        (10, 3, [], True),
        (100, 10, [], False),
        (100, 20, [], True),
        (1000, 100, [], False),
        (1000, 200, [], True),
        (10_000, 1_000, [], False),
        (1000, 0, [1000], False),  # the same listing either way
        (1000, 0, [5], False),
        (1000, 0, [5] * 20, True),
        (1000, 100, [1000], True),
        (100_000, 1_000, [5], False),
    ],
)
def test_a_listing_replaces_single_requests_from_about_an_eighth_of_the_queues_on(
    queues: int, single: int, matched: list[int], expected: bool
) -> None:
    assert bulk_is_cheaper(queues=queues, single=single, matched=matched) is expected


@pytest.mark.parametrize(
    ("expression", "literal"),
    [
        ("^orders-.*$", "orders-"),
        ("orders", "orders"),
        (r"orders\.eu", "orders.eu"),
        ("orders+", "orders+"[:-1]),
        ("orders*", "order"),
        ("orders?", "order"),
        ("orders{0}", "order"),
        (r"ab\.*", "ab"),
        (".*orders", None),
        ("a|b", None),
        ("orders|bills", None),
        ("(orders)", None),
        ("(?i)orders", None),
        ("[o]rders", None),
        (r"\dabc", None),
        ("o*rders", None),
        ("", None),
        ("^", None),
        ("^^orders", None),
    ],
)
def test_plain_text_at_the_front_narrows_a_listing(expression: str, literal: str | None) -> None:
    assert literal_of(expression) == literal


@given(
    front=st.text(alphabet="ab-", min_size=1, max_size=4),
    back=st.text(alphabet=r"ab.\*+?{}1,^$[]()x", max_size=6),
    anchor=st.sampled_from(["", "^"]),
    name=st.text(alphabet="abAB.-1x{}, ", max_size=12),
)
def test_every_name_that_matches_holds_the_literal(front: str, back: str, anchor: str, name: str) -> None:
    expression = f"{anchor}{front}{back}"
    literal = literal_of(expression)
    try:
        compiled = re2.compile(expression, _caseless())
    except re2.error:
        return
    if literal is not None and compiled.search(name) is not None:
        assert literal.lower() in name.lower()


def _caseless() -> object:
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    return options


def test_an_expression_that_backtracks_elsewhere_is_linear_here() -> None:
    assert pattern("^(a+)+$").search("a" * 200_000 + "b") is None


QUERY = QueueQuery("v", "q")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"<html>secret</html>", "not JSON"),
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 5_000, "not JSON"),
    ],
)
def test_a_body_that_is_no_json_is_told_without_being_shown(body: bytes, part: str) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        decoded(body, what=QUERY.what)
    assert part in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        None,
        3,
        {"items": {}, "page_count": 1, "filtered_count": 1, "total_count": 1},
        {"items": [1], "page_count": 1, "filtered_count": 1, "total_count": 1},
        {"items": [{"name": 3}], "page_count": 1, "filtered_count": 1, "total_count": 1},
        {"items": [], "page_count": -1, "filtered_count": 1, "total_count": 1},
        {"items": [], "page_count": 1.5, "filtered_count": 1, "total_count": 1},
        {"items": [], "page_count": True, "filtered_count": 1, "total_count": 1},
    ],
)
def test_a_page_of_another_form_is_told(value: object) -> None:
    with pytest.raises(SourceUnavailable, match="not a page"):
        page_of(value, what="x")


@pytest.mark.parametrize("value", [[], None, {"name": "other"}, {}, {"name": ["q"]}])
def test_a_row_of_another_queue_is_told(value: object) -> None:
    with pytest.raises(SourceUnavailable, match="not about it"):
        row_of(json.loads(json.dumps(value)), QUERY)
