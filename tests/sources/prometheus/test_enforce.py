"""Matchers in every selector: a table, strange spellings, and a real Prometheus that must not tell the difference."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.errors import SourceDenied
from scaler.promql.enforce import AGGREGATORS, enforce
from scaler.promql.quoting import duration, literal, string
from tests.services.prometheus import Prometheus, start_prometheus

MINE = ('tenant="a"',)
M = 'tenant = "a"'


def plain(text: str) -> str:
    """Without spaces, for comparing."""
    return text.replace(" ", "")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("up", 'up{tenant="a"}'),
        ("up{}", 'up{tenant="a"}'),
        ("{}", '{tenant="a"}'),
        ('up{job="x"}', 'up{tenant="a",job="x"}'),
        ('up{job="x",}', 'up{tenant="a",job="x",}'),
        ('{__name__=~"u.+"}', '{tenant="a",__name__=~"u.+"}'),
        ('up{tenant="b"}', 'up{tenant="a",tenant="b"}'),
        ('up{tenant=~".*"}', 'up{tenant="a",tenant=~".*"}'),
        ("job:up:sum", 'job:up:sum{tenant="a"}'),
        (":up", ':up{tenant="a"}'),
        ("rate", 'rate{tenant="a"}'),
        ("rate(up[5m])", 'rate(up{tenant="a"}[5m])'),
        ("rate(rate[5m])", 'rate(rate{tenant="a"}[5m])'),
        ("rate (up [5m])", 'rate(up{tenant="a"}[5m])'),
        ("up[5m:]", 'up{tenant="a"}[5m:]'),
        ("up[5m:1m]", 'up{tenant="a"}[5m:1m]'),
        ("up[1h30m]", 'up{tenant="a"}[1h30m]'),
        ("up[300]", 'up{tenant="a"}[300]'),
        ("up offset 5m", 'up{tenant="a"}offset5m'),
        ("up OFFSET -5m", 'up{tenant="a"}OFFSET-5m'),
        ("up @ 1609746000", 'up{tenant="a"}@1609746000'),
        ("up @ -1.5e3", 'up{tenant="a"}@-1.5e3'),
        ("up @ start()", 'up{tenant="a"}@start()'),
        ("up[5m] @ end() offset 1m", 'up{tenant="a"}[5m]@end()offset1m'),
        ("sum(up)", 'sum(up{tenant="a"})'),
        ("SUM(up)", 'SUM(up{tenant="a"})'),
        ("sum by (a, b) (up)", 'sumby(a,b)(up{tenant="a"})'),
        ("sum by (a, b,) (up)", 'sumby(a,b,)(up{tenant="a"})'),
        ("sum BY () (up)", 'sumBY()(up{tenant="a"})'),
        ("sum(up) without (by, on, sum)", 'sum(up{tenant="a"})without(by,on,sum)'),
        ('sum by ("my.label") (up)', 'sumby("my.label")(up{tenant="a"})'),
        ('count_values("v", up)', 'count_values("v",up{tenant="a"})'),
        ("quantile(0.9, up)", 'quantile(0.9,up{tenant="a"})'),
        ("topk(scalar(x), up)", 'topk(scalar(x{tenant="a"}),up{tenant="a"})'),
        ("a + b", 'a{tenant="a"}+b{tenant="a"}'),
        ("a+-b", 'a{tenant="a"}+-b{tenant="a"}'),
        ("-a ^ --b", '-a{tenant="a"}^--b{tenant="a"}'),
        ("a == bool b", 'a{tenant="a"}==boolb{tenant="a"}'),
        ("a != b", 'a{tenant="a"}!=b{tenant="a"}'),
        ("a AND b Or c unless d", 'a{tenant="a"}ANDb{tenant="a"}Orc{tenant="a"}unlessd{tenant="a"}'),
        ("a atan2 b", 'a{tenant="a"}atan2b{tenant="a"}'),
        ("a * on(x) b", 'a{tenant="a"}*on(x)b{tenant="a"}'),
        ("a * ignoring(x,y) group_left b", 'a{tenant="a"}*ignoring(x,y)group_leftb{tenant="a"}'),
        ("a * on(x) group_left(y) b", 'a{tenant="a"}*on(x)group_left(y)b{tenant="a"}'),
        ("a * on(x) group_right() (b)", 'a{tenant="a"}*on(x)group_right()(b{tenant="a"})'),
        ("a > bool on(x) b", 'a{tenant="a"}>boolon(x)b{tenant="a"}'),
        ("vector(1)", "vector(1)"),
        ("time() - 0x1F", "time()-0x1F"),
        ("1 + Inf + NaN + .5 + 1. + 1e-3", "1+Inf+NaN+.5+1.+1e-3"),
        ("'a\\'b'", '"a\'b"'),
        ("up{a='\\x41\\101\\u0041\\U00000041'}", 'up{tenant="a",a="AAAA"}'),
        ('up{a="\\\\d"}', 'up{tenant="a",a="\\\\d"}'),
        ("up{a=`\\d`}", 'up{tenant="a",a="\\\\d"}'),
        ('up{a="é"}', 'up{tenant="a",a="é"}'),
        ('{"my.metric", a="b"}', '{tenant="a","my.metric",a="b"}'),
        ('{"my.metric"}', '{tenant="a","my.metric"}'),
        ('{"my.label"="x", "other.metric"}', '{tenant="a","my.label"="x","other.metric"}'),
        ("up # {x}\n + down", 'up{tenant="a"}+down{tenant="a"}'),
        ("up # comment\r + down", 'up{tenant="a"}+down{tenant="a"}'),
        ("up{ # } \n job='x'}", 'up{tenant="a",job="x"}'),
        ('up{job="#"}', 'up{tenant="a",job="#"}'),
        ('label_replace(up, "a", "$1", "b", "(.*)")', 'label_replace(up{tenant="a"},"a","$1","b","(.*)")'),
        ("absent(up)", 'absent(up{tenant="a"})'),
        ("(((up)))", '(((up{tenant="a"})))'),
        ("up{sum='a',by='b',offset='c'}", 'up{tenant="a",sum="a",by="b",offset="c"}'),
        ("sum(sum)", None),
        ("max_over_time(sum(up)[5m:1m])", 'max_over_time(sum(up{tenant="a"})[5m:1m])'),
        ("Rate", 'Rate{tenant="a"}'),
    ],
)
def test_every_selector_gets_the_matchers(query: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(SourceDenied):
            enforce(query, MINE)
        return
    assert plain(enforce(query, MINE)) == expected


@pytest.mark.parametrize(
    "query",
    [
        "",
        " ",
        "# only a comment",
        "sum",
        "by",
        "offset",
        "bool",
        "start",
        "Group_Left",
        "unknown(up)",
        "Rate(up[5m])",
        "info(up)",
        'info(up, {a="b"})',
        "up{",
        "up}",
        "up{a}",
        "up{a=}",
        "up{a=b}",
        'up{a=="b"}',
        'up{="b"}',
        'up{a="b" c="d"}',
        'up{a="b" or c="d"}',
        'up{a:b="c"}',
        'up{1a="c"}',
        "up{,}",
        'up{a="b"}{c="d"}',
        'up{"a" "b"}',
        "{{schema:1}}",
        "(up",
        "up)",
        "up[5m",
        "up[]",
        "up[up]",
        "up[5m:1m:1m]",
        "up[5]m",
        "up offset",
        "up offset down",
        "up offset (5m)",
        "up @",
        "up @ down",
        "up @ start",
        "up down",
        "a +",
        "+",
        "a * on b",
        "a * on(x",
        "a * on(x:y) b",
        "a * group_left b",
        "a * on(x) group_left(sum(up)) b",
        "sum(up) by (x) by (y)",
        "sum by (x) up",
        "sum by x (up)",
        "rate(up[5m],)",
        "rate(,)",
        "1x",
        "1_000",
        "5m30",
        "0x",
        "1:2",
        "'abc",
        '"abc',
        "`abc",
        '"a\nb"',
        "'\\q'",
        "'\\xff'",
        "'\\377'",
        "'\\ud800'",
        "'\\x4'",
        'up{a="\x00"}',
        "up{a=`\x07`}",
        "up\x00",
        "up\u00a0+ down",
        "é",
        "up;down",
        "up|down",
        "a =~ 'b'",
        "a !~ 'b'",
        "a = b",
        "up\\",
        "a default b",
        "a if b",
        "WITH (x = up) x",
        "union(a, b)",
        "(" * 100 + "up" + ")" * 100,
        "up + " * 5000 + "up",
    ],
)
def test_what_can_not_be_understood_is_refused(query: str) -> None:
    with pytest.raises(SourceDenied, match=r"matchers|characters"):
        enforce(query, MINE)


@pytest.mark.parametrize(
    ("matchers", "expected"),
    [
        (('namespace="a"', 'job!="b"'), 'up{namespace="a",job!="b"}'),
        (('namespace=~"a|b",',), 'up{namespace=~"a|b"}'),
        (("namespace='a'", "x!~`b`"), 'up{namespace="a",x!~"b"}'),
        (('namespace="a",job="b"',), 'up{namespace="a",job="b"}'),
    ],
)
def test_matchers_of_a_connection_are_written_anew_too(matchers: tuple[str, ...], expected: str) -> None:
    assert plain(enforce("up", matchers)) == expected


@pytest.mark.parametrize(
    "matchers", [(), ("",), ("namespace",), ("namespace=a",), ('namespace="a"} or up{a="b"',), ('"metric"',)]
)
def test_broken_matchers_let_nothing_through(matchers: tuple[str, ...]) -> None:
    with pytest.raises(SourceDenied):
        enforce("up", matchers)


@given(st.text(max_size=60))
def test_any_text_is_refused_or_rewritten_to_something_that_is_stable(text: str) -> None:
    try:
        once = enforce(text, MINE)
    except SourceDenied:
        return
    twice = enforce(once, MINE)
    assert plain(twice).count('tenant="a"') == 2 * plain(once).count('tenant="a"')


@given(st.text(max_size=40))
def test_a_quoted_string_reads_back_as_itself(text: str) -> None:
    try:
        quoted = string(text)
    except ValueError:
        return
    assert "\n" not in quoted
    assert plain(enforce(f"up{{a={quoted}}}", MINE)).startswith('up{tenant="a",a="')


@pytest.mark.parametrize(("seconds", "text"), [(90, "90000ms"), (0.5, "500ms"), (0.0001, "1ms")])
def test_durations_are_in_milliseconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# Against the real server: what tenant a may ask must not depend on what tenant b has.

METRICS = ("m", "n", "ns:m:sum", "rate")
AT_SECONDS = 1_700_000_000.0


@dataclass(frozen=True)
class Pair:
    """Two servers with the same series of tenant a; only one has tenant b's."""

    both: Prometheus
    mine: Prometheus


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    chance = random.Random(7)
    with start_prometheus() as both, start_prometheus() as mine:
        for step in range(21):
            at_seconds = AT_SECONDS - 300 + step * 15
            for tenant in ("a", "b"):
                samples = [
                    (metric, {"tenant": tenant, "pod": f"p{number}", "zone": f"z{number % 2}"}, chance.uniform(0, 100))
                    for metric in METRICS
                    for number in range(3 if tenant == "a" else 4)
                ]
                both.push_many(samples, at_seconds=at_seconds)
                if tenant == "a":
                    mine.push_many(samples, at_seconds=at_seconds)
        yield Pair(both, mine)


