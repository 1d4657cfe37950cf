"""Checks on what a feature is given: every refusal names the field and what it may hold."""

import operator
import unicodedata
from collections.abc import Mapping, Sequence


class InvalidInput(ValueError):
    """A field is missing, unknown or outside its range; `field` names it: `crews[2].hours`."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


def text(field: str, value: object, longest: int) -> str:
    """One line of 1 to `longest` characters, its white space made single spaces."""
    problem = f"must be a text of 1 to {longest} characters without control characters"
    if not isinstance(value, str):
        raise InvalidInput(field, problem)
    line = " ".join(value.split())
    # PostgreSQL stores neither NUL nor a lone surrogate; the others only harm a display.
    if not 1 <= len(line) <= longest or any(unicodedata.category(c) in ("Cc", "Cs") for c in line):
        raise InvalidInput(field, problem)
    return line


def whole(field: str, value: object, low: int, high: int) -> int:
    """A whole number from `low` to `high`; true and false are not numbers."""
    problem = f"must be a whole number from {low:,} to {high:,}"
    try:
        count = low - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidInput(field, problem) from None
    if not low <= count <= high:
        raise InvalidInput(field, problem)
    return count


def number(field: str, value: object, low: float, high: float) -> float:
    """A number from `low` to `high`; not a number and infinity are refused."""
    problem = f"must be a number from {low:,} to {high:,}"
    if isinstance(value, bool | str | bytes):
        raise InvalidInput(field, problem)
    try:
        amount = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(field, problem) from None
    if not low <= amount <= high:
        raise InvalidInput(field, problem)
    return amount


def choice(field: str, value: object, allowed: Sequence[str]) -> str:
    """One of the `allowed` words."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidInput(field, f"must be one of {', '.join(allowed)}")
    return value


class Fields:
    """A mapping with exactly the `known` fields, read one by one."""

    def __init__(self, values: object, known: Sequence[str], path: str = "") -> None:
        self._prefix = f"{path}." if path else ""
        names = ", ".join(known)
        if not isinstance(values, Mapping):
            raise InvalidInput(path or "input", f"must be a mapping with the fields {names}")
        for name in values:
            if name not in known:
                shown = name[:40] if isinstance(name, str) else type(name).__name__
                raise InvalidInput(f"{self._prefix}{shown}", f"is unknown; the fields are {names}")
        for name in known:
            if name not in values:
                raise InvalidInput(f"{self._prefix}{name}", f"is missing; the fields are {names}")
        self.known = tuple(known)
        self._values = values

    def value(self, name: str) -> object:
        """The field as it came, unchecked."""
        return self._values[name]

    def text(self, name: str, longest: int = 80) -> str:
        """See the function `text`."""
        return text(self._prefix + name, self._values[name], longest)

    def whole(self, name: str, low: int, high: int) -> int:
        """See the function `whole`."""
        return whole(self._prefix + name, self._values[name], low, high)

    def number(self, name: str, low: float, high: float) -> float:
        """See the function `number`."""
        return number(self._prefix + name, self._values[name], low, high)

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """See the function `choice`."""
        return choice(self._prefix + name, self._values[name], allowed)

    def group(self, name: str, known: Sequence[str]) -> "Fields":
        """A mapping inside this one."""
        return Fields(self._values[name], known, self._prefix + name)

    def rows(self, name: str, known: Sequence[str], fewest: int, most: int) -> "list[Fields]":
        """A list of `fewest` to `most` mappings that all have the `known` fields."""
        values = self._values[name]
        field = self._prefix + name
        if not isinstance(values, list | tuple) or not fewest <= len(values) <= most:
            raise InvalidInput(field, f"must be a list of {fewest} to {most} rows")
        return [Fields(value, known, f"{field}[{i}]") for i, value in enumerate(values)]


def distinct(field: str, names: Sequence[str]) -> None:
    """Refuse a list in which one name (in any case) stands twice."""
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            raise InvalidInput(field, f"must name each one once; {name} stands there twice")
        seen.add(name.casefold())
