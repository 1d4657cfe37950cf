"""What leaves as a file. Pure."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def neutralised(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: such text gets a ' in front.

    Numbers stay numbers, also negative ones.
    """
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
