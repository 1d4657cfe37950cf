"""Who asks, and how a question reaches the database: one statement, one round trip."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Generic, Literal, Self, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
from psycopg import errors as pg
from psycopg.rows import dict_row

from tokenlib.db import Database, Row, as_uuid, translate
from tokenlib.errors import DatabaseUnavailable, InvalidInput

T = TypeVar("T")
Id = UUID | str
Ask = Callable[..., list[Row]]
"""One question: its noun, its name, its parameters."""

MAX_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Viewer:
    """The person who asks, or the API key. Row-level security in the database decides what is seen.

    `tokenlib_reader` is for staff (strangers to tokenlib_staff see nothing), `authenticated` for
    members, who see their own organization, `key` for a key of one organization.
    """

    user_id: UUID
    reader: Literal["tokenlib_reader", "authenticated", "key"]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows of a longer list, and how long the whole list is."""

    rows: tuple[T, ...]
    total: int


class Asking:
    """What every room of questions stands on."""

    def __init__(self, database: Database, viewer: Viewer | None = None) -> None:
        """`viewer` None is the service itself: the CLI, and the API for trusted callers."""
        self.database = database
        self.viewer = viewer
        self._shared: Ask | None = None

    @contextmanager
    def together(self) -> Iterator[Self]:
        """Questions asked of what this gives share one transaction, and its round trips.

        It holds a connection: ask in it, and show after it. An error ends it for all of them.
        """
        with self._asking() as ask:
            reports = type(self)(self.database, self.viewer)
            reports._shared = ask
            yield reports

    def now(self) -> datetime:
        """The clock of the books, which decides what is due and what has expired."""
        moment: datetime = self._ask("health", "now")[0]["now"]
        return moment

    @property
    def _closed(self) -> str:
        """What the name of a statement ends with that reads the rollups: members may not, and on a
        Citus there are none."""
        viewer = self.viewer
        may = viewer is None or viewer.reader == "tokenlib_reader"
        return "_closed" if may and not self.database.spread() else ""

    def _ask(self, noun: str, question: str, **params: Any) -> list[Row]:
        if self._shared is not None:
            with self._asking() as ask:
                return ask(noun, question, **params)
        return self.database.rows(
            self.database.said(noun, question),
            params,
            reader=self.viewer.reader if self.viewer else "tokenlib_service",
            user_id=self.viewer.user_id if self.viewer else None,
            prepare=False,  # see _asking
        )

    def _page(
        self, row_type: Callable[..., T], noun: str, question: str, limit: int | None, **params: Any
    ) -> Page[T]:
        """The first rows of a list whose statement counts them all; limit None gives them all."""
        limit = None if limit is None else rows_at_most(limit)
        rows = self._ask(noun, question, limit=limit, **params)
        total = rows[0]["total"] if rows else 0
        for row in rows:
            del row["total"]
        return Page(tuple(row_type(**row) for row in rows), total)

    @contextmanager
    def _asking(self) -> Iterator[Ask]:
        """Several questions in one transaction, as the viewer."""
        if self._shared is not None:
            try:
                yield self._shared
            except psycopg.Error as error:
                raise translate(error) from error
            return
        self.database.spread()  # known before this takes a connection
        viewer = self.viewer
        with self.database.transaction(
            reader=viewer.reader if viewer else "tokenlib_service",
            user_id=viewer.user_id if viewer else None,
        ) as connection:
            driver: Any = connection.connection.driver_connection  # psycopg's, by our dialect

            def ask(noun: str, question: str, **params: Any) -> list[Row]:
                with driver.cursor(row_factory=dict_row) as cursor:
                    # Never prepared: a plan kept for "every organization" would read the whole log
                    # for a question about one.
                    cursor.execute(self.database.said(noun, question), params, prepare=False)
                    rows: list[Row] = cursor.fetchall()
                return rows

            yield ask

    @contextmanager
    def _in_zone(self, timezone: str) -> Iterator[Ask]:
        """As `_asking`; InvalidInput for a time zone that the database does not know."""
        try:
            with self._asking() as ask:
                yield partial(ask, timezone=timezone)
        except (DatabaseUnavailable, InvalidInput) as error:  # as plain SQL or a function fails
            if isinstance(error.__cause__, pg.InvalidParameterValue):
                raise InvalidInput("timezone", f"{timezone!r} is not a time zone") from None
            raise


def window(since: datetime, until: datetime) -> dict[str, datetime]:
    """The bounds of a question: `since` belongs to it, `until` does not. Both need a time zone."""
    for field, moment in (("since", since), ("until", until)):
        if moment.tzinfo is None:
            raise InvalidInput(field, "must have a time zone")
    if since > until:
        raise InvalidInput("since", "must not be later than until")
    return {"since": since, "until": until}


def open_window(since: datetime | None, until: datetime | None) -> dict[str, datetime | None]:
    """As `window`, where either bound may be missing."""
    for field, moment in (("since", since), ("until", until)):
        if moment is not None and moment.tzinfo is None:
            raise InvalidInput(field, "must have a time zone")
    return {"since": since, "until": until}


def zone(timezone: str) -> ZoneInfo:
    """A time zone by name; InvalidInput when there is none of that name."""
    try:
        return ZoneInfo(timezone)
    except (ValueError, OSError, KeyError):
        raise InvalidInput("timezone", f"{timezone!r} is not a time zone") from None


def whole(value: object, field: str, at_least: int, at_most: int) -> int:
    """A limit or an offset that the database will take."""
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
        raise InvalidInput(
            field, f"must be a whole number from {at_least} to {at_most}, not {value!r}"
        )
    return value


def rows_at_most(limit: object) -> int:
    """How many rows a list may have."""
    return whole(limit, "limit", 1, MAX_ROWS)


def id_or_none(value: Id | None, field: str) -> UUID | None:
    """An id that narrows a question; None asks about everything that the viewer may see."""
    return None if value is None else as_uuid(value, field)


def contains(text: str | None) -> str | None:
    """An ILIKE pattern for "contains this text", or None for no text."""
    if text is None or not text.strip():
        return None
    if "\x00" in text:
        raise InvalidInput("search", "must be text")
    escaped = text.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def caseless(pattern: str | None) -> str | None:
    """A LIKE pattern for the parts of an ILIKE pattern that have no case, as digits and spaces."""
    return None if pattern is None else re.sub(r"([^\x00-\x7f]|[A-Za-z])+", "%", pattern)
