"""docs/sources.md, written from the very definitions that parse the metadata."""

from __future__ import annotations

from collections.abc import Iterable

from scaler.parameters import FROM_ENV, Belongs, Parameter
from scaler.plugins import policies, sources
from scaler.source import AnySource
from scaler.trigger import KEDA_KEYS, OURS

_HEAD = f"""# Sources and metadata

Written by `make docs` from the code's own definitions; do not edit.

Every key may also arrive as `<key>{FROM_ENV}`: KEDA resolves it from the scale target's environment. The plain key
wins. Values are trimmed and an empty one counts as not set. Booleans, numbers and durations follow KEDA's rules: `true`
or `false`; JSON numbers; durations as `500ms`, `2s`, `1m30s` or whole milliseconds. Unknown keys are errors.

`{"`, `".join(sorted(KEDA_KEYS))}` belong to KEDA's connection to Pilotlight and never reach a source.

Who may say what, in the last column: **trigger**: the metadata. **endpoint** and **credential**: the metadata where the
operator allows it for the namespace, or a connection of the service's configuration, which then fixes them all.
**connection**: a connection only.
"""

_WHO = {
    Belongs.TRIGGER: "trigger",
    Belongs.ENDPOINT: "endpoint",
    Belongs.CREDENTIAL: "credential",
    Belongs.CONNECTION_ONLY: "connection",
}


def sources_page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD, "## For every source\n", _table(OURS)]
    parts.append(f"Policies: {', '.join(f'`{name}`' for name in sorted(policies()))}.\n")
    for name, source in sorted(sources().items()):
        parts += [f"## `source: {name}`\n", _introduction(source), _table(source.parameters)]
    return "\n".join(parts)


def _introduction(source: AnySource) -> str:
    lines = [f"{source.summary}. Read every {source.sample_seconds:g} s unless `sampleSeconds` says otherwise."]
    if source.keda_trigger is not None:
        lines.append(f"Takes the metadata of KEDA's `{source.keda_trigger}` trigger.")
    if source.allow_kinds:
        kinds = ", ".join(f"`{kind}`" for kind in source.allow_kinds)
        lines.append(f"A connection's `allow` may restrict {kinds}.")
    lines.append(f"Installed by `pip install 'pilotlight[{source.needs_extra}]'`.\n")
    return "\n".join(lines)


def _table(parameters: Iterable[Parameter]) -> str:
    rows = ["| key | value | default | meaning | who |", "|---|---|---|---|---|"]
    rows += [_row(parameter) for parameter in parameters]
    return "\n".join(rows) + "\n"


def _row(parameter: Parameter) -> str:
    keys = "<br>".join(f"`{name}`" for name in (parameter.name, *parameter.aliases))
    if parameter.refused is not None:
        return f"| {keys} | | | not supported: {_cell(parameter.refused)} | |"
    if parameter.retired is not None:
        return f"| {keys} | | | ignored with a warning: {_cell(parameter.retired)} | |"
    default = "required" if parameter.required else _default(parameter)
    return f"| {keys} | {_cell(_value(parameter))} | {default} | {_cell(parameter.help)} | {_WHO[parameter.belongs]} |"


def _default(parameter: Parameter) -> str:
    value = parameter.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(str(element) for element in value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _value(parameter: Parameter) -> str:
    if parameter.allowed:
        return ", ".join(f"`{member}`" for member in parameter.allowed)
    words: list[str] = ["secret text" if parameter.secret else parameter.kind]
    if parameter.above is not None:
        words.append(f"above {parameter.above:g}")
    if parameter.minimum is not None:
        words.append(f"at least {parameter.minimum:g}")
    if parameter.maximum is not None:
        words.append(f"at most {parameter.maximum:g}")
    unit = f" ({parameter.unit})" if parameter.unit else ""
    return ", ".join(words) + unit


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
