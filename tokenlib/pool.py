"""The engine: pooled connections that notice a dead server and do not wait for ever."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.abc import RV, PQGen
from sqlalchemy.pool import QueuePool

_CONNECT_TIMEOUT_SECONDS = 5
_POOL_TIMEOUT_SECONDS = 1
_CANCEL_TIMEOUT_SECONDS = 1.0
_INTERVAL_SECONDS = 0.1
_PREPARE_THRESHOLD = 5
# What the driver can read, whatever server, database or login say. Not startup options, which a
# pooler in transaction mode refuses.
_READABLE = {"TimeZone": "UTC", "DateStyle": "ISO"}
# A peer that vanished without a word is noticed on a TCP connection, whoever waits for it.
_KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}


class Connection(psycopg.Connection[Any]):
    """Waits for a reply no longer than `patience` seconds; None: as long as the server works."""

    patience: float | None = None

    def wait(
        self,
        gen: PQGen[RV],
        interval: float = _INTERVAL_SECONDS,
        timeout: float | None = None,
    ) -> RV:
        """As psycopg's. When patience ends the statement is cancelled, which settles its outcome;
        a server that does not even answer that loses the connection."""
        if self.patience is not None:
            gen = self._patient(gen, time.monotonic() + self.patience)
        # Not every psycopg 3.3 knows the last argument.
        limit = {} if timeout is None else {"timeout": timeout}
        return super().wait(gen, interval, **limit)

    def _patient(self, gen: PQGen[RV], give_up_at: float) -> Generator[Any, Any, RV]:
        cancelled = False
        try:
            state = next(gen)
            while True:
                ready = yield state
                if not ready and time.monotonic() >= give_up_at:
                    if cancelled:
                        self.close()
                        raise psycopg.OperationalError("no reply in time")
                    cancelled = True
                    with suppress(psycopg.Error):
                        self.cancel_safe(timeout=_CANCEL_TIMEOUT_SECONDS)
                    give_up_at = time.monotonic() + _CANCEL_TIMEOUT_SECONDS
                state = gen.send(ready)
        except StopIteration as end:
            result: RV = end.value
            return result


def create_engine(url: sa.URL, pool_size: int, prepare: bool | None) -> sa.Engine:
    """An engine in autocommit with up to twice `pool_size` connections. Connects lazily.

    `prepare` says whether statements are prepared; None: unless there is a pooler in between.
    """
    engine = sa.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=_POOL_TIMEOUT_SECONDS,
        isolation_level="AUTOCOMMIT",
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
            "prepare_threshold": None if prepare is False else _PREPARE_THRESHOLD,
            "application_name": "tokenlib",
            **_KEEPALIVE,
        },
    )

    def connect(_dialect: Any, _record: Any, words: list[Any], options: dict[str, Any]) -> Any:
        return _connect(words, options, detect=prepare is None)

    sa.event.listen(engine, "do_connect", connect)
    sa.event.listen(engine, "checkout", _check)
    return engine


def _connect(words: list[Any], options: dict[str, Any], *, detect: bool) -> Connection:
    connection = Connection.connect(*words, **options)
    try:
        connection.autocommit = True
        connection.patience = _CONNECT_TIMEOUT_SECONDS
        for name, value in _READABLE.items():
            # The server has said already what it is, and a pooler keeps it for each of its clients.
            if (connection.info.parameter_status(name) or "").partition(",")[0] != value:
                connection.execute(f"set {name} = '{value}'".encode(), prepare=False)
        if detect and _behind_a_pooler(connection):
            # The next transaction may be another server process's, which has not prepared it.
            connection.prepare_threshold = None
    except BaseException:
        connection.close()
        raise
    return connection


def _behind_a_pooler(connection: Connection) -> bool:
    """Whether the server process that works is another than the one that was announced."""
    [pid] = connection.execute("select pg_backend_pid()", prepare=False).fetchone() or [None]
    return bool(pid != connection.info.backend_pid)


def _check(connection: Connection, _record: Any, _proxy: Any) -> None:
    """Before anything is sent, see whether the server has closed the connection meanwhile."""
    connection.patience = None
    try:
        # Reads what has arrived and does not wait: the server's last words first, then the end.
        connection.pgconn.consume_input()
        connection.pgconn.consume_input()
    except psycopg.OperationalError as error:
        # The server went away: the other connections of the pool are as old and as dead.
        raise sa.exc.InvalidatePoolError("the server closed the connection") from error