def query(server: Prometheus, text: str) -> Any:
    answer = requests.get(
        f"{server.url}/api/v1/query", params={"query": text, "time": str(AT_SECONDS)}, timeout=10
    ).json()
    if answer["status"] != "success":
        return answer["errorType"]
    data = answer["data"]
    if data["resultType"] == "vector":
        return sorted((sorted(series["metric"].items()), _rounded(series["value"])) for series in data["result"])
    if data["resultType"] == "matrix":
        return sorted(
            (sorted(series["metric"].items()), [_rounded(value) for value in series["values"]])
            for series in data["result"]
        )
    return _rounded(data["result"])


def _rounded(pair: list[Any]) -> tuple[float, str]:
    """Sums may differ in the last digits by the order of their terms."""
    try:
        value = float(pair[1])
    except ValueError:
        return pair[0], pair[1]
    return pair[0], "NaN" if math.isnan(value) else f"{value:.9e}"


@pytest.mark.parametrize(
    "text",
    [
        "m",
        "{__name__=~'.+'}",
        "m{tenant='b'}",
        "m{tenant=~'.*'}",
        "m or {tenant='b'}",
        "{tenant='b'} or vector(1)",
        "sum(m) # }\r + sum(n)",
        "sum(m) # x\n + sum(n)",
        "count({tenant=~'a|b'})",
        "count by (tenant) ({__name__=~'m|n'})",
        "m{pod=`p0`}, m",
        'm{pod="p0\\"} or m{tenant=\'b"}',
        "absent(m{tenant='b'})",
        "rate(rate[1m])",
        "rate",
        "ns:m:sum",
        "count_values('tenant', m)",
        "label_replace(m, 'tenant', 'b', '', '')",
        "m * on(pod) group_left(tenant) n",
        "max_over_time(sum(m)[2m:15s])",
        "m offset 1m",
        "m @ 1699999900",
        "sum without(tenant) (m)",
        "scalar(sum(m))",
        "m AnD n UNLESS on(pod) rate{pod='p1'}",
        "topk(10, {__name__=~'.+'})",
        "last_over_time({__name__=~'.+'}[5m])",
        "m{}",
        "{}",
    ],
)
def test_the_other_tenants_series_make_no_difference(pair: Pair, text: str) -> None:
    try:
        enforced = enforce(text, MINE)
    except SourceDenied:
        return
    found = query(pair.both, enforced)
    assert found == query(pair.mine, enforced)
    assert "'b'" not in str(found).replace("('tenant', 'b')", "" if "label_replace" in text else "('tenant', 'b')")


