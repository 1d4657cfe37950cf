"""Log rows by the million: the same organizations and users at every size, for measuring.

Played inside the server, slice by slice of the organizations on two connections, and then stored in
one transaction: all or nothing. Indexes of the books are dropped and built again inside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from queue import Empty, SimpleQueue
from typing import Any

import psycopg
from psycopg import ClientCursor, sql
from psycopg.rows import DictRow

from tokenlib.db import statements
from tokenlib.demo import bulk, demand, people
from tokenlib.demo.cast import PERSONAS
from tokenlib.demo.moments import DAY
from tokenlib.demo.owner import Owner, connected, first
from tokenlib.demo.rhythm import Rhythm
from tokenlib.demo.roles import DAYS, PERIOD
from tokenlib.domain import Catalog
from tokenlib.errors import ConfigurationError

ORGANIZATIONS = 100_000
USERS = 400_000
_WORKERS = 2
_SLICE_CHARGES = 250_000
_SLICE_ORGANIZATIONS = 2_000
MEMORY = "-c work_mem=128MB -c maintenance_work_mem=512MB -c statement_timeout=0"
_SLICE = ("empty_slice", "charges", "periods", "played", "happened", "keep", "keep_rest")

Progress = Callable[[int, int], None]
Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is loaded."""

    rows: int
    organizations: int = ORGANIZATIONS
    users: int = USERS


def require_empty(connection: Owner) -> None:
    """Raise ConfigurationError where somebody has organizations already."""
    if first(connection, statements("rows", "demo")["occupied"])["occupied"]:
        raise ConfigurationError(
            "This database holds organizations already. Rows are loaded into an empty one."
        )


def store(
    connection: Owner,
    url: str,
    seed: int,
    now: datetime,
    size: Size,
    catalog: Catalog,
    finish: Callable[[], None],
    progress: Progress | None,
) -> None:
    """Play and store; `finish` runs in the same transaction. `progress` counts rows three times:
    played, stored, indexed."""
    params = _params(seed, now, size, catalog)
    named = statements("rows", "demo")
    moved = _Moved(3 * size.rows, progress)
    connection.execute(named["clear"])
    try:
        connection.execute(named["prepare"])
        connection.execute(named["helpers"])
        _run(connection, named["organizations"], params)
        cut = {"slice": _SLICE_CHARGES, "most": _SLICE_ORGANIZATIONS}
        slices = _run(connection, named["slices"], cut).fetchall()
        _play(url, params, slices, moved)
        connection.execute(named["by_time"])
        with connection.transaction():
            indexes = connection.execute(named["indexes"]).fetchall()
            for index in indexes:
                connection.execute(_drop(index))
            _run(connection, named["store_people"], params)
            connection.cursor().executemany(named["store_staff"], bulk.staff())
            connection.execute(named["store_wallets"])
            for day in range(DAYS):
                since = params["start"] + day * DAY
                bounds = {"since": since, "until": since + DAY}
                moved.by(_run(connection, named["store_log"], bounds).rowcount)
            for index in indexes:
                connection.execute(_create(index))
                moved.by(size.rows // len(indexes))
            finish()
    finally:
        with suppress(psycopg.Error):  # the next load would do it too
            connection.execute(named["clear"])
    connection.execute(named["vacuum"])
    moved.to_the_end()


def _play(url: str, params: Params, slices: list[dict[str, Any]], moved: _Moved) -> None:
    """Play the slices on connections of their own; the first failure ends all of them."""
    waiting: SimpleQueue[dict[str, Any]] = SimpleQueue()
    for one in slices:
        waiting.put(one)
    with ExitStack() as held, ThreadPoolExecutor(_WORKERS) as pool:
        players = [held.enter_context(connected(url, options=MEMORY)) for _ in range(_WORKERS)]
        running = {pool.submit(_player, player, waiting, params, moved) for player in players}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for ended in done:
                    ended.result()
        finally:
            with suppress(Empty):
                while True:
                    waiting.get_nowait()
            for player in players:
                player.cancel_safe()


def _player(
    connection: Owner, waiting: SimpleQueue[dict[str, Any]], params: Params, moved: _Moved
) -> None:
    """Play slices as long as there are any."""
    named = statements("rows", "demo")
    connection.execute(named["helpers"])
    with suppress(Empty):
        while True:
            one = waiting.get_nowait()
            bounds = {"first_number": one["first"], "last_number": one["last"]}
            with connection.transaction():
                for step in _SLICE:
                    _run(connection, named[step], {**params, **bounds})
            moved.by(one["charges"])


class _Moved:
    """How far it is, told by several threads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress
        self._lock = threading.Lock()

    def by(self, rows: int) -> None:
        with self._lock:
            self._done = min(self._done + rows, self._total)
            if self._progress is not None:
                self._progress(self._done, self._total)

    def to_the_end(self) -> None:
        self.by(self._total)


def _params(seed: int, now: datetime, size: Size, catalog: Catalog) -> Params:
    rhythm = Rhythm(now, DAYS)
    features = [catalog.features[name] for name in demand.TASTE]
    types = list(catalog.token_types)
    member = PERSONAS["member"]
    return {
        "seed": seed,
        "now": rhythm.now,
        "start": rhythm.now - DAYS * DAY,
        "day": DAY,
        "period": PERIOD,
        "hours": [0.0, *rhythm.shares()][:-1],
        "rows": size.rows,
        "organizations": size.organizations,
        "extra_users": size.users - size.organizations,
        "first": list(people.FIRST),
        "second": list(people.SECOND),
        "given": list(people.GIVEN),
        "features": [feature.feature for feature in features],
        "costs": [feature.cost for feature in features],
        "kinds": [types.index(feature.token_type) + 1 for feature in features],
        "tastes": [0.0, *accumulate(share / 100 for share in demand.TASTE.values())][:-1],
        "types": types,
        "admin": str(PERSONAS["admin"].user_id),
        "member": member.user_id,
        "member_organization": member.organization_id,
    }


def _run(connection: Owner, statement: str, params: Params) -> ClientCursor[DictRow]:
    """Several statements with the same parameters, which the client puts in."""
    return ClientCursor(connection).execute(statement, params)


def _drop(index: dict[str, Any]) -> sql.Composed:
    table, name = sql.Identifier("public", index["table"]), sql.Identifier(index["name"])
    if index["constraint"]:
        return sql.SQL("alter table {} drop constraint {}").format(table, name)
    return sql.SQL("drop index {}").format(sql.Identifier("public", index["name"]))


def _create(index: dict[str, Any]) -> sql.Composed:
    if not index["constraint"]:
        return sql.SQL(index["definition"]).format()
    table, name = sql.Identifier("public", index["table"]), sql.Identifier(index["name"])
    return sql.SQL("alter table {} add constraint {} {}").format(
        table, name, sql.SQL(index["definition"])
    )
