"""Adds label matchers to every selector of a PromQL query, so that a tenant reads its own series only.

A query is tokenised, parsed by a strict grammar and written anew from its tokens: comments go, strings are
quoted afresh, and every selector gets the matchers. The server so never sees the user's own characters, only
ours, and a difference between its lexer and this one can't hide a selector. What the grammar does not know is
refused: unknown functions (`info()` reads series without a selector), metrics named like keywords (write
{__name__="sum"}), histogram literals, syntax of other servers.

Grammar: Prometheus promql/parser (lex.go, generated_parser.y), 2.42 to 3.x. Keywords are case-insensitive
there, function names are not; a carriage return ends a comment like a newline.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NoReturn

from scaler.errors import SourceDenied, quoted
from scaler.promql.quoting import LABEL_NAME, string

AGGREGATORS = frozenset(
    {
        "avg",
        "bottomk",
        "count",
        "count_values",
        "group",
        "limit_ratio",
        "limitk",
        "max",
        "min",
        "quantile",
        "stddev",
        "stdvar",
        "sum",
        "topk",
    }
)
_WORD_OPERATORS = frozenset({"and", "or", "unless", "atan2"})
_KEYWORDS = (
    AGGREGATORS
    | _WORD_OPERATORS
    | frozenset(
        {
            "anchored",
            "bool",
            "by",
            "end",
            "fill",
            "fill_left",
            "fill_right",
            "group_left",
            "group_right",
            "ignoring",
            "inf",
            "nan",
            "offset",
            "on",
            "range",
            "smoothed",
            "start",
            "step",
            "without",
        }
    )
)
# Functions of Prometheus 2.42 to 3.x but `info`, which reads series that no selector names.
FUNCTIONS = frozenset(
    re.findall(
        r"[a-z0-9_]+",
        """
        abs absent absent_over_time acos acosh asin asinh atan atanh avg_over_time ceil changes clamp clamp_max
        clamp_min cos cosh count_over_time day_of_month day_of_week day_of_year days_in_month deg delta deriv
        double_exponential_smoothing exp first_over_time floor histogram_avg histogram_count histogram_fraction
        histogram_quantile histogram_quantiles histogram_stddev histogram_stdvar histogram_sum holt_winters hour
        idelta increase irate label_join label_replace last_over_time ln log10 log2 mad_over_time max_over_time
        min_over_time minute month pi predict_linear present_over_time quantile_over_time rad rate resets round
        scalar sgn sin sinh sort sort_by_label sort_by_label_desc sort_desc sqrt stddev_over_time stdvar_over_time
        sum_over_time tan tanh time timestamp ts_of_first_over_time ts_of_last_over_time ts_of_max_over_time
        ts_of_min_over_time vector year
        """,
    )
)

_MOST_CHARACTERS = 16_384
_MOST_DEPTH = 64

Kind = Literal["word", "number", "duration", "string", "sign"]


@dataclass(frozen=True, slots=True)
class Token:
    """One token; of a string, `text` is the content."""

    kind: Kind
    text: str
    at: int


_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DURATION = re.compile(r"(?:[0-9]+(?:ms|[smhdwy]))+")
_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SIGNS = ("==", "!=", "<=", ">=", "=~", "!~", *"+-*/%^<>=(){}[],@")
_SPACE = re.compile(r"[ \t\r\n]+|#[^\r\n]*")
_SIMPLE_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
    "'": "'",
}
_CODED_ESCAPES = (
    (re.compile(r"x([0-9a-fA-F]{2})"), 16, 0x7F),
    (re.compile(r"([0-7]{3})"), 8, 0x7F),
    (re.compile(r"u([0-9a-fA-F]{4})"), 16, 0x10FFFF),
    (re.compile(r"U([0-9a-fA-F]{8})"), 16, 0x10FFFF),
)


class _Unclear(Exception):
    """The query can't be understood; `at` is the position in characters."""

    def __init__(self, expected: str, at: int) -> None:
        self.at = at
        super().__init__(expected)


def tokens(text: str) -> list[Token]:
    """The tokens of a query, without space and comments. Raises _Unclear."""
    found: list[Token] = []
    at = 0
    inside_brackets = False
    while at < len(text):
        if space := _SPACE.match(text, at):
            at = space.end()
            continue
        character = text[at]
        if character in "\"'`":
            content, end = _string(text, at)
            found.append(Token("string", content, at))
        elif inside_brackets and character == ":":  # a subquery's, not the start of a metric's name
            found.append(Token("sign", ":", at))
            end = at + 1
        elif word := _WORD.match(text, at):
            found.append(Token("word", word.group(), at))
            end = word.end()
        elif character.isascii() and (character.isdigit() or character == "."):
            # Inside of brackets a duration may be followed by the colon of a subquery.
            match = _DURATION.match(text, at)
            kind: Kind = "duration"
            if match is None:
                match, kind = _NUMBER.match(text, at), "number"
            if match is None:
                raise _Unclear("expected a number", at)
            end = match.end()
            after = text[end : end + 1]
            if after and (after.isalnum() or after in "_." or (after == ":" and not inside_brackets)):
                raise _Unclear("expected a number or a duration such as 5m", at)
            found.append(Token(kind, match.group(), at))
        else:
            sign = next((sign for sign in _SIGNS if text.startswith(sign, at)), None)
            if sign is None:
                raise _Unclear(f"unexpected character {character!a}", at)
            found.append(Token("sign", sign, at))
            end = at + len(sign)
            if sign == "[":
                inside_brackets = True
            elif sign == "]":
                inside_brackets = False
        at = end
    return found