def test_without_the_matchers_the_servers_do_differ(pair: Pair) -> None:
    assert query(pair.both, "sum(m)") != query(pair.mine, "sum(m)")


# A generator of PromQL that Prometheus takes, in odd spellings.

spaces = st.sampled_from(["", " ", "\n", "\t", " # c }\"'\n", "#\r", "# x\r\n"])
labels = st.sampled_from(["pod", "zone", "tenant"])
values = st.sampled_from(
    ['"p0"', "'p1'", "`p2`", '"z\\x30"', "'z\\061'", '"b"', "'a'", '""', '"\\u0062"', '"#"', "'}'"]
)
matcher = st.tuples(labels, st.sampled_from(["=", "!=", "=~", "!~"]), values).map("".join)
regex_matcher = st.sampled_from(["tenant=~'.*'", 'tenant=~"a|b"', "pod=~`p[0-9]`", "__name__=~'m|n'", "tenant!='a'"])


@st.composite
def selectors(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from([*METRICS, ""]))
    matchers = draw(st.lists(matcher | regex_matcher, max_size=3))
    matchers = [found for found in matchers if not (name and found.startswith("__name__"))]
    if not name:
        matchers.append("__name__=~'m|n'")
    bare, trailing = draw(st.booleans()), draw(st.booleans())
    if not matchers and bare:
        return name
    gap = draw(spaces)
    comma = "," if matchers and trailing else ""
    return f"{name}{gap}{{{gap}{f',{gap}'.join(matchers)}{comma}{gap}}}"


