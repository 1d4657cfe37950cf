"""A trace of AI requests in a CSV file, read line by line, so that its length does not matter."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from tokenlib.errors import InvalidInput

MAX_LINE_BYTES = 65_536
MAX_COUNT = 1_000_000_000

# What a column is, and the names under which it is found, whatever their case.
_COLUMNS = {
    "time": ("time", "TIMESTAMP"),
    "input units": ("input_units", "ContextTokens"),
    "output units": ("output_units", "GeneratedTokens"),
}
_SKIPPED_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Request:
    """One row: when, and how much went into the model and came out of it."""

    line: int
    time: datetime
    input_units: int
    output_units: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the header says that the three columns stand."""

    delimiter: str
    names: tuple[str, ...]
    positions: tuple[int, ...]


class _BadRow(Exception):
    """What is wrong with a line, from its column on."""


class Trace:
    """A checked trace: `rows` good ones, `skipped` bad ones, `first_skipped` as sentences."""

    def __init__(self, path: Path, *, skip_bad_rows: bool = False, limit: int | None = None):
        """Read the file once, to its end or to `limit` good rows.

        Raises InvalidInput for a file that is no trace; for a bad row, with its line and column,
        unless `skip_bad_rows`. OSError when the file cannot be read.
        """
        self.path = path
        self.rows = self.skipped = 0
        self.first_skipped: list[str] = []
        self._skip, self._limit = skip_bad_rows, limit
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        for request in self._read():
            if isinstance(request, Request):
                self.rows += 1
                continue
            if not skip_bad_rows:
                raise InvalidInput(path.name, request)
            self.skipped += 1
            if len(self.first_skipped) < _SKIPPED_SHOWN:
                self.first_skipped.append(request)
        if self.rows == 0:
            what = "good rows" if self.skipped else "rows below its header"
            raise InvalidInput(path.name, f"has no {what}.")

    def requests(self) -> Iterator[Request]:
        """The good rows, in the file's order."""
        return (request for request in self._read() if isinstance(request, Request))

    def _read(self) -> Iterator[Request | str]:
        """Each row, or the sentence that says what is wrong with it."""
        good = 0
        with self.path.open("rb") as file:
            lines = _lines(file)
            layout = self._layout(next(lines, (1, b""))[1])
            for line, raw in lines:
                if not raw.strip():
                    continue
                if self._limit is not None and good >= self._limit:
                    return
                try:
                    yield _request(line, raw, layout)
                    good += 1
                except _BadRow as bad:
                    yield f"line {line}{bad}"

    def _layout(self, raw: bytes) -> Layout:
        if not raw:
            raise InvalidInput(self.path.name, "is empty.")
        try:
            # The byte order mark that spreadsheets write is no part of the first name.
            text = _text(raw).removeprefix("\ufeff")
            delimiter = max(",;\t", key=text.count)
            names = tuple(name.strip() for name in _fields(text, delimiter))
        except _BadRow as bad:
            raise InvalidInput(self.path.name, f"line 1{bad}") from None
        lowered = [name.lower() for name in names]
        positions = []
        for what, known in _COLUMNS.items():
            found = [lowered.index(name.lower()) for name in known if name.lower() in lowered]
            if not found:
                shown = ", ".join(repr(name[:40]) for name in names[:10])
                raise InvalidInput(
                    self.path.name,
                    f"has no column for the {what}. Name it {' or '.join(known)}; the header"
                    f" has: {shown}.",
                )
            if len(found) > 1 or lowered.count(lowered[found[0]]) > 1:
                raise InvalidInput(self.path.name, f"has two columns for the {what}.")
            positions.append(found[0])
        return Layout(delimiter, names, tuple(positions))


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; of one that is too long only the beginning, which is too long as well."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        yield number, line
        while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
            pass


def _request(line: int, raw: bytes, layout: Layout) -> Request:
    fields = _fields(_text(raw), layout.delimiter)
    if len(fields) != len(layout.names):
        raise _BadRow(f" has {len(fields)} fields, and the header has {len(layout.names)}.")
    time, inputs, outputs = layout.positions
    return Request(
        line,
        _time(fields[time], layout.names[time]),
        _count(fields[inputs], layout.names[inputs]),
        _count(fields[outputs], layout.names[outputs]),
    )


def _text(raw: bytes) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise _BadRow(f" is longer than {MAX_LINE_BYTES} bytes.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _BadRow(" is not UTF-8 text. Save the file as CSV in UTF-8.") from None


def _fields(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise _BadRow(f" is not CSV: {error}.") from None


def _time(value: str, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        raise _BadRow(
            f", column {name}, must be a time such as 2023-11-16 18:17:03.979, not {value[:40]!r}."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _count(value: str, name: str) -> int:
    digits = value.strip()
    # Length first: int() refuses thousands of digits with an error of its own.
    short = digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_COUNT))
    if not short or int(digits) > MAX_COUNT:
        raise _BadRow(
            f", column {name}, must be a whole number from 0 to {MAX_COUNT}, not {value[:40]!r}."
        )
    return int(digits)
