"""pytest fixtures for people who build on tokenlib: a gate on a throw-away database.

    from tokenlib.testing import token_clock, token_database, token_server, tokens

    def test_charge(tokens):
        org = tokens.create_organization("Acme", plan="pro")
        ...

One PostgreSQL per session: the bundled one, or that whose programs are in TOKENLIB_TEST_POSTGRES.
Each test gets a fresh copy of a migrated template. Its clock can be set and moved through the
`token_clock` fixture; production has no such clock.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path

import psycopg
import pytest

from tokenlib import embedded, migrations
from tokenlib.db import Database
from tokenlib.tokens import Tokens

_TEMPLATE = "tokenlib_template"


@dataclass(frozen=True)
class TestDatabase:
    """A database of one test: connection URLs by role."""

    __test__ = False

    server: embedded.Embedded
    name: str

    def url(self, role: str = "tokenlib_service") -> str:
        """SQLAlchemy URL for a role: tokenlib_service, tokenlib_owner or postgres."""
        return self.server.url(self.name, role)

    def connect(self, role: str = "tokenlib_owner") -> psycopg.Connection:
        """A plain psycopg connection in autocommit."""
        return psycopg.connect(self.server.conninfo(self.name, role), autocommit=True)


class TestClock:
    """The clock of the books in a test database. Unset, it is the real time plus what was added."""

    __test__ = False

    def __init__(self, database: TestDatabase) -> None:
        self._database = database

    def set(self, moment: datetime) -> None:
        """Stop the clock at a moment (with a time zone)."""
        self._run("update tokenlib.test_clock set stopped_at = %s", moment)

    def advance(self, step: timedelta) -> None:
        """Move the clock ahead."""
        self._run(
            # By way of UTC, since a sum that hangs on the session's zone is none for Citus.
            "update tokenlib.test_clock set ahead = ahead + %s, stopped_at ="
            " (stopped_at at time zone 'UTC' + %s) at time zone 'UTC'",
            step,
            step,
        )

    def now(self) -> datetime:
        """What the books take for now."""
        with self._database.connect() as connection:
            row = connection.execute("select tokenlib.clock()").fetchone()
        assert row is not None  # noqa: S101 - a select of one value has one row
        moment: datetime = row[0]
        return moment

    def _run(self, statement: str, *values: object) -> None:
        with self._database.connect() as connection:
            connection.execute(statement, values)


def postgres_programs() -> Path | None:
    """The folder of its programs, such as /usr/lib/postgresql/15/bin; None: the bundled one's."""
    folder = os.environ.get("TOKENLIB_TEST_POSTGRES")
    if not folder:
        return None
    if not (Path(folder) / "postgres").is_file():
        pytest.fail(f"TOKENLIB_TEST_POSTGRES: there is no PostgreSQL in {folder}.", pytrace=False)
    return Path(folder)


@pytest.fixture(scope="session")
def token_server() -> Iterator[embedded.Embedded]:
    """A PostgreSQL in a temporary folder, with a migrated template database."""
    with embedded.temporary(postgres_programs()) as server:
        superuser = server.url("postgres", "postgres")
        migrations.create_roles(superuser)
        migrations.create_database(superuser, _TEMPLATE)
        migrations.upgrade(server.url(_TEMPLATE, "tokenlib_owner"))
        clock = resources.files("tokenlib").joinpath("sql/test_clock.sql").read_text("utf-8")
        with TestDatabase(server, _TEMPLATE).connect() as connection:
            connection.execute(clock)
        yield server


@pytest.fixture
def token_database(token_server: embedded.Embedded) -> Iterator[TestDatabase]:
    """A fresh migrated database for one test."""
    database = TestDatabase(token_server, f"test_{uuid.uuid4().hex[:12]}")
    with TestDatabase(token_server, "postgres").connect("postgres") as connection:
        connection.execute(
            f'create database "{database.name}" template "{_TEMPLATE}" strategy file_copy'
        )
        yield database
        connection.execute(f'drop database "{database.name}" with (force)')


@pytest.fixture
def token_clock(token_database: TestDatabase) -> TestClock:
    """The clock of the test's database."""
    return TestClock(token_database)


@pytest.fixture
def tokens(token_database: TestDatabase) -> Iterator[Tokens]:
    """A gate on the test's database, as the service role."""
    with Tokens(Database(token_database.url())) as gate:
        yield gate
