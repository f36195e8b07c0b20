"""Which requests to the management API answer a set of questions, and what their answers say. Pure.

Costs were measured against RabbitMQ 3.10.8 with 1,000 queues in a virtual host (CPU of broker and client
together): a GET of one queue 0.8 ms; a page of a listing 11 ms plus 0.08 ms a row, of which 10 ms are for
looking at all 1,000 names. In units of one GET, then: a page costs 1 + queues/64 + rows/8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scaler.errors import SourceUnavailable, quoted
from scaler.sources.rabbitmq.config import LARGEST_PAGE

COLUMNS = (
    "name,state,consumers,messages_ready,messages_unacknowledged,message_stats.publish,"
    "message_stats.publish_details.rate,message_stats.deliver_get_details.rate,message_stats.ack,"
    "message_stats.deliver_no_ack,message_stats.get_no_ack"
)

_QUEUES_LOOKED_AT_FOR_ONE_GET = 64
_ROWS_FOR_ONE_GET = 8
# A literal at the front of an expression: names that match hold it. Anything unusual ends it.
_LITERAL = re.compile(r"\^?((?:[A-Za-z0-9_:/ -]|\\[.-])+)(.?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class QueueQuery:
    """One queue of a virtual host, or with `page_size` all whose names match `name`."""

    vhost: str
    name: str
    page_size: int | None = None
    timeout_seconds: float | None = None

    @property
    def is_regex(self) -> bool:
        """Whether `name` is a regular expression."""
        return self.page_size is not None

    @property
    def what(self) -> str:
        """For messages: what could not be read."""
        kind = "queues matching" if self.is_regex else "queue"
        return f"{kind} {quoted(self.name)} in virtual host {quoted(self.vhost)}"


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing. `matched` queues passed the filter, of `total` in the virtual host."""

    rows: tuple[Mapping[str, object], ...]
    pages: int
    matched: int
    total: int


def listing_cost(*, queues: int, rows: int) -> float:
    """What a listing of `rows` rows costs in a virtual host with `queues`, in GETs of one queue."""
    pages = max(1, -(-rows // LARGEST_PAGE))
    return pages * (1 + queues / _QUEUES_LOOKED_AT_FOR_ONE_GET) + rows / _ROWS_FOR_ONE_GET


def bulk_is_cheaper(*, queues: int, single: int, matched: Sequence[int]) -> bool:
    """Whether one listing of all `queues` beats `single` GETs and a listing for each expression.

    `matched`: how many rows each expression's own listing is expected to have.
    """
    apart = single + sum(listing_cost(queues=queues, rows=rows) for rows in matched)
    return listing_cost(queues=queues, rows=queues) < apart


def literal_of(expression: str) -> str | None:
    """Text that every name matching `expression` holds, case aside; None where that isn't plain to see.

    It lets RabbitMQ leave other queues out without running a tenant's expression there.
    """
    if "|" in expression or "(?" in expression:
        return None
    found = _LITERAL.match(expression)
    if found is None:
        return None
    text, after = found.groups()
    text = re.sub(r"\\(.)", r"\1", text)
    if after and after in "*?{":
        text = text[:-1]  # the last character may be absent
    return text if len(text) >= 2 else None


def decoded(body: bytes, *, what: str) -> object:
    """The JSON value of a body.

    Raises SourceUnavailable where it is none, without quoting it.
    """
    try:
        return json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as err:
        raise SourceUnavailable(f"{what}: the answer is not UTF-8; is this RabbitMQ's management API?") from err
    except (ValueError, RecursionError) as err:
        raise SourceUnavailable(f"{what}: the answer is not JSON; is this RabbitMQ's management API?") from err


def page_of(value: object, *, what: str) -> Page:
    """A page out of a decoded answer.

    Raises SourceUnavailable where it has another form.
    """
    if isinstance(value, dict):
        rows = value.get("items")
        pages, matched, total = (_whole(value.get(name)) for name in ("page_count", "filtered_count", "total_count"))
        if (
            isinstance(rows, list)
            and all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows)
            and pages is not None
            and matched is not None
            and total is not None
        ):
            return Page(rows=tuple(rows), pages=pages, matched=matched, total=total)
    raise SourceUnavailable(f"{what}: the answer is not a page of queues; is this RabbitMQ's management API?")


def row_of(value: object, query: QueueQuery) -> Mapping[str, object]:
    """The row of one queue out of a decoded answer.

    Raises SourceUnavailable where it has another form or is another queue's.
    """
    if isinstance(value, dict) and value.get("name") == query.name:
        return value
    raise SourceUnavailable(f"{query.what}: the answer is not about it; is this RabbitMQ's management API?")


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
