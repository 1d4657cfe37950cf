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

_TEMPLATE = "tokenlib_template"
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


@pytest.fixture(scope="session")
def token_server() -> Iterator[embedded.Embedded]:
    """The coordinator, with a migrated and distributed template database on every node."""
    with ExitStack() as held:
        nodes = [held.enter_context(_node()) for _ in range(1 + _WORKERS)]
        coordinator, *workers = nodes
        for node in nodes:
            with _root(node) as connection:
                connection.execute(f'create database "{_TEMPLATE}"')
            with _root(node, _TEMPLATE) as connection:
                connection.execute("create extension citus")
        with _root(coordinator, _TEMPLATE) as connection:
            add = "select {}(%s, %s)"
            connection.execute(add.format("citus_set_coordinator_host"), _address(coordinator))
            for worker in workers:
                connection.execute(add.format("citus_add_node"), _address(worker))
            connection.execute(migrations.roles_sql().encode())
            connection.execute(f'alter database "{_TEMPLATE}" owner to tokenlib_owner')
        migrations.upgrade(coordinator.url(_TEMPLATE, "tokenlib_owner"))
        clock = resources.files("tokenlib").joinpath("sql/test_clock.sql").read_text("utf-8")
        with TestDatabase(coordinator, _TEMPLATE).connect() as connection:
            connection.execute(clock.encode())
        with _root(coordinator, _TEMPLATE) as connection:
            connection.execute("select create_reference_table('tokenlib.test_clock')")
            for role in ("tokenlib_owner", "tokenlib_service"):  # their clock is a table here
                connection.execute(
                    f"alter role {role} set citus.allow_nested_distributed_execution = on"
                )
            for _ in range(2):  # safe to run twice
                connection.execute(migrations.citus_sql().encode())
        _nodes[:] = nodes
        yield coordinator


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
            connection.execute(f'alter database "{_TEMPLATE}" allow_connections false')
            connection.execute(_LEAVE, [_TEMPLATE])
            connection.execute(
                f'create database "{name}" template "{_TEMPLATE}" strategy file_copy'
            )
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


def _root(server: embedded.Embedded, database: str = "postgres") -> psycopg.Connection:
    conninfo = server.conninfo(database, embedded.SUPERUSER)
    return psycopg.connect(conninfo, autocommit=True)


def _address(server: embedded.Embedded) -> Sequence[str | int]:
    return str(server.data_dir / "run"), int(PORT)
