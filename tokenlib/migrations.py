"""Bring a database to this tokenlib's schema, or print the SQL that would.

The versions live in `sql/migrations`; each runs frozen `.sql` files. Roles are a step of their own,
since managed servers create them in other ways.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TypeVar

import psycopg
import sqlalchemy as sa
from alembic import command, op
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import errors as pg

from tokenlib.db import SCHEMA_VERSION, require_server, statements, translate
from tokenlib.errors import ConfigurationError, DatabaseUnavailable, PermissionDenied, TokenlibError

_SQL = Path(str(resources.files("tokenlib"))) / "sql"
# Serializes two migrations of one database; any fixed number does.
_MIGRATION_LOCK = 7_305_402
# A migration that waits for a table makes every charge behind it wait too: so it waits shortly,
# steps back, and comes again. Shorter than deadlock_timeout: it is never the charge that ends.
LOCK_TIMEOUT_MILLISECONDS = 500
_OTHER_MIGRATION_MILLISECONDS = 120_000
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)

_Result = TypeVar("_Result")


def run_file(name: str) -> None:
    """Run or print one frozen file of `sql/migrations`. For Alembic versions only."""
    text = (_SQL / "migrations" / name).read_text("utf-8")
    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(f"-- {name}\n{text}")
        return
    connection = context.connection
    if connection is None:
        raise ConfigurationError("A migration needs a connection.")
    run_script(connection, text)


def run_script(connection: sa.Connection, text: str) -> None:
    """Run SQL as it stands: several statements, and no parameters to look for in `%` and `:`."""
    cursor = connection.connection.cursor()
    cursor.execute(text)
    cursor.close()


def roles_sql() -> str:
    """The roles, idempotent, for someone with CREATEROLE to apply by hand."""
    return (_SQL / "roles.sql").read_text("utf-8")


def citus_sql() -> str:
    """What spreads a migrated database over the nodes of a Citus cluster; safe to run twice."""
    return (_SQL / "citus.sql").read_text("utf-8")


def upgrade_sql() -> str:
    """Everything that :func:`upgrade` would run on an empty database, as one script."""
    output = io.StringIO()
    command.upgrade(_config(output), "head", sql=True)
    return output.getvalue()


def create_roles(url: str) -> None:
    """Create the roles that are missing. Needs a login with CREATEROLE."""
    with _connect(url) as connection:
        # Straight to the driver, which then also has to commit.
        connection.connection.cursor().execute(roles_sql())
        connection.connection.commit()


def create_database(url: str, name: str) -> None:
    """Create a database that belongs to tokenlib_owner, unless it is there. `name` is ours."""
    with _connect(url) as connection:
        found = connection.exec_driver_sql(
            "select from pg_catalog.pg_database where datname = %(name)s", {"name": name}
        )
        if found.first() is None:
            connection.rollback()
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(
                f'create database "{name}" owner tokenlib_owner'
            )


def upgrade(url: str) -> bool:
    """Migrate the database at `url`, as its owner, in one transaction. True if anything changed.

    May run while charges are written: it waits for a table at most half a second, then steps back
    and tries again. Raises ConfigurationError when the roles are missing, the server is too old,
    the old system's tables are there or the database was migrated by a newer tokenlib, and
    DatabaseUnavailable when the tables stayed in use.
    """
    return in_transaction(url, _upgrade)


def downgrade(url: str, target: str) -> bool:
    """Take the database at `url` back to an earlier schema version. True if anything changed.

    For the way back to an older tokenlib, before that is installed; as patient as :func:`upgrade`.
    Raises ConfigurationError for a version that this tokenlib does not know, or that lies ahead.
    """
    return in_transaction(url, lambda connection: _downgrade(connection, target))


def in_transaction(url: str, work: Callable[[sa.Connection], _Result]) -> _Result:
    """Do `work` on the schema as the owner, alone; it commits. What it raises undoes all of it.

    Where a table is in use it is undone and done again, a few times. Raises DatabaseUnavailable
    when the table stayed in use.
    """
    for pause in (*PAUSES_SECONDS, None):
        try:
            with _connect(url) as connection:
                _prepare(connection)
                return work(connection)
        except _TableInUse as error:
            if pause is None:
                raise DatabaseUnavailable(error.message) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def upgrade_within(connection: sa.Connection) -> None:
    """Run every version that is missing, in the caller's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def version(connection: sa.Connection) -> str | None:
    """The schema version of the database; None when it has none."""
    context = MigrationContext.configure(connection, opts={"version_table_schema": "tokenlib"})
    return context.get_current_revision()


