"""What the tests of the command line share: a runner on the test's own database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.cli.shell import Shell, free_port
from tokenlib import Tokens, migrations
from tokenlib.embedded import Embedded
from tokenlib.testing import TestDatabase


@pytest.fixture
def nowhere(tmp_path: Path) -> Shell:
    """A shell without a database: the data folder, where one would begin, is a file."""
    folder = tmp_path / "data"
    folder.write_text("a file")
    names = ("DATABASE_URL", "MIGRATION_URL", "SWITCH", "HOST", "DEBUG")
    unset: dict[str, str | None] = {f"TOKENLIB_{name}": None for name in names}
    return Shell({**unset, "TOKENLIB_DATA_DIR": str(folder), "TOKENLIB_PORT": str(free_port())})


@pytest.fixture
def shell(nowhere: Shell, token_database: TestDatabase) -> Shell:
    """A shell on the test's own database."""
    urls = {
        "TOKENLIB_DATABASE_URL": token_database.url(),
        "TOKENLIB_MIGRATION_URL": token_database.url("tokenlib_owner"),
    }
    return Shell({**nowhere.environment, **urls})


@pytest.fixture
def pro(tokens: Tokens) -> tuple[UUID, UUID]:
    """An organization on pro and its member."""
    organization = tokens.create_organization("Acme", "pro")
    return organization, tokens.add_member(organization, "A member", "member@example.org")


@pytest.fixture
def empty(token_server: Embedded) -> Iterator[TestDatabase]:
    """A database without our tables, on a server that has the roles."""
    database = TestDatabase(token_server, f"empty_{uuid.uuid4().hex[:12]}")
    migrations.create_database(token_server.url("postgres", "postgres"), database.name)
    yield database
    with TestDatabase(token_server, "postgres").connect("postgres") as connection:
        connection.execute(f'drop database "{database.name}" with (force)'.encode())