def _case(draw: st.DrawFn, word: str) -> str:
    return draw(st.sampled_from([word, word.upper(), word.title()]))


@st.composite
def vectors(draw: st.DrawFn, depth: int = 3) -> str:
    gap = draw(spaces)
    if depth == 0:
        selector = draw(selectors())
        after = draw(
            st.sampled_from(["", " offset 1m", " OFFSET -15s", " @ 1699999950", " @ end()", " offset 30s @ end()"])
        )
        return f"{selector}{gap}{after}"
    inner = vectors(depth=depth - 1)
    kind = draw(st.integers(0, 8))
    if kind == 0:
        return draw(vectors(depth=0))
    if kind == 1:
        aggregator = _case(draw, draw(st.sampled_from(["sum", "avg", "min", "max", "count", "group", "stddev"])))
        grouping = draw(st.sampled_from(["", f"{_case(draw, 'by')} (pod, zone)", "without (zone,)", "by ()"]))
        if draw(st.booleans()):
            return f"{aggregator} {grouping}{gap}({draw(inner)})"
        return f"{aggregator}({gap}{draw(inner)}{gap}) {grouping}"
    if kind == 2:
        operator = draw(st.sampled_from(["+", "-", "*", "/", "%", "^", "and", "OR", "unless", ">", "<= bool", "atan2"]))
        on = draw(st.sampled_from(["", "on(pod)", "ignoring(zone)", "ON (pod, tenant)"]))
        return f"({draw(inner)}) {operator} {on}{gap}({draw(inner)})"
    if kind == 3:
        function = draw(st.sampled_from(["rate", "max_over_time", "last_over_time", "count_over_time", "delta"]))
        return f"{function}{gap}({draw(selectors())}{gap}[{draw(st.sampled_from(['1m', '90s', '1m30s']))}]{gap})"
    if kind == 4:
        return f"min_over_time(({draw(inner)})[1m:{draw(st.sampled_from(['', '15s']))}])"
    if kind == 5:
        return f"{draw(st.sampled_from(['abs', 'ceil', 'sgn', 'timestamp', 'sort', 'absent']))}({gap}{draw(inner)})"
    if kind == 6:
        return f"label_replace({draw(inner)}, 'x', '$1', 'tenant', '(.*)')"
    if kind == 7:
        return f"-{gap}({draw(inner)}){gap}+ {draw(st.sampled_from(['1', '.5', '1e1', '0xA', 'Inf']))}"
    # More than there are series: which of several equal ones Prometheus leaves out is by chance.
    word, parameter = draw(st.sampled_from([("topk", "50"), ("bottomk", "50"), ("quantile", "0.5")]))
    return f"{_case(draw, word)}({parameter},{gap}{draw(inner)})"


