"""The facade: every operation on one object, and `connect` to get it."""

from __future__ import annotations

import atexit
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from types import ModuleType, TracebackType

from tokenlib import inputs, migrations, offbook
from tokenlib.aio import AsyncTokens
from tokenlib.audit import AuditVerbs
from tokenlib.config import Settings, sqlalchemy_url
from tokenlib.db import Database
from tokenlib.domain import Mode
from tokenlib.errors import ConfigurationError
from tokenlib.gate import GateVerbs
from tokenlib.keys import KeyVerbs
from tokenlib.plans import PlanVerbs
from tokenlib.previews import PreviewVerbs
from tokenlib.retry import Retry
from tokenlib.rollups import RollupVerbs
from tokenlib.staff import StaffVerbs

EMBEDDED_DATABASE = "tokenlib"

# While a switch lets calls through anyway, nobody waits long for the books.
_SWITCHED_DEADLINE_SECONDS = 1.0


class Tokens(GateVerbs, PlanVerbs, StaffVerbs, KeyVerbs, PreviewVerbs, AuditVerbs, RollupVerbs):
    """The gate on one database. Thread-safe. Close it, or use it as a context manager."""

    def __init__(
        self,
        database: Database,
        override: Mode | None = None,
        held: ExitStack | None = None,
        pepper: str | None = None,
    ) -> None:
        super().__init__(database, override)
        self.pepper = pepper
        self._held = held or ExitStack()
        self._held.callback(database.close)
        if offbook.lets_through(override):
            self.log.warning(
                "TOKENLIB_SWITCH=%s: charges are let through and no balance moves", override
            )

    @cached_property
    def aio(self) -> AsyncTokens:
        """The same verbs, awaitable."""
        aio = AsyncTokens(self)
        self._held.callback(aio.close)
        return aio

    def close(self) -> None:
        """Close the connections, and the bundled server if nobody else uses it."""
        atexit.unregister(self.close)
        self._held.close()

    def __enter__(self) -> Tokens:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def connect(
    url: str | None = None, *, settings: Settings | None = None, deadline: float | None = None
) -> Tokens:
    """The gate on the database at `url`, else TOKENLIB_DATABASE_URL, else the bundled PostgreSQL.

    The bundled server is started and migrated, and started again should it die; a database of
    yours must be migrated already (`tokenlib migrate`). What is safe to ask again is asked until
    `deadline` seconds are over, else TOKENLIB_DEADLINE, else 5. Raises ConfigurationError,
    LoginRefused, NotMigrated or DatabaseUnavailable; while TOKENLIB_SWITCH lets calls through, a
    database that does not answer is no error.
    """
    settings = settings or Settings.from_env()
    switched = offbook.lets_through(settings.switch)
    deadline = settings.deadline if deadline is None else inputs.deadline(deadline)
    retry = Retry(min(deadline, _SWITCHED_DEADLINE_SECONDS) if switched else deadline)
    url = sqlalchemy_url(url) if url else settings.sqlalchemy_url
    revive = None
    with ExitStack() as held:
        if url is None:
            url = start_embedded(settings, held)
            revive = partial(_embedded().revive, settings.data_dir)
        database = Database(
            url,
            pool_size=settings.pool_size,
            prepare=settings.prepare,
            retry=retry,
            revive=revive,
        )
        held.callback(database.close)
        try:
            database.check()
        except offbook.CANNOT_ANSWER as error:
            if not switched:
                raise
            Tokens.log.warning("starting without the database: %s", error)
        tokens = Tokens(database, settings.switch, held.pop_all(), settings.key_pepper)
        tokens.shared.enabled = settings.shared_commit
    atexit.register(tokens.close)
    if switched:
        with suppress(*offbook.CANNOT_ANSWER):
            tokens.catalog()  # gives what is let through without the database its cost
    return tokens


def start_embedded(settings: Settings, held: ExitStack) -> str:
    """Start or join the bundled server while `held` is open, migrate it; return the gate's URL."""
    server = held.enter_context(_embedded().running(settings.data_dir))
    superuser = server.url("postgres", "postgres")
    migrations.create_roles(superuser)
    migrations.create_database(superuser, EMBEDDED_DATABASE)
    migrations.upgrade(server.url(EMBEDDED_DATABASE, "tokenlib_owner"))
    return str(server.url(EMBEDDED_DATABASE, "tokenlib_service"))


def _embedded() -> ModuleType:
    try:
        from tokenlib import embedded
    except ImportError:
        raise ConfigurationError(
            "TOKENLIB_DATABASE_URL is not set and the bundled PostgreSQL is not installed."
            " Set the variable, or install tokenlib-ai[embedded]."
        ) from None
    return embedded
