"""Time as whole microseconds since 1970, UTC: what the hash chains cover, exact and fast."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """A time with a zone as microseconds."""
    return (moment - _EPOCH) // _TICK


def moment(at: int) -> datetime:
    """Microseconds as a time in UTC."""
    return _EPOCH + timedelta(microseconds=at)


def text(at: int) -> str:
    """Microseconds as the database reads a timestamp."""
    return (_EPOCH + timedelta(microseconds=at)).isoformat()


def readable(at: int) -> str:
    """Microseconds as a time in the data of an entry."""
    return f"{moment(at):%Y-%m-%dT%H:%M:%S.%fZ}"
