"""The database: named SQL, transactions as somebody, what is asked again, and its errors as ours.

Writes are one function call each, in autocommit: one round trip, and the lock is held only inside
the server. Reads run in a transaction as the service, as staff or as a member; row-level security
decides what they see.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeVar, cast
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg import errors as pg

from tokenlib import pool
from tokenlib.errors import (
    BooksBroken,
    ConfigurationError,
    DatabaseUnavailable,
    InvalidInput,
    LoginRefused,
    NotMigrated,
    PermissionDenied,
    TokenlibError,
    UnknownOrganization,
)
from tokenlib.retry import ONCE, Retry

log = logging.getLogger("tokenlib")

SCHEMA_VERSION = "0001"
MIN_SERVER_VERSION = 150000

Row = dict[str, Any]
T = TypeVar("T")
# key: `authenticated`, as an API key.
Reader = Literal["tokenlib_service", "tokenlib_reader", "authenticated", "key"]
# What a lost reply means for a call. question: it charges nothing; repeatable: twice is the same as
# once; once: it may not be asked again.
Kind = Literal["question", "repeatable", "once"]

_UNKNOWN = (
    "It is unknown whether this was charged or done. Retry with the same idempotency key; a call"
    " without one cannot be repeated safely, so look into the usage log first."
)


# A refused connection has no SQLSTATE: the client library keeps it to itself and gives the server's
# sentence. One in another language is DatabaseUnavailable, with the sentence in it.
_REFUSED = re.compile(
    r'(database|role) ".*" does not exist|\w+ authentication failed for user ".*"'
    r'|role ".*" is not permitted to log in|permission denied for database ".*"'
    r"|no pg_hba\.conf entry for .*|no password supplied"
)
_CHECK_URL = "Correct the login, the password or the database in the database URL."


@cache
def statements(noun: str, folder: str = "queries") -> Mapping[str, str]:
    """The named statements of `sql/<folder>/<noun>.sql`, by the name in their `-- name:` line."""
    text = resources.files("tokenlib").joinpath(f"sql/{folder}/{noun}.sql").read_text("utf-8")
    parts = re.split(r"^-- name: *(\w+)\s*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (body.strip() for body in parts[2::2]), strict=True))


def as_uuid(value: UUID | str, field: str) -> UUID:
    """An id as UUID; InvalidInput names the field when it is none."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise InvalidInput(field, f"must be a UUID, not {value!r}") from None


def require_server(connection: psycopg.Connection[Any]) -> None:
    """Raise ConfigurationError when the server is older than tokenlib can use."""
    version = connection.info.server_version
    if version < MIN_SERVER_VERSION:
        raise ConfigurationError(
            f"The server is PostgreSQL {version // 10000};"
            f" tokenlib needs {MIN_SERVER_VERSION // 10000} or later."
        )


