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


def create_engine(url: sa.URL, pool_size: int, prepare: bool) -> sa.Engine:
    """An engine in autocommit with up to twice `pool_size` connections. Connects lazily."""
    # What the driver can read, whatever server, database or login say. A pooler in transaction mode
    # takes no startup options; behind it the login's own settings say the same.
    options = {"options": "-c timezone=UTC -c datestyle=ISO"} if prepare else {}
    engine = sa.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=_POOL_TIMEOUT_SECONDS,
        isolation_level="AUTOCOMMIT",
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
            "prepare_threshold": 5 if prepare else None,
            **options,
            "application_name": "tokenlib",
            **_KEEPALIVE,
        },
    )
    sa.event.listen(engine, "do_connect", _connect)
    sa.event.listen(engine, "checkout", _check)
    return engine


def _connect(_dialect: Any, _record: Any, words: list[Any], options: dict[str, Any]) -> Connection:
    return Connection.connect(*words, **options)


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
