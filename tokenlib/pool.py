"""The engine: pooled connections that notice a dead server and do not wait for ever."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import cache, cached_property, partial
from itertools import count
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from psycopg.abc import RV, Buffer, PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.generators import execute
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import dict_row
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool
from sqlalchemy.util.queue import Empty

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

    def stands(self) -> bool:
        """Whether the server has not closed it meanwhile, seen before anything is sent."""
        self.patience = None
        try:
            # Reads what has arrived and does not wait: the server's last words first, then the end.
            self.pgconn.consume_input()
            self.pgconn.consume_input()
        except psycopg.OperationalError:
            return False
        return True

    def rows(self, statement: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Run a statement in autocommit and return its rows, by the names of their columns."""
        kept = self._kept(statement)
        values = kept.ask(params)
        return [dict(zip(kept.names, row, strict=True)) for row in values]

    def tuples(self, statement: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """As `rows`, by the places of their columns."""
        return self._kept(statement).ask(params)

    def _kept(self, statement: str) -> _Statement:
        if (kept := self._statements.get(statement)) is None:
            kept = self._statements[statement] = _Statement(self, statement)
        return kept

    def asked(
        self,
        statement: str,
        params: Mapping[str, Any] | None,
        first: tuple[str, Mapping[str, Any]] | None = None,
        *,
        prepare: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Run a question and return its rows; with `first`, what has to be done before it.

        Both are sent at once and are one transaction, also in autocommit: the server begins it with
        the first and ends it after the last, and does not come to the second when the first fails.
        """
        with self.cursor(row_factory=dict_row) as cursor:
            with self.pipeline() if first else nullcontext():
                if first:
                    self.execute(*first)
                cursor.execute(statement, params, prepare=prepare)
            return cursor.fetchall()

    @cached_property
    def numbers(self) -> Iterator[int]:
        """Of the statements that were prepared."""
        return count()

    @cached_property
    def _statements(self) -> dict[str, _Statement]:
        return {}

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


class Pool(QueuePool):
    """SQLAlchemy's pool, from which a single call borrows for a tenth of a checkout's time.

    What stands idle and in order is lent as it is. Everything else goes SQLAlchemy's own way: a new
    connection, one that the server has closed, waiting for a free one.
    """

    def borrow(self) -> tuple[Connection, Callable[[], None]]:
        """A connection in autocommit, and what gives it back. Raises what `connect` raises."""
        with suppress(Empty):
            record = self._pool.get(block=False)
            idle = cast(Connection | None, record.dbapi_connection)
            if idle is not None and idle.stands():
                return idle, partial(self._take_back, record, idle)
            self._do_return_conn(record)
        pooled = self.connect()
        opened = cast(Connection, pooled.driver_connection)
        return opened, partial(_close, pooled, opened)

    def _take_back(self, record: ConnectionPoolEntry, connection: Connection) -> None:
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            record.invalidate()
        self._do_return_conn(record)


def _close(pooled: PoolProxiedConnection, connection: Connection) -> None:
    if connection.closed:
        pooled.invalidate()
    pooled.close()


class _Statement:
    """A statement of the write path on one connection.

    What is asked again and again is prepared and goes straight to libpq: a cursor takes twice the
    client's time, as much as everything else around a charge.
    """

    names: Sequence[str] = ()

    def __init__(self, connection: Connection, statement: str) -> None:
        self._connection, self._statement = connection, statement
        self._cursor = connection.cursor()
        self._asked = 0
        self._transformer = Transformer(connection)
        self._sql, self._order = _numbered(statement)
        self._formats = [PyFormat.AUTO] * len(self._order)
        self._prepared: dict[tuple[int, ...], bytes] = {}  # by the types of the parameters

    def ask(self, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Its rows; `names` are those of their columns."""
        threshold = self._connection.prepare_threshold
        if threshold is None or self._asked < threshold:
            rows = self._cursor.execute(self._statement, params).fetchall()
            self.names = [column.name for column in self._cursor.description or ()]
            self._asked += 1  # with an answer: what was refused names no columns
            return rows
        values = self._transformer.dump_sequence(
            [params[name] for name in self._order], self._formats
        )
        try:
            result = self._answered(values)
        except (psycopg.errors.InvalidSqlStatementName, psycopg.errors.FeatureNotSupported):
            # Nothing was run: after a rollback psycopg has the server forget all that is prepared,
            # and after a migration what was prepared may have other columns.
            self._prepared.clear()
            self._asked = 0
            return self.ask(params)
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)

    def _answered(self, values: Sequence[Buffer | None]) -> PGresult:
        pgconn, types = self._connection.pgconn, self._transformer.types or ()
        if (prepared := self._prepared.get(types)) is None:
            # Numbered as psycopg's own: where another client shares the server's process it fails.
            prepared = f"tokenlib_{next(self._connection.numbers)}".encode()
            pgconn.send_prepare(prepared, self._sql, types)
            self._answer(ExecStatus.COMMAND_OK)
            self._prepared[types] = prepared
        pgconn.send_query_prepared(prepared, values, self._transformer.formats)
        return self._answer(ExecStatus.TUPLES_OK)

    def _answer(self, expected: ExecStatus) -> PGresult:
        result: PGresult
        [result] = self._connection.wait(execute(self._connection.pgconn))
        if result.status != expected:
            raise psycopg.errors.error_from_result(result, self._connection.info.encoding)
        return result


@cache
def _numbered(statement: str) -> tuple[bytes, list[str]]:
    """A statement as the server takes it, and the names of its parameters in their order."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement)
    return numbered.replace("%%", "%").encode(), names


def create_engine(url: sa.URL, pool_size: int, prepare: bool | None) -> sa.Engine:
    """An engine in autocommit with up to twice `pool_size` connections. Connects lazily.

    `prepare` says whether statements are prepared; None: unless there is a pooler in between.
    """
    engine = sa.create_engine(
        url,
        poolclass=Pool,
        pool_use_lifo=True,  # what was used last is warmest
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
    if not connection.stands():
        # The server went away: the other connections of the pool are as old and as dead.
        raise sa.exc.InvalidatePoolError("the server closed the connection")
