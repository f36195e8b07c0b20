"""KEDA's rules for values: typed_config.go, as tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.parameters import (
    Parameter,
    Secret,
    ValueProblem,
    parse_duration,
    parse_flag,
    parse_integer,
    parse_map,
    parse_number,
    read_values,
    unknown_keys,
)


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_go_takes_these_for_true(text: str) -> None:
    assert parse_flag(text)


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_go_takes_these_for_false(text: str) -> None:
    assert not parse_flag(text)


@pytest.mark.parametrize("text", ["yes", "no", "tRUE", "", "on"])
def test_go_takes_these_for_no_flag(text: str) -> None:
    with pytest.raises(ValueProblem):
        parse_flag(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("-1", -1), ("1000000", 1000000), (str(2**63 - 1), 2**63 - 1)])
def test_whole_numbers(text: str, value: int) -> None:
    assert parse_integer(text) == value


@pytest.mark.parametrize("text", ["1.5", "a", "+5", "", " 5", "05", "1e3", str(2**63), "٣", "1_000"])
def test_not_whole_numbers(text: str) -> None:
    with pytest.raises(ValueProblem):
        parse_integer(text)


@pytest.mark.parametrize(("text", "value"), [("1.5", 1.5), ("-2", -2.0), ("1e3", 1000.0), ("0", 0.0)])
def test_numbers(text: str, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["+5", ".5", "NaN", "Infinity", "1e999", "0x10", "5.", "1_0"])
def test_not_numbers(text: str) -> None:
    with pytest.raises(ValueProblem):
        parse_number(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("2s", 2.0), ("1m30s", 90.0), ("1.5h", 5400.0), ("500", 0.5), ("0", 0.0), ("+2s", 2.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["-1", "-2s", "2 s", "s", "1.5", "2x", "1s2", "", "1s" * 40])
def test_not_durations(text: str) -> None:
    with pytest.raises(ValueProblem):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9" * 60_000, "9." * 30_000, "1h" * 30_000 + "x", "-" * 60_000, "1e" * 30_000])
@pytest.mark.parametrize("parse", [parse_flag, parse_integer, parse_number, parse_duration, parse_map])
def test_no_long_text_holds_the_loop(parse: Callable[[str], object], text: str) -> None:
    """What a regular expression may match in many ways takes hours here: pytest's own timeout ends it."""
    assert "expected" in (complaint(parse, text) or "")


@pytest.mark.parametrize("text", ["a", "a=b=c", "a=b,c", "=b=", ""])
def test_not_maps(text: str) -> None:
    with pytest.raises(ValueProblem):
        parse_map(text)


def test_a_map_trims_keys_and_values() -> None:
    assert parse_map("a=b, c = d") == (("a", "b"), ("c", "d"))


def complaint(parse: Callable[[str], object], text: str) -> str | None:
    try:
        parse(text)
    except ValueProblem as problem:
        return str(problem)
    return None


@given(st.text(max_size=40), st.sampled_from([parse_flag, parse_integer, parse_number, parse_duration, parse_map]))
def test_no_text_does_anything_but_parse_or_complain(text: str, parse: Callable[[str], object]) -> None:
    assert "expected" in (complaint(parse, text) or "expected")


TOPIC = Parameter(name="topic", help="the topic", aliases=("topics",))
LENGTH = Parameter(name="length", kind="integer", minimum=1, default=5, help="messages")
PASSWORD = Parameter(name="password", secret=True, help="the password")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ({"topic": " a "}, "a"),
        ({"topic": "", "topicFromEnv": "b\n"}, "b"),
        ({"topic": "a", "topicFromEnv": "b"}, "a"),
        ({"topics": "c"}, "c"),
        ({"topicsFromEnv": "d"}, "d"),
        ({"topic": "   "}, None),
        ({}, None),
    ],
)
def test_the_order_of_precedence(raw: dict[str, str], value: str | None) -> None:
    assert read_values((TOPIC,), raw).text("topic") == value


def test_what_a_connection_fixed_wins() -> None:
    values = read_values((TOPIC, PASSWORD), {"topic": "a"}, fixed={"topic": "b", "password": Secret("p")})
    assert values.text("topic") == "b"
    secret = values.secret("password")
    assert secret is not None
    assert secret.reveal() == "p"


def test_the_default_stands_where_nothing_was_given() -> None:
    values = read_values((LENGTH,), {})
    assert values.integer("length") == 5
    assert not values.given("length")


def test_a_value_out_of_range_is_a_problem_that_names_the_bound() -> None:
    values = read_values((LENGTH,), {"lengthFromEnv": "0"})
    assert [str(problem) for problem in values.problems] == ['lengthFromEnv "0": it must be at least 1']
    assert values.integer("length") is None


def test_a_secret_from_a_file_follows_the_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    secret = Secret(path=str(file))
    assert secret.reveal() == "one"
    file.write_text("two\n")
    assert secret.reveal() == "two"
    assert "one" not in repr(secret)


def test_unknown_keys_name_the_nearest_known_one() -> None:
    problems = unknown_keys((TOPIC, LENGTH), {"lenght": "5", "zzz": "1", "topicFromEnv": "x"})
    assert [problem.field for problem in problems] == ["lenght", "zzz"]
    assert "length" in problems[0].expected
