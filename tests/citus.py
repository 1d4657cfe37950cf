"""The fixtures of tokenlib.testing on a Citus: a coordinator and two workers, made for the run.

Asked for by TOKENLIB_TEST_CITUS, with the programs of a PostgreSQL that has Citus 13 in
TOKENLIB_TEST_POSTGRES: `make test-citus`. A test's database lies on all three servers.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import resources

import psycopg
import pytest

from tokenlib import embedded, migrations
from tokenlib.cluster import PORT, Cluster
from tokenlib.testing import TestDatabase, postgres_programs, token_clock, tokens

__all__ = ["token_clock", "token_database", "token_server", "tokens"]

TEMPLATE = "tokenlib_template"
_WORKERS = 2
_LEAVE = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s"
_nodes: list[embedded.Embedded] = []


@contextmanager
def _node() -> Iterator[embedded.Embedded]:
    """A server that has loaded Citus, reached by its socket alone."""
    with embedded.temporary(postgres_programs()) as server:
        with _root(server) as connection:
            connection.execute("alter system set shared_preload_libraries = 'citus'")
            connection.execute("alter system set max_prepared_transactions = 400")
        cluster = Cluster(server.data_dir, postgres_programs())
        cluster.ensure_stopped()
        cluster.ensure_running()
        yield server


@contextmanager
def nodes(*, clock: bool) -> Iterator[list[embedded.Embedded]]:
    """Coordinator and workers, with a migrated and distributed template database on every node.

    With `clock` it has that of the tests.
    """
    with ExitStack() as held:
        made = [held.enter_context(_node()) for _ in range(1 + _WORKERS)]
        coordinator, *workers = made
        for node in made:
            with _root(node) as connection:
                connection.execute(f'create database "{TEMPLATE}"')
            with _root(node, TEMPLATE) as connection:
                connection.execute("create extension citus")
        with _root(coordinator, TEMPLATE) as connection:
            add = "select {}(%s, %s)"
            connection.execute(add.format("citus_set_coordinator_host"), _address(coordinator))
            for worker in workers:
                connection.execute(add.format("citus_add_node"), _address(worker))
            connection.execute(migrations.roles_sql().encode())
            connection.execute(f'alter database "{TEMPLATE}" owner to tokenlib_owner')
        migrations.upgrade(coordinator.url(TEMPLATE, "tokenlib_owner"))
        if clock:
            with TestDatabase(coordinator, TEMPLATE).connect() as connection:
                connection.execute(_clock())
        with _root(coordinator, TEMPLATE) as connection:
            if clock:
                connection.execute("select create_reference_table('tokenlib.test_clock')")
                for role in ("tokenlib_owner", "tokenlib_service"):  # their clock is a table here
                    connection.execute(
                        f"alter role {role} set citus.allow_nested_distributed_execution = on"
                    )
            for _ in range(2):  # safe to run twice
                connection.execute(migrations.citus_sql().encode())
        yield made


@pytest.fixture(scope="session")
def token_server() -> Iterator[embedded.Embedded]:
    """The coordinator of all tests."""
    with nodes(clock=True) as made:
        _nodes[:] = made
        yield made[0]


@pytest.fixture
def token_database(token_server: embedded.Embedded) -> Iterator[TestDatabase]:
    """A fresh migrated and distributed database for one test."""
    with fresh(token_server) as database:
        yield database


@contextmanager
def fresh(token_server: embedded.Embedded) -> Iterator[TestDatabase]:
    """A copy of the template on every node."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    for node in _nodes:
        with _root(node) as connection:
            # The maintenance of Citus looks into every database, also into a template.
            connection.execute(f'alter database "{TEMPLATE}" allow_connections false')
            connection.execute(_LEAVE, [TEMPLATE])
            connection.execute(f'create database "{name}" template "{TEMPLATE}" strategy file_copy')
            connection.execute(f'alter database "{name}" owner to tokenlib_owner')
    yield TestDatabase(token_server, name)
    for node in _nodes:
        with _root(node) as connection:
            connection.execute(f'alter database "{name}" allow_connections false')
            for _ in range(20):  # the maintenance of Citus comes back once or twice
                connection.execute(_LEAVE, [name])
                with suppress(psycopg.errors.ObjectInUse):
                    connection.execute(f'drop database "{name}" with (force)')
                    break
            else:
                pytest.fail(f"The database {name} stays in use.")


@contextmanager
def on_one_node(spread: TestDatabase) -> Iterator[TestDatabase]:
    """The same rows in a plain database of the coordinator, where nothing is known of a Citus."""
    twin = TestDatabase(spread.server, f"{spread.name}_twin")
    with _root(spread.server) as connection:
        connection.execute(f'create database "{twin.name}" owner tokenlib_owner')
    try:
        migrations.upgrade(twin.url("tokenlib_owner"))
        with _root(spread.server, twin.name) as to, _root(spread.server, spread.name) as source:
            to.execute(
                f'alter role tokenlib_service in database "{twin.name}"'
                " set citus.propagate_set_commands = 'none'"
            )
            with twin.connect() as owner:
                owner.execute(_clock())
            _copy(source, to)
        yield twin
    finally:
        with _root(spread.server) as connection:
            connection.execute(f'drop database "{twin.name}" with (force)')


def _copy(source: psycopg.Connection, to: psycopg.Connection) -> None:
    tables = to.execute(
        "select c.oid::regclass::text, string_agg(quote_ident(a.attname), ', ' order by a.attnum)"
        " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0"
        " and not a.attisdropped and a.attgenerated = ''"
        " where c.relkind = 'r' and c.relnamespace in ('public'::regnamespace,"
        " 'tokenlib'::regnamespace) and c.relname <> 'alembic_version' group by c.oid"
    ).fetchall()
    to.execute("alter table ai_tokens drop constraint sums_close")  # also books that do not close
    to.execute("set session_replication_role = replica")  # neither triggers nor foreign keys
    for table, columns in tables:
        taken = f"copy (select {columns} from {table}) to stdout"  # noqa: S608 - from the catalog
        to.execute(f"delete from {table}".encode())  # noqa: S608
        given = f"copy {table} ({columns}) from stdin"
        with source.cursor().copy(taken.encode()) as rows, to.cursor().copy(given.encode()) as into:
            for row in rows:
                into.write(row)


def _clock() -> bytes:
    return resources.files("tokenlib").joinpath("sql/test_clock.sql").read_bytes()


def _root(server: embedded.Embedded, database: str = "postgres") -> psycopg.Connection:
    conninfo = server.conninfo(database, embedded.SUPERUSER)
    return psycopg.connect(conninfo, autocommit=True)


def _address(server: embedded.Embedded) -> Sequence[str | int]:
    return str(server.data_dir / "run"), int(PORT)
