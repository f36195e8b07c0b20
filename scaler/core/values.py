"""`value_class`: a dataclass that nobody changes, made for hot paths.

To the type checker it is `dataclass(frozen=True, slots=True)`, so that setting a field is an error in every module that
mypy looks at, which is all of them. While the program runs it is not frozen: of a frozen one each field is set through
a call, which makes it three times as slow to build, and a decision builds a dozen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["value_class"]

if TYPE_CHECKING:
    from dataclasses import dataclass as value_class
else:
    from dataclasses import dataclass

    def value_class(*, frozen: bool, slots: bool, kw_only: bool = False) -> type:
        """`dataclass` with these options, but not frozen; hashed all the same."""
        return dataclass(slots=slots, kw_only=kw_only, unsafe_hash=frozen)