def _string(text: str, start: int) -> tuple[str, int]:
    """The content of the string that starts at `start`, and where it ends."""
    quote = text[start]
    if quote == "`":
        end = text.find("`", start + 1)
        if end < 0:
            raise _Unclear("a string does not end", start)
        return text[start + 1 : end], end + 1
    parts: list[str] = []
    at = start + 1
    while at < len(text):
        character = text[at]
        if character == quote:
            return "".join(parts), at + 1
        if character == "\n":
            break
        if character != "\\":
            parts.append(character)
            at += 1
            continue
        decoded, at = _escape(text, at + 1)
        parts.append(decoded)
    raise _Unclear("a string does not end", start)


def _escape(text: str, at: int) -> tuple[str, int]:
    simple = _SIMPLE_ESCAPES.get(text[at : at + 1])
    if simple is not None:
        return simple, at + 1
    for pattern, base, highest in _CODED_ESCAPES:
        match = pattern.match(text, at)
        if match:
            code = int(match.group(1), base)
            # Bytes from 0x80 on could put together what isn't UTF-8.
            if code > highest or 0xD800 <= code <= 0xDFFF:
                break
            return chr(code), match.end()
    raise _Unclear("an escape in a string that is not known here", at)


class _Rewriter:
    """Walks the grammar once and writes the query anew."""

    def __init__(self, found: Sequence[Token], matchers: str, length: int) -> None:
        self._tokens = found
        self._next = 0
        self._matchers = matchers
        self._length = length
        self._out: list[str] = []
        self._depth = 0

    # Tokens.

    def _peek(self, ahead: int = 0) -> Token | None:
        place = self._next + ahead
        return self._tokens[place] if place < len(self._tokens) else None

    def _sees(self, *signs: str) -> bool:
        token = self._peek()
        return token is not None and token.kind == "sign" and token.text in signs

    def _sees_word(self, *words: str) -> bool:
        token = self._peek()
        return token is not None and token.kind == "word" and token.text.lower() in words

    def _fail(self, expected: str) -> NoReturn:
        token = self._peek()
        raise _Unclear(expected, self._length if token is None else token.at)

    def _copy(self) -> None:
        """Write the next token as it is."""
        token = self._peek()
        assert token is not None
        self._write(token)
        self._next += 1

    def _write(self, token: Token) -> None:
        if token.kind == "string":
            try:
                self._out.append(string(token.text))
            except ValueError as err:
                raise _Unclear(str(err), token.at) from err
        else:
            self._out.append(token.text)

    def _take(self, sign: str) -> None:
        if not self._sees(sign):
            self._fail(f'expected "{sign}"')
        self._copy()

    # Grammar.

    def query(self) -> str:
        """The whole query."""
        self._expression()
        if self._peek() is not None:
            self._fail("expected an operator or the end")
        return " ".join(self._out)

    def _expression(self) -> None:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            self._fail(f"expected at most {_MOST_DEPTH} levels")
        self._operand()
        # What binds closer does not matter here: the tokens keep their order.
        while self._sees("+", "-", "*", "/", "%", "^", "==", "!=", "<=", ">=", "<", ">") or self._sees_word(
            *_WORD_OPERATORS
        ):
            self._copy()
            self._modifiers()
            self._operand()
        self._depth -= 1

    def _modifiers(self) -> None:
        if self._sees_word("bool"):
            self._copy()
        if self._sees_word("on", "ignoring"):
            self._copy()
            self._labels()
            if self._sees_word("group_left", "group_right"):
                self._copy()
                if self._sees("("):
                    self._labels()

    def _labels(self) -> None:
        """`(a, b)`; keywords are names here."""
        self._take("(")
        while not self._sees(")"):
            token = self._peek()
            if token is None or not (
                token.kind == "string" or (token.kind == "word" and LABEL_NAME.fullmatch(token.text))
            ):
                self._fail("expected the name of a label")
            self._copy()
            if not self._sees(")"):
                self._take(",")
        self._take(")")

    def _operand(self) -> None:
        while self._sees("+", "-"):
            self._copy()
        self._primary()
        while True:
            if self._sees("["):
                self._range()
            elif self._sees_word("offset"):
                self._copy()
                while self._sees("-", "+"):
                    self._copy()
                self._length_of_time()
            elif self._sees("@"):
                self._copy()
                self._moment()
            else:
                return

    def _range(self) -> None:
        start = len(self._out)
        self._take("[")
        self._length_of_time()
        if self._sees(":"):
            self._copy()
            if not self._sees("]"):
                self._length_of_time()
        self._take("]")
        self._out[start:] = ["".join(self._out[start:])]  # older lexers take no space in here

    def _length_of_time(self) -> None:
        token = self._peek()
        if token is None or token.kind not in {"duration", "number"}:
            self._fail("expected a duration such as 5m")
        self._copy()

    def _moment(self) -> None:
        if self._sees_word("start", "end"):
            self._copy()
            self._take("(")
            self._take(")")
            return
        while self._sees("-", "+"):
            self._copy()
        token = self._peek()
        if token is None or token.kind != "number":
            self._fail("expected a Unix time, start() or end()")
        self._copy()

    def _primary(self) -> None:
        token = self._peek()
        if token is None:
            self._fail("expected an expression")
        if token.kind in {"number", "duration", "string"} or self._sees_word("inf", "nan"):
            self._copy()
        elif self._sees("("):
            self._copy()
            self._expression()
            self._take(")")
        elif self._sees("{"):
            self._selector()
        elif token.kind != "word":
            self._fail("expected an expression")
        elif token.text.lower() in AGGREGATORS:
            self._aggregate()
        elif token.text.lower() in _KEYWORDS:
            self._fail(f'{quoted(token.text)} is a keyword; a metric of that name is {{__name__="..."}}')
        else:
            after = self._peek(1)
            if after is not None and after.kind == "sign" and after.text == "(":
                if token.text not in FUNCTIONS:
                    self._fail(f"function {quoted(token.text)} is not known here")
                self._copy()
                self._arguments()
            else:
                self._selector()

    def _aggregate(self) -> None:
        self._copy()
        grouped = self._grouping()
        self._arguments()
        if not grouped:
            self._grouping()

    def _grouping(self) -> bool:
        if not self._sees_word("by", "without"):
            return False
        self._copy()
        self._labels()
        return True

    def _arguments(self) -> None:
        self._take("(")
        while not self._sees(")"):
            self._expression()
            if not self._sees(")"):
                self._take(",")
                if self._sees(")"):
                    self._fail("expected an argument")
        self._take(")")

    def _selector(self) -> None:
        """`name`, `name{...}` or `{...}`, with our matchers put first."""
        if not self._sees("{"):
            self._copy()
            if not self._sees("{"):
                self._out.append(f"{{{self._matchers}}}")
                return
        self._take("{")
        self._out.append(self._matchers)
        if not self._sees("}"):
            self._out.append(",")
        self._matcher_list()
        self._take("}")

    def _matcher_list(self) -> None:
        while not self._sees("}"):
            self._matcher()
            if not self._sees("}"):
                self._take(",")

    def _matcher(self) -> None:
        """`label="value"`, `"label"="value"`, or the quoted name of a metric (Prometheus 3)."""
        token = self._peek()
        if token is None or not (token.kind == "string" or (token.kind == "word" and LABEL_NAME.fullmatch(token.text))):
            self._fail("expected the name of a label")
        self._copy()
        if token.kind == "string" and not self._sees("=", "!=", "=~", "!~"):
            return
        if not self._sees("=", "!=", "=~", "!~"):
            self._fail("expected =, !=, =~ or !~")
        self._copy()
        value = self._peek()
        if value is None or value.kind != "string":
            self._fail("expected a string")
        self._copy()

    def matchers(self) -> str:
        """The matchers of a connection, written anew."""
        self._matcher_list_to_the_end()
        return " ".join(self._out)

    def _matcher_list_to_the_end(self) -> None:
        while self._peek() is not None:
            token = self._peek()
            if token is None or token.kind != "word":
                self._fail('expected a matcher such as namespace="team-a"')
            self._matcher()
            if self._peek() is not None:
                self._take(",")


