"""What callers hand in, checked before it reaches the database.

Each check returns the value, or raises InvalidInput with the field and what is allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal
from uuid import UUID

from psycopg.types.json import Jsonb

from tokenlib.db import as_uuid
from tokenlib.domain import (
    MAX_KEY_LENGTH,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_TOKENS,
    MAX_UNITS,
    MOST_OUTPUT_UNITS,
    Reservation,
    Usage,
)
from tokenlib.errors import InvalidInput, NothingToRefund

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def text(value: object, field: str) -> str:
    """Text that PostgreSQL can keep: Unicode without NUL."""
    if not isinstance(value, str):
        raise InvalidInput(field, f"must be text, not {value!r}")
    try:
        if b"\x00" in value.encode():
            raise InvalidInput(field, "must not contain NUL characters")
    except UnicodeEncodeError:
        raise InvalidInput(field, "must be Unicode text; it holds half a character") from None
    return value


def said(value: object, field: str) -> str:
    """Text that says something: who acts, or why."""
    if not text(value, field).strip():
        raise InvalidInput(field, "must not be empty")
    return text(value, field)


def optional_text(value: object, field: str) -> str | None:
    """Text, or None."""
    return None if value is None else text(value, field)


def truth(value: object, field: str) -> bool:
    """True or False, and nothing that only counts as one."""
    if isinstance(value, bool):
        return value
    raise InvalidInput(field, f"must be True or False, not {value!r}")


def units(value: object) -> int:
    """How many times a feature's cost."""
    return _whole(value, "units", MAX_UNITS)


def output_units(value: object) -> int | None:
    """What a model writes, or None where nothing is said of it."""
    return None if value is None else _whole(value, "output_units", MOST_OUTPUT_UNITS, 0)


def amount(value: object, field: str = "amount") -> int:
    """A number of tokens to add."""
    return _whole(value, field, MAX_TOKENS)


def days(value: object) -> int | None:
    """A number of days, or None for as many as there are."""
    return None if value is None else _whole(value, "days", MAX_UNITS)


def key(value: object) -> str | None:
    """An idempotency key, or None."""
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_KEY_LENGTH:
        raise InvalidInput("idempotency_key", f"must be text of 1 to {MAX_KEY_LENGTH} characters")
    return text(value, "idempotency_key")


def moment(value: object, field: str) -> datetime | None:
    """A time that says its zone, or None."""
    if value is None or (isinstance(value, datetime) and value.tzinfo is not None):
        return value
    raise InvalidInput(field, f"must be a time with a time zone, not {value!r}")


def duration(value: object, field: str) -> timedelta | None:
    """A duration, or None for the default. The database knows the longest."""
    if value is None or isinstance(value, timedelta):
        return value
    raise InvalidInput(field, f"must be a timedelta, not {value!r}")


def number(value: object, field: str) -> Decimal | None:
    """A decimal number, or None. The database knows the largest."""
    if value is None or (isinstance(value, Decimal) and value.is_finite()):
        return value
    raise InvalidInput(field, f"must be a Decimal, not {value!r}")


def metadata(value: object) -> Jsonb | None:
    """A JSON object that fits, or None. Its output_units, which limits look at, are a count."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidInput("metadata", f"must be a JSON object, not {type(value).__name__}")
    document = dict(value)
    if "output_units" in document:
        _output_units(document["output_units"])
    try:
        as_text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        size = len(as_text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput("metadata", f"must be JSON: {error}") from None
    if size > MAX_METADATA_BYTES:
        raise InvalidInput("metadata", f"must be at most {MAX_METADATA_BYTES} bytes of JSON")
    if _NUL.search(as_text):
        raise InvalidInput("metadata", "must not contain NUL characters")
    if _deeper_than(MAX_METADATA_DEPTH, as_text):
        raise InvalidInput("metadata", f"must be at most {MAX_METADATA_DEPTH} levels deep")
    return Jsonb(document)


def reservation(value: object) -> Reservation:
    """What `reserve` returned: it knows its organization, an id alone does not."""
    if not isinstance(value, Reservation):
        raise InvalidInput("reservation", f"must be what reserve returned, not {value!r}")
    return value


def deadline(value: object) -> float:
    """How many seconds a call may take with all its attempts."""
    if not isinstance(value, int | float) or not 0.1 <= value <= 300:
        raise InvalidInput("deadline", f"must be from 0.1 to 300 seconds, not {value!r}")
    return value


def owned(
    thing: Reservation | Usage | UUID | str,
    organization: UUID | str | None,
    field: Literal["usage", "reservation"],
) -> tuple[UUID, UUID]:
    """The organization and the id of a charge or a hold: as it was returned, or its id with both.

    Raises NothingToRefund for a charge that is on no book.
    """
    known = None if organization is None else as_uuid(organization, "organization")
    if isinstance(thing, Reservation if field == "reservation" else Usage):
        if known not in (None, thing.organization_id):
            raise InvalidInput(
                "organization", f"must be {thing.organization_id}, whose {field} it is"
            )
        if isinstance(thing, Usage) and not thing.booked:
            raise NothingToRefund(thing.id)
        return thing.organization_id, thing.id
    thing_id = as_uuid(thing, field)  # type: ignore[arg-type]  # the other of the two is no id
    if known is None:
        raise InvalidInput("organization", f"is needed with a {field} id")
    return known, thing_id


def _output_units(value: object) -> None:
    if type(value) is not int or not 0 <= value <= MOST_OUTPUT_UNITS:
        raise InvalidInput(
            "metadata.output_units", f"must be a whole number from 0 to {MOST_OUTPUT_UNITS}"
        )


def _whole(value: object, field: str, highest: int, lowest: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(field, f"must be a whole number, not {value!r}")
    if not lowest <= value <= highest:
        raise InvalidInput(field, f"must be from {lowest} to {highest}, not {value}")
    return value


def _deeper_than(limit: int, as_text: str) -> bool:
    if as_text.count("[") + as_text.count("{") <= limit:
        return False
    depth = 0
    for character in _STRING.sub("", as_text):
        if character in "[{":
            depth += 1
            if depth > limit:
                return True
        elif character in "]}":
            depth -= 1
    return False
