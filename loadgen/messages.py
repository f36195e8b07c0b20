"""What travels through a broker: a request that knows when it was made and how much work it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One request. `created_unix_seconds` is when it was *due*, so that a slow broker counts as waiting."""

    identity: str
    created_unix_seconds: float
    service_seconds: float

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(
            {"id": self.identity, "created": self.created_unix_seconds, "service_seconds": self.service_seconds}
        ).encode()


def decode(body: bytes | str) -> Message | None:
    """The message in a body, or None where somebody else's message lies in the queue."""
    try:
        parsed: Any = json.loads(body)
        return Message(str(parsed["id"]), float(parsed["created"]), float(parsed["service_seconds"]))
    except (ValueError, KeyError, TypeError):
        return None