def test_generated_queries_are_understood_and_the_other_tenant_makes_no_difference(pair: Pair) -> None:
    answered = asked = 0

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(text=vectors())
    def each(text: str) -> None:
        nonlocal answered, asked
        enforced = enforce(text, MINE)
        found = query(pair.both, enforced)
        assert found == query(pair.mine, enforced)
        asked += 1
        answered += isinstance(found, list) and len(found) > 0

    each()
    assert answered > asked / 4  # else the generator proves little


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    text=vectors(),
    cut=st.integers(0, 400),
    put=st.sampled_from(["", "#", "}", "{", "\r", "\n", "'", '"', "`", "\\", ",", ") or (m"]),
)
def test_mangled_queries_are_refused_or_make_no_difference(pair: Pair, text: str, cut: int, put: str) -> None:
    mangled = text[:cut] + put + text[cut + 1 :]
    try:
        enforced = enforce(mangled, MINE)
    except SourceDenied:
        return
    assert query(pair.both, enforced) == query(pair.mine, enforced)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(text=vectors())
def test_matchers_that_match_everything_change_nothing(pair: Pair, text: str) -> None:
    """So the rewriting itself keeps what a query means."""
    assert query(pair.both, enforce(text, ('tenant=~".+"',))) == query(pair.both, text)


@given(st.sampled_from(sorted(AGGREGATORS)), st.sampled_from(["{}", "{}(m)", "{} (m)", "{} by (x) (m)"]))
def test_an_aggregators_name_is_never_taken_for_a_metric(word: str, form: str) -> None:
    try:
        found = plain(enforce(form.format(word), MINE))
    except SourceDenied:
        return
    assert f"{word}{{" not in found


def test_the_special_characters_of_a_regular_expression_are_taken_literally(pair: Pair) -> None:
    pod = 'a.b*"\\c|d'
    for server in (pair.both, pair.mine):
        server.push("odd", 1.0, labels={"tenant": "a", "pod": pod}, at_seconds=AT_SECONDS)
    assert len(query(pair.both, "odd{pod=~" + string(literal(pod)) + "}")) == 1
    assert query(pair.both, "odd{pod=~" + string(literal("a.b*")) + "}") == []
