"""Loads the demo, once: the history in bulk, today with the real verbs, the old system beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from tokenlib.db import statements
from tokenlib.demo import bulk, legacy, rows, scenes, situations, world
from tokenlib.demo.history import Terms
from tokenlib.demo.owner import Owner, bundled, first, only_one
from tokenlib.demo.rhythm import Rhythm
from tokenlib.demo.roles import DAYS
from tokenlib.domain import plain
from tokenlib.errors import ConfigurationError, InvalidInput
from tokenlib.tokens import Tokens

SEED = 20


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a load was begun with; `clock` is the database's at that time."""

    seed: int
    now: datetime
    charges: int
    clock: datetime

    @classmethod
    def checked(cls, seed: int, now: datetime | None, charges: int, clock: datetime) -> Arguments:
        """Raise InvalidInput for a time that cannot be meant."""
        if now is not None and now.tzinfo is None:
            raise InvalidInput("now", "must have a time zone")
        if now is not None and now > clock:
            raise InvalidInput("now", f"must not be later than the database's clock, {clock}")
        return cls(seed, now or clock, charges, clock)

    @classmethod
    def stored(cls, row: Mapping[str, Any]) -> Arguments:
        """As the load that was interrupted left them."""
        now, clock = datetime.fromisoformat(row["now"]), datetime.fromisoformat(row["clock"])
        return cls(row["seed"], now, row["charges"], clock)


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What the database holds after a load. `fresh` is False when it held the demo already."""

    fresh: bool
    organizations: int
    users: int
    charges: int
    events: int
    refusals: int
    seconds: float


def loaded(tokens: Tokens) -> bool:
    """Whether this database holds the demo, complete."""
    return bool(tokens.database.rows(statements("load", "demo")["loaded"]))


def load(
    owner_url: str,
    tokens: Tokens,
    *,
    seed: int = SEED,
    now: datetime | None = None,
    charges: int = world.CHARGES,
    elsewhere: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DemoSummary:
    """Fill the database with the demo's organizations and about `charges` charges; a second call
    does nothing.

    The same for the same `seed`, `charges` and `now` (a time with a zone, not in the future; the
    database's clock if not given). Inserts as the owner, with every constraint on; `tokens` then
    makes what happened today. A load that was interrupted is finished by the next one, as it was
    begun. Only the bundled PostgreSQL is filled, unless `elsewhere`; only it gets the legacy
    database. Raises ConfigurationError, InvalidInput or PermissionDenied.
    """
    _require_bundled(owner_url, elsewhere)
    started = time.monotonic()
    named = statements("load", "demo")
    with only_one(owner_url) as connection:
        found = connection.execute(named["loaded"]).fetchone()
        if found is None:
            clock = first(connection, named["terms"])["now"]
            arguments = Arguments.checked(seed, now, charges, clock)
            _fill(connection, owner_url, tokens, arguments, progress)
        counts = first(connection, named["counts"])
        return DemoSummary(found is None, **counts, seconds=time.monotonic() - started)


def load_rows(
    owner_url: str,
    tokens: Tokens,
    size: rows.Size,
    *,
    seed: int = SEED,
    now: datetime | None = None,
    elsewhere: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DemoSummary:
    """Fill an empty database with about `size.rows` charges over 120 days, for measuring.

    The same organizations and users for the same `seed` and `now` at every number of rows; the
    first organization makes a tenth of all charges, most make a few. Raises ConfigurationError for
    a database that is not empty, or not the bundled one unless `elsewhere`; InvalidInput or
    PermissionDenied.
    """
    _require_bundled(owner_url, elsewhere)
    started = time.monotonic()
    named = statements("load", "demo")
    with only_one(owner_url, options=rows.MEMORY) as connection:
        rows.require_empty(connection)
        clock = first(connection, named["terms"])["now"]
        arguments = Arguments.checked(seed, now, size.rows, clock)

        def finish() -> None:
            after = Jsonb({**plain(arguments), "rows": size.rows})
            connection.execute(named["mark"], {"action": "demo_loaded", "after": after})

        rows.store(
            connection,
            owner_url,
            seed,
            arguments.now,
            size,
            tokens.catalog(),
            finish,
            progress,
        )
        tokens.close_usage(anew=True)
        counts = first(connection, named["counts"])
        return DemoSummary(True, **counts, seconds=time.monotonic() - started)


def _require_bundled(owner_url: str, elsewhere: bool) -> None:
    if not elsewhere and not bundled(owner_url):
        raise ConfigurationError(
            "This is not the bundled database. Demo data are written there only when asked for."
        )


def _fill(
    connection: Owner,
    owner_url: str,
    tokens: Tokens,
    arguments: Arguments,
    progress: Callable[[int, int], None] | None,
) -> None:
    named = statements("load", "demo")
    catalog = tokens.catalog()
    block = first(connection, named["terms"])["top_up_block"]
    terms = Terms(catalog.features, catalog.allowances, catalog.token_types, block)
    begun = connection.execute(named["begun"]).fetchone()
    if begun is not None:
        arguments = Arguments.stored(begun["after"])
    seed, rhythm = arguments.seed, Rhythm(arguments.now, DAYS)
    known = world.people(seed, rhythm.now, legacy.COUNT, legacy.COUNT * legacy.MEMBERS)
    old = legacy.organizations(seed, rhythm.now, terms, len(known) + 1)
    after = {"after": Jsonb(plain(arguments))}
    if begun is None:
        with connection.transaction():
            bulk.store(connection, seed, rhythm, known, terms, arguments.charges, progress)
            legacy.adopt(connection, old)
            connection.execute(named["mark"], {"action": "demo_begun", **after})
        connection.execute(named["analyze"])
    scenes.start(connection, tokens, arguments.clock, "load")
    situations.make(connection, tokens, known, arguments.clock)
    if bundled(owner_url):
        legacy.create(owner_url, old)
    tokens.close_usage(anew=True)  # anew: the history lies before what a server has closed
    connection.execute(named["mark"], {"action": "demo_loaded", **after})