class Database:
    """A pool of connections to one migrated database. Close it when done."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        prepare: bool | None = None,
        retry: Retry = ONCE,
        revive: Callable[[], object] | None = None,
    ) -> None:
        """Raise ConfigurationError for a URL that SQLAlchemy cannot read. Connects lazily.

        `revive` is called when the server takes no connection, by one thread at a time.
        """
        try:
            self.url = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise ConfigurationError("The database URL is not a PostgreSQL URL.") from None
        self._engine = pool.create_engine(self.url, pool_size, prepare)
        self.retry = retry
        self._revive = revive
        self._reviving = threading.Lock()
        self._spread: bool | None = None  # over the nodes of a Citus; None: nobody has asked yet

    def close(self) -> None:
        """Close every pooled connection; from then on nothing is revived."""
        with self._reviving:
            self._revive = None
        self._engine.dispose()

    def spread(self) -> bool:
        """Whether the tables lie on the nodes of a Citus. The database is asked once."""
        if self._spread is None:
            self._spread = bool(self.rows(statements("system")["spread"])[0]["spread"])
        return self._spread

    def said(self, noun: str, question: str) -> str:
        """A named question, on a Citus as its planner can take it."""
        text = statements(noun)[question]
        return statements("citus").get(f"{noun}_{question}", text) if self.spread() else text

    def check(self) -> None:
        """Raise NotMigrated or ConfigurationError when this database cannot serve."""
        version = self._ask(_schema_version, self.retry.deadline, "question")
        if version is None or version < SCHEMA_VERSION:
            raise NotMigrated(
                f"The database is at schema version {version or 'none'}, this tokenlib needs"
                f" {SCHEMA_VERSION}. Run `tokenlib migrate`."
            )
        if version > SCHEMA_VERSION:
            raise NotMigrated(
                f"The database is at schema version {version}, newer than this tokenlib"
                f" ({SCHEMA_VERSION}). Install the newer tokenlib."
            )

    def call(self, statement: str, params: Mapping[str, Any], kind: Kind = "once") -> Row:
        """Run one statement of the write path in its own transaction; return its one row.

        It is asked again, with the same parameters, as far as its kind allows.
        """
        rows = self.call_all(statement, params, kind)
        if len(rows) != 1:
            raise BooksBroken("The database gave no answer to a call that always has one.")
        return rows[0]

    def call_all(self, statement: str, params: Mapping[str, Any], kind: Kind = "once") -> list[Row]:
        """Run one statement of the write path in its own transaction; return its rows.

        The psycopg connection beneath SQLAlchemy is taken for speed: one round trip, prepared.
        """

        return self.retry.run(
            lambda patience: self.once(statement, params, kind, patience),
            repeatable=kind != "once",
        )

    def once(
        self, statement: str, params: Mapping[str, Any], kind: Kind, patience: float
    ) -> list[Row]:
        """As `call_all`, in one attempt that waits `patience` seconds for its reply."""
        return self._ask(lambda connection: connection.rows(statement, params), patience, kind)

    def tuples(
        self, statement: str, params: Mapping[str, Any], patience: float
    ) -> list[tuple[Any, ...]]:
        """As `once`, for many rows."""
        return self._ask(lambda connection: connection.tuples(statement, params), patience, "once")

    def rows(
        self,
        statement: str,
        params: Mapping[str, Any] | None = None,
        *,
        reader: Reader = "tokenlib_service",
        user_id: UUID | None = None,
        prepare: bool | None = None,
    ) -> list[Row]:
        """Run one question as `reader` in one round trip; row-level security answers `user_id`.

        `prepare` None: when it was asked a few times.
        """
        become = None if reader == "tokenlib_service" else _become(reader, user_id)

        def attempt(_patience: float) -> list[Row]:
            if become is not None and self._spread is not False:
                with self._begun(self._connect(), reader, user_id) as opened:
                    driver = cast(pool.Connection, opened.connection.driver_connection)
                    return driver.asked(statement, params, prepare=prepare)
            return self._ask(
                lambda connection: connection.asked(statement, params, become, prepare=prepare),
                None,
                "question",
            )

        return self.retry.run(attempt, repeatable=True)

    @contextmanager
    def transaction(
        self, *, reader: Reader = "tokenlib_service", user_id: UUID | None = None
    ) -> Iterator[sa.Connection]:
        """A transaction as somebody: role and claims are set in it and end with it.

        What runs in it is not asked again; only its connection is.
        """
        opened = self.retry.run(lambda _patience: self._connect(), repeatable=True)
        with self._begun(opened, reader, user_id) as connection:
            yield connection

    @contextmanager
    def _begun(
        self, opened: sa.Connection, reader: Reader, user_id: UUID | None
    ) -> Iterator[sa.Connection]:
        try:
            with opened as connection, connection.begin():
                if reader != "tokenlib_service":
                    become, who = _become(reader, user_id)
                    became = connection.exec_driver_sql(become, who)
                    self._spread = bool(became.one().spread)
                    if self._spread:
                        claims = json.dumps({who["claim"]: who["user_id"]})
                        connection.exec_driver_sql(f"set local \"request.jwt.claims\" = '{claims}'")
                yield connection
        except (sa.exc.DBAPIError, psycopg.Error) as error:
            raise translate(error) from error

    def _connect(self) -> sa.Connection:
        return self._opened(
            self._engine.execution_options(isolation_level="READ COMMITTED").connect
        )

    def _opened(self, opening: Callable[[], T]) -> T:
        """What `opening` opens. Nothing was sent yet."""
        try:
            return opening()
        except sa.exc.TimeoutError as error:
            raise DatabaseUnavailable(
                "Every database connection is busy. Nothing was charged; try again."
            ) from error
        except (sa.exc.InvalidRequestError, sa.exc.DBAPIError, psycopg.Error) as error:
            ours = translate(error)
            if isinstance(ours, DatabaseUnavailable):
                self._bring_back()
            raise ours from error

    def _bring_back(self) -> None:
        # Whoever comes while another thread is at it asks again soon anyway.
        if not self._reviving.acquire(blocking=False):
            return
        try:
            if self._revive is not None:
                self._revive()
        except TokenlibError as error:
            log.error("The server could not be started again: %s", error)
        finally:
            self._reviving.release()

    def _ask(
        self, question: Callable[[pool.Connection], T], patience: float | None, kind: Kind
    ) -> T:
        connection, give_back = self._opened(self._borrow)
        connection.patience = patience
        try:
            return question(connection)
        except psycopg.Error as error:
            ours = translate(error)
            # While the connection stands the server has said what it is: rolled back.
            if isinstance(ours, DatabaseUnavailable) and kind != "question" and connection.closed:
                ours = DatabaseUnavailable(f"{ours.message.rstrip('.')}. {_UNKNOWN}", "unknown")
            raise ours from error
        finally:
            give_back()

    def _borrow(self) -> tuple[pool.Connection, Callable[[], None]]:
        return cast(pool.Pool, self._engine.pool).borrow()  # disposing makes another one


def _become(reader: Reader, user_id: UUID | None) -> tuple[str, dict[str, Any]]:
    who = {
        "role": "authenticated" if reader == "key" else reader,
        "claim": "tokenlib_api_key" if reader == "key" else "sub",
        "user_id": str(user_id) if user_id else None,
    }
    return statements("system")["become"], who


def _schema_version(connection: pool.Connection) -> str | None:
    require_server(connection)
    forgetful = connection.execute(statements("system")["settings_off"]).fetchall()
    if forgetful:
        names = " and ".join(name for (name,) in forgetful)
        raise ConfigurationError(
            f"The server runs with {names} off, so a crash can lose charges that were"
            f" confirmed. Set {names} to on, for the server, the database and the login."
        )
    found = connection.execute(statements("system")["schema_version"]).fetchone()
    return found[0] if found else None


def translate(error: BaseException | None) -> TokenlibError:
    """A driver error as ours. What it cannot place is DatabaseUnavailable: the answer is no."""
    if isinstance(error, sa.exc.DBAPIError):
        error = error.orig
    if isinstance(error, sa.exc.InvalidRequestError):
        # A new connection was dead before it was used, and the one after it too.
        return DatabaseUnavailable("The database closes every connection.")
    if not isinstance(error, psycopg.Error):
        return DatabaseUnavailable("The database did not answer.")
    message = error.diag.message_primary or ""
    match error:
        case pg.InvalidParameterValue() if error.diag.column_name:
            return InvalidInput(error.diag.column_name, message)
        # From another node of a Citus the column's name does not come along.
        case pg.InvalidParameterValue() if "function tokenlib." in (error.diag.context or ""):
            return InvalidInput("a value", message)
        case pg.LockNotAvailable() | pg.QueryCanceled() | pg.DeadlockDetected():
            return DatabaseUnavailable("The wallet is busy. Nothing was charged; try again.")
        case pg.InsufficientPrivilege():
            return PermissionDenied(f"The database refused: {message}.")
        case pg.UndefinedTable() | pg.UndefinedFunction() | pg.InvalidSchemaName():
            return NotMigrated("The database has no tokenlib tables. Run `tokenlib migrate`.")
        case pg.NumericValueOutOfRange():
            return InvalidInput("units", "make a cost that is too large")
        case (
            pg.InvalidCatalogName() | pg.InvalidPassword() | pg.InvalidAuthorizationSpecification()
        ):
            return LoginRefused(f"The database refused the connection: {message}. {_CHECK_URL}")
        case psycopg.IntegrityError():
            return BooksBroken(f"{message}.")
    if error.sqlstate == "TK403":
        return PermissionDenied(message)
    if error.sqlstate == "TK404":
        return UnknownOrganization(UUID(message))
    if error.sqlstate is not None and error.sqlstate.startswith("TK"):
        return BooksBroken(message)
    detail = message or next(iter(str(error).strip().splitlines()), "no answer")
    refused = _REFUSED.search(detail)
    if error.sqlstate is None and refused:
        return LoginRefused(f"The database refused the connection: {refused[0]}. {_CHECK_URL}")
    return DatabaseUnavailable(f"The database did not answer: {detail}")
