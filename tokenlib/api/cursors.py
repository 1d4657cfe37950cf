"""Where a page of a list ended, as opaque text.

A cursor only says where: what may be read from there on, the database decides.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID

from tokenlib.errors import InvalidInput

_MOST = 2**63
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(UTC)


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number < _MOST:
        raise ValueError
    return number


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError
    return text


_READERS: dict[str, Any] = {"datetime": _moment, "int": _number, "str": _name, "UUID": UUID}


class _Place:
    """Fields without a blank in them, and the way to and from a cursor."""

    @classmethod
    def of(cls, row: object) -> Self:
        """The place of a row."""
        return cls(*(getattr(row, field.name) for field in fields(cls)))  # type: ignore[arg-type]

    @classmethod
    def read(cls, cursor: str | None) -> Self | None:
        """The place that a cursor names. Raises InvalidInput."""
        if cursor is None:
            return None
        try:
            parts = base64.urlsafe_b64decode(cursor.encode()).decode().split(" ")
            named = zip(fields(cls), parts, strict=True)  # type: ignore[arg-type]
            return cls(*(_READERS[str(field.type)](part) for field, part in named))
        except (ValueError, OverflowError):  # a wrong alphabet is a ValueError, too
            raise InvalidInput("cursor", "must be the nextCursor of a page") from None

    def text(self) -> str:
        """The cursor."""
        parts = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        said = (part.isoformat() if isinstance(part, datetime) else str(part) for part in parts)
        return base64.urlsafe_b64encode(" ".join(said).encode()).decode()


@dataclass(frozen=True, slots=True)
class ChargePlace(_Place):
    """A charge's place among all charges."""

    created_at: datetime
    organization_id: UUID
    id: UUID


@dataclass(frozen=True, slots=True)
class EntryPlace(_Place):
    """An entry's place in an organization's ledger."""

    created_at: datetime
    token_type: str
    log_position: int
    event_position: int
    id: UUID
