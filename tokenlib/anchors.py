"""The anchor: where every chain of entries ends, as lines of JSON to keep somewhere else.

Whoever can write the database can rewrite a history as a whole, heads included; what they cannot
do is change the copy that lies elsewhere. One line for each wallet, and a last one that counts
them, so that a file that was cut is not taken for a whole one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any
from uuid import UUID

from tokenlib.errors import InvalidInput

_HASH = re.compile(r"(?:[0-9a-f]{64})?")


@dataclass(frozen=True, slots=True)
class Head:
    """The last log entry and the last event of one wallet; number 0 and an empty hash: none yet."""

    organization_id: UUID
    token_type: str
    log_number: int
    log_hash: str
    event_number: int
    event_hash: str

    def line(self, at: str) -> str:
        """The head as a line of the anchor."""
        return json.dumps({**asdict(self), "organization_id": str(self.organization_id), "at": at})


def last_line(wallets: int, at: str) -> str:
    """The line that ends an anchor."""
    return json.dumps({"anchor": 1, "wallets": wallets, "at": at})


def heads(lines: Iterable[str]) -> Iterator[Head]:
    """Read an anchor. Raises InvalidInput that names the line, or says that the end is missing."""
    count = 0
    complete = False
    for place, line in enumerate(_readable(lines), 1):
        if complete:
            raise InvalidInput("anchor", f"has more after its end, in line {place}")
        try:
            found = json.loads(line)
            if not isinstance(found, dict):
                raise TypeError
            if "anchor" in found:
                complete = found["anchor"] == 1 and found["wallets"] == count
                if not complete:
                    break
                continue
            head = _head(found)
        except (ValueError, KeyError, TypeError):
            raise InvalidInput("anchor", f"is no anchor of tokenlib: line {place}") from None
        count += 1
        yield head
    if not complete:
        raise InvalidInput("anchor", "is not complete: its last line does not count the others")


def _readable(lines: Iterable[str]) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError:
        raise InvalidInput("anchor", "is no anchor of tokenlib: it is not UTF-8 text") from None


def _head(found: dict[str, Any]) -> Head:
    values = {field.name: found[field.name] for field in fields(Head)}
    head = Head(**{**values, "organization_id": UUID(values["organization_id"])})
    for number, digest in (
        (head.log_number, head.log_hash),
        (head.event_number, head.event_hash),
    ):
        if type(number) is not int or number < 0 or not _HASH.fullmatch(digest):
            raise ValueError
        if (number == 0) != (digest == ""):
            raise ValueError
    if not isinstance(head.token_type, str):
        raise TypeError
    return head
