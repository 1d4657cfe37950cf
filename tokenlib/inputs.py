"""What callers hand in, checked before it reaches the database.

Each check returns the value, or raises InvalidInput with the field and what is allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta

from psycopg.types.json import Jsonb

from tokenlib.domain import (
    MAX_KEY_LENGTH,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_TOKENS,
    MAX_UNITS,
)
from tokenlib.errors import InvalidInput

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def text(value: object, field: str) -> str:
    """Text that PostgreSQL can keep: Unicode without NUL."""
    try:
        if isinstance(value, str) and b"\x00" not in value.encode():
            return value
    except UnicodeEncodeError:
        pass
    raise InvalidInput(field, f"must be text, not {value!r}")


def said(value: object, field: str) -> str:
    """Text that says something: who acts, or why."""
    if not text(value, field).strip():
        raise InvalidInput(field, "must not be empty")
    return text(value, field)


def optional_text(value: object, field: str) -> str | None:
    """Text, or None."""
    return None if value is None else text(value, field)


def units(value: object) -> int:
    """How many times a feature's cost."""
    return _whole(value, "units", MAX_UNITS)


def amount(value: object) -> int:
    """A number of tokens to add."""
    return _whole(value, "amount", MAX_TOKENS)


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


def hold_for(value: object) -> timedelta | None:
    """The life of a hold, or None for the default. The database knows the longest."""
    if value is None or isinstance(value, timedelta):
        return value
    raise InvalidInput("hold_for", f"must be a timedelta, not {value!r}")


def metadata(value: object) -> Jsonb | None:
    """A JSON object that fits, or None."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidInput("metadata", f"must be a JSON object, not {type(value).__name__}")
    document = dict(value)
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


def _whole(value: object, field: str, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(field, f"must be a whole number, not {value!r}")
    if not 1 <= value <= highest:
        raise InvalidInput(field, f"must be from 1 to {highest}, not {value}")
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