@lru_cache(maxsize=256)
def _rendered(matchers: tuple[str, ...]) -> str:
    rendered = []
    for matcher in matchers:
        try:
            text = _Rewriter(tokens(matcher), "", len(matcher)).matchers()
        except _Unclear as err:
            raise SourceDenied(
                f"the connection's matcher {quoted(matcher)} can't be understood ({err}); expected one such as "
                'namespace="team-a": its operator must mend it'
            ) from err
        if text:
            rendered.append(text.removesuffix(","))
    if not rendered:
        raise SourceDenied("the connection has an empty list of matchers, which lets nothing be read")
    return " , ".join(rendered)


def enforce(text: str, matchers: Sequence[str]) -> str:
    """`text`, written anew with `matchers` in every selector.

    Raises SourceDenied where the query can't be understood well enough to be sure of that.
    """
    added = _rendered(tuple(matchers))
    if len(text) > _MOST_CHARACTERS:
        raise SourceDenied(
            f"the query has {len(text)} characters; with the connection's matchers at most {_MOST_CHARACTERS} are read"
        )
    try:
        return _Rewriter(tokens(text), added, len(text)).query()
    except _Unclear as err:
        near = text[max(err.at - 12, 0) : err.at + 12]
        raise SourceDenied(
            f"the connection's matchers can't be added to the query: {err} at character {err.at + 1}, near "
            f"{quoted(near)}; write it in plain PromQL"
        ) from err
