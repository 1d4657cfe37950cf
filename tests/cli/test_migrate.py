"""migrate: on a database of one's own, on the bundled one, and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.shell import Shell
from tokenlib import embedded, migrations
from tokenlib.db import SCHEMA_VERSION, Database
from tokenlib.testing import TestDatabase

FIRST = f"Migrated from schema version none to {SCHEMA_VERSION}.\n"
AGAIN = f"The database is at schema version {SCHEMA_VERSION} already.\n"


def accepted(database: TestDatabase) -> None:
    """The gate opens on it."""
    gate = Database(database.url())
    gate.check()
    gate.close()


def test_it_changes_a_database_once(nowhere: Shell, empty: TestDatabase) -> None:
    url = empty.url("tokenlib_owner").replace("+psycopg", "")
    assert nowhere("migrate", "--url", url).stdout == FIRST
    accepted(empty)
    assert nowhere("migrate", "--url", url).stdout == AGAIN
    unchanged = {"changed": False, "before": SCHEMA_VERSION, "schema_version": SCHEMA_VERSION}
    assert nowhere.json("migrate", "--url", url) == unchanged


def test_it_takes_the_migration_url(nowhere: Shell, empty: TestDatabase) -> None:
    urls = {
        "TOKENLIB_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "TOKENLIB_MIGRATION_URL": empty.url("tokenlib_owner"),
    }
    assert nowhere.set(**urls)("migrate").stdout == FIRST


def test_what_it_prints_can_be_applied_by_hand(nowhere: Shell, empty: TestDatabase) -> None:
    roles, schema = nowhere("migrate", "--roles").stdout, nowhere("migrate", "--sql").stdout
    assert nowhere("migrate", "--sql", "--roles").stdout == roles + schema
    assert nowhere.json("migrate", "--sql") == {"sql": schema}
    assert nowhere("migrate", "--roles", "--citus").stdout == roles + migrations.citus_sql()
    with empty.connect("postgres") as connection:
        connection.execute(roles.encode())
    with empty.connect("tokenlib_owner") as connection:
        connection.execute(schema.encode())
    accepted(empty)
    assert nowhere("migrate", "--url", empty.url("tokenlib_owner")).stdout == AGAIN


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://x", "--url must start with postgresql://"),
        ("postgresql://o:secret@127.0.0.1:1/x", "The database did not answer: "),
    ],
)
def test_a_url_that_leads_nowhere_ends_with_3(nowhere: Shell, url: str, said: str) -> None:
    message = nowhere.error("migrate", "--url", url, exit_code=3)
    assert message.startswith(said)
    assert "secret" not in message


def test_a_database_that_is_not_there_ends_with_3(nowhere: Shell, empty: TestDatabase) -> None:
    url = empty.server.url("missing", "tokenlib_owner")
    message = nowhere.error("migrate", "--url", url, exit_code=3)
    assert message.startswith(
        'The database refused the connection: database "missing" does not exist. Correct'
    )


def test_a_login_that_does_not_own_the_database_ends_with_3(
    nowhere: Shell, empty: TestDatabase
) -> None:
    message = nowhere.error("migrate", "--url", empty.url(), exit_code=3)
    assert message.startswith("The database refused: permission denied")
    assert "TOKENLIB_MIGRATION_URL" in message


def test_a_newer_schema_ends_with_3(shell: Shell, token_database: TestDatabase) -> None:
    with token_database.connect() as connection:
        connection.execute("update tokenlib.alembic_version set version_num = '9999'")
    assert "newer than this tokenlib" in shell.error("migrate", exit_code=3)


def test_a_server_without_the_roles_ends_with_3(nowhere: Shell, data_dir: Path) -> None:
    with embedded.running(data_dir) as server:
        url = server.url("postgres", "postgres")
        message = nowhere.error("migrate", "--url", url, exit_code=3)
    assert message.startswith("The roles anon, authenticated, tokenlib_reader, tokenlib_service")
    assert "`tokenlib migrate --roles`" in message


def test_it_creates_the_bundled_database(nowhere: Shell, data_dir: Path) -> None:
    shell = nowhere.set(TOKENLIB_DATA_DIR=str(data_dir))
    assert shell("migrate").stdout == FIRST
    assert not (data_dir / "pgdata" / "postmaster.pid").exists()
    assert shell("migrate").stdout == AGAIN
