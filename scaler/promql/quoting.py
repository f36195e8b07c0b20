"""PromQL from values that tenants chose: strings, regular expressions and durations that can't break out.

Grammar: https://prometheus.io/docs/prometheus/latest/querying/basics/ (read for 2.42 and 3.x).
"""

from __future__ import annotations

import re

LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
# What RE2 gives a meaning to; a hyphen has none outside of brackets, so pod names stay readable.
_RE2_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")


def string(text: str) -> str:
    """`text` as a double-quoted PromQL string, equal to `text` when Prometheus has read it.

    Raises ValueError for characters that no label value of ours can hold (other control characters, lone
    surrogates): they are a sign of mischief.
    """
    parts = []
    for character in text:
        escaped = _ESCAPES.get(character)
        if escaped is None:
            if character < " " or "\x7f" <= character < "\xa0" or "\ud800" <= character <= "\udfff":
                raise ValueError(f"character {character!a} can't stand in a PromQL string")
            escaped = character
        parts.append(escaped)
    return '"' + "".join(parts) + '"'


def literal(text: str) -> str:
    """A regular expression that matches `text` only (RE2, anchored by Prometheus)."""
    return _RE2_SPECIAL.sub(lambda match: "\\" + match.group(0), text)


def duration(seconds: float) -> str:
    """A PromQL duration, to the millisecond: 90.5 becomes "90500ms"."""
    return f"{max(1, round(seconds * 1000))}ms"
