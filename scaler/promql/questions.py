"""Questions to a Prometheus server and its answers, as values.

An instant query's result carries the time of evaluation, not of the sample
(https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries), so an answer alone never tells
how old the data is: that is what `freshness` is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scaler.errors import SourceError, SourceNoData, SourceUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is read together: the query and, where given, the queries for freshness and for waking.

    `ours`: `text` was built here from checked parts. The other two always come from a user. `parameters` go
    into the URL besides them.
    """

    text: str
    ours: bool = False
    freshness: str | None = None
    wake: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    timeout_seconds: float | None = None

    @property
    def by_users(self) -> tuple[str, ...]:
        """The texts that users wrote."""
        return tuple(text for text in (None if self.ours else self.text, self.freshness, self.wake) if text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series of an instant result: labels, value (NaN and infinities included), Unix time of evaluation."""

    labels: Mapping[str, str]
    value: float
    evaluated_at_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one instant query: `scalar` and `string` hold one element without labels."""

    kind: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one Question. A part that could not be read is the error that said so.

    `at_seconds` is our clock when the question was asked.
    """

    at_seconds: float
    result: Result
    freshness: Result | SourceError | None = None
    wake: Result | SourceError | None = None


def read_result(kind: object, result: object, *, what: str) -> Result:
    """The result of an instant query from the parsed JSON of its answer.

    `kind` is `resultType`, or None from servers that leave it out. Raises SourceUnavailable where it is not
    the result of an instant query.
    """
    if kind is None:
        kind = "vector" if isinstance(result, list) and all(isinstance(item, dict) for item in result) else "scalar"
    if kind == "scalar" or kind == "string":  # noqa: PLR1714 - it may be anything, unhashable too
        return Result(kind=str(kind), series=(_series({}, result, what),))
    if kind != "vector" or not isinstance(result, list):
        raise SourceUnavailable(
            f"{what}: the query yields a range of samples; expected one number: use a function such as "
            "rate(), last_over_time() or max_over_time()"
            if kind == "matrix"
            else f"{what}: the answer is not an instant query's result; check that serverAddress is a Prometheus API"
        )
    return Result(kind="vector", series=tuple(found for item in result if (found := _element(item, what)) is not None))


def _element(item: object, what: str) -> Series | None:
    """One element of a vector; None where it has no sample at all."""
    if not isinstance(item, dict):
        raise SourceUnavailable(f"{what}: the answer is not a vector of series")
    if "histogram" in item and "value" not in item:
        raise SourceUnavailable(
            f"{what}: the query yields a native histogram; expected a number: use histogram_quantile() or "
            "histogram_count()"
        )
    labels = item.get("metric", {})
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise SourceUnavailable(f"{what}: the labels of a series are not strings")
    value = item.get("value")
    if value is None or value == []:
        return None
    return _series(labels, value, what)


def _series(labels: Mapping[str, str], pair: object, what: str) -> Series:
    if not isinstance(pair, list) or len(pair) != 2:
        raise SourceUnavailable(f"{what}: a sample is not a pair of time and value")
    return Series(labels=labels, value=_number(pair[1], what), evaluated_at_seconds=_number(pair[0], what))


def _number(text: object, what: str) -> float:
    # float() takes more than Go's ParseFloat writes ("1_000", " 1 "): a bounded, plain form is asked for.
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise SourceUnavailable(f"{what}: a sample's value is not a number")
    if isinstance(text, str) and (len(text) > 64 or "_" in text or not text.isascii()):
        raise SourceUnavailable(f"{what}: a sample's value is not a number")
    try:
        return float(text)
    except (ValueError, OverflowError) as err:
        raise SourceUnavailable(f"{what}: a sample's value is not a number") from err


def one_number(result: Result | SourceError, *, what: str) -> float | None:
    """The number of a result that must have one: None where it has no series or NaN.

    Raises the error that the part holds; SourceUnavailable for several series; SourceNoData for infinities,
    which no load can be.
    """
    if isinstance(result, SourceError):
        raise result
    if not result.series:
        return None
    if len(result.series) > 1:
        raise SourceUnavailable(
            f"{what}: the query yields {len(result.series)} series; expected one: aggregate it, such as sum(...)"
        )
    value = result.series[0].value
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise SourceNoData(f"{what}: the query yields {value:+g}, which is no load; guard its division")
    return value


# Ages and Unix times don't overlap: this is the year 2001 as a time, and 31 years as an age.
_TIMES_FROM_SECONDS = 1e9


def age_seconds(result: Result | SourceError, *, what: str) -> float | None:
    """The age that a freshness query tells: None where it yields nothing.

    From 1e9 on its value is a Unix time in seconds (`max(timestamp(x))`), below that an age in seconds
    (`time() - max(timestamp(x))`). Age is counted from the server's own time of evaluation, so its clock and
    ours may differ; a time in the future counts as age 0.
    """
    value = one_number(result, what=what)
    if value is None or isinstance(result, SourceError):
        return None
    if value < _TIMES_FROM_SECONDS:
        return max(value, 0.0)
    return max(result.series[0].evaluated_at_seconds - value, 0.0)