def create_schema(connection: sa.Connection) -> None:
    """Create our schema unless it is there."""
    # Not `if not exists`: that asks for the right to create one even where there is one.
    if connection.exec_driver_sql("select to_regnamespace('tokenlib')").scalar() is None:
        connection.exec_driver_sql("create schema tokenlib")


def _upgrade(connection: sa.Connection) -> bool:
    found = version(connection)
    if found == SCHEMA_VERSION:
        return False
    if found is not None and found > SCHEMA_VERSION:
        raise ConfigurationError(
            f"The database is at schema version {found}, newer than this tokenlib"
            f" ({SCHEMA_VERSION}). Install the newer tokenlib."
        )
    if found is None and connection.exec_driver_sql(statements("system")["old_tables"]).scalar():
        raise ConfigurationError(
            "The tables of the old token system are there. Look with `tokenlib adopt --dry-run`,"
            " then take them in with `tokenlib adopt`."
        )
    create_schema(connection)
    upgrade_within(connection)
    connection.commit()
    return True


def _downgrade(connection: sa.Connection, target: str) -> bool:
    found = version(connection)
    config = _config()
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if found == target:
        return False
    if found not in known or target not in known or found < target:
        raise ConfigurationError(
            f"The database is at schema version {found or 'none'}, and there is no way back from it"
            f" to {target}. This tokenlib knows {', '.join(sorted(known))}."
        )
    config.attributes["connection"] = connection
    command.downgrade(config, target)
    connection.commit()
    return True


def _prepare(connection: sa.Connection) -> None:
    """Check server and roles; wait for whoever else migrates; then wait for nobody for long."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise ConfigurationError("tokenlib needs the psycopg driver: postgresql+psycopg://…")
    require_server(driver)
    _require_roles(connection)
    connection.exec_driver_sql(f"set local lock_timeout = {_OTHER_MIGRATION_MILLISECONDS}")
    try:
        connection.exec_driver_sql(
            "select pg_advisory_xact_lock(%(lock)s)", {"lock": _MIGRATION_LOCK}
        )
    except sa.exc.DBAPIError as error:
        if isinstance(error.orig, pg.LockNotAvailable):
            raise DatabaseUnavailable(
                "Another migration of this database is running and did not end in time. Wait for"
                " it, then migrate again."
            ) from error
        raise
    connection.exec_driver_sql(f"set local lock_timeout = {LOCK_TIMEOUT_MILLISECONDS}")


def _require_roles(connection: sa.Connection) -> None:
    wanted = {"tokenlib_service", "tokenlib_reader", "authenticated", "anon"}
    found = connection.exec_driver_sql("select rolname from pg_catalog.pg_roles").scalars()
    missing = sorted(wanted - set(found))
    if missing:
        raise ConfigurationError(
            f"The roles {', '.join(missing)} do not exist. Apply `tokenlib migrate --roles` as a"
            " login that may create roles, then migrate again."
        )


def _config(output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(_SQL / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _failure(error: BaseException | None) -> TokenlibError:
    if isinstance(error, pg.DuplicateTable | pg.DuplicateObject | pg.DuplicateFunction):
        # Not ours: what tokenlib makes itself is known by its version.
        return ConfigurationError(f"Nothing was migrated: {error.diag.message_primary}.")
    if isinstance(error, pg.LockNotAvailable | pg.DeadlockDetected):
        return _TableInUse(
            "Nothing was changed: another session uses a table that has to change, and did not"
            " leave it in time. End the oldest transaction (pg_stat_activity), or try later."
        )
    if isinstance(error, pg.InsufficientPrivilege):
        return PermissionDenied(
            f"The database refused: {error.diag.message_primary}. Migrations run as tokenlib_owner:"
            " name that login in TOKENLIB_MIGRATION_URL or --url."
        )
    return translate(error)


class _TableInUse(TokenlibError):
    """Another session holds a lock on a table; another attempt may find it free."""


@contextmanager
def _connect(url: str) -> Iterator[sa.Connection]:
    """One connection, one transaction; driver errors become ours."""
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError):
        raise ConfigurationError("The database URL is not a PostgreSQL URL.") from None
    try:
        with engine.connect() as connection:
            yield connection
    except sa.exc.DBAPIError as error:
        raise _failure(error.orig) from error
    except psycopg.Error as error:
        raise _failure(error) from error
    finally:
        engine.dispose()
