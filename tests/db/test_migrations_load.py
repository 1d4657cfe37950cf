"""Migrations while charges are made: they wait shortly, step back, come again, and go back too."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from alembic.config import Config

from tests.cli.shell import Shell
from tokenlib import ConfigurationError, DatabaseUnavailable, Tokens, migrations
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]
OWNER = "tokenlib_owner"
LOCK_TIMEOUT_SECONDS = 0.2
# What a busy machine may add to a wait.
MARGIN_SECONDS = 2.0

NEXT_VERSION = """
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    op.execute("alter table public.ai_tokens add column colour text")


def downgrade():
    op.execute("alter table public.ai_tokens drop column colour")
"""


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenlib of one schema version more, which changes the busiest table."""
    (tmp_path / "0002_colour.py").write_text(NEXT_VERSION)
    ours = migrations._config

    def config() -> Config:
        both = ours()
        versions = Path(str(both.get_main_option("script_location"))) / "versions"
        both.set_main_option("version_locations", os.pathsep.join(map(str, (versions, tmp_path))))
        return both

    monkeypatch.setattr(migrations, "_config", config)
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", "0002")
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MILLISECONDS", int(LOCK_TIMEOUT_SECONDS * 1000))


@pytest.fixture
def reader(token_database: TestDatabase) -> Iterator[psycopg.Connection]:
    """Somebody who has begun a transaction, read a wallet, and does not end."""
    with token_database.connect() as connection:
        connection.execute("begin")
        connection.execute("select * from ai_tokens")
        yield connection


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def until(true: Callable[[], bool]) -> None:
    """Wait for a state that comes; fail if it does not."""
    give_up = time.monotonic() + 30
    while not true():
        assert time.monotonic() < give_up, "the state did not come"
        time.sleep(0.01)


def waits_for_table(connection: psycopg.Connection) -> bool:
    question = "select exists (select from pg_locks where relation = 'ai_tokens'::regclass"
    row = connection.execute(f"{question} and not granted)".encode()).fetchone()
    return row == (True,)


def has_column(connection: psycopg.Connection) -> bool:
    row = connection.execute(
        "select exists (select from information_schema.columns where column_name = 'colour')"
    ).fetchone()
    return row == (True,)


@pytest.mark.usefixtures("next_version")
def test_charges_go_on_while_a_migration_is_kept_waiting(
    tokens: Tokens,
    token_database: TestDatabase,
    owner: psycopg.Connection,
    reader: psycopg.Connection,
    pro: Person,
    background: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens.grant(pro[0], "general", 1_000_000)
    monkeypatch.setattr(migrations, "PAUSES_SECONDS", (0.1,) * 100)
    stop = threading.Event()

    def charge() -> list[float]:
        pauses = []
        while not stop.is_set():
            began = time.monotonic()
            tokens.deduct_tokens(*pro, "generate_insight")
            pauses.append(time.monotonic() - began)
        return pauses

    charging: Future[list[float]] = background.submit(charge)
    migrating: Future[bool] = background.submit(migrations.upgrade, token_database.url(OWNER))
    for _ in range(3):  # kept waiting, stepped back, came again
        until(lambda: waits_for_table(owner))
        until(lambda: not waits_for_table(owner))
    assert not migrating.done()
    reader.execute("rollback")
    assert migrating.result(30) is True
    stop.set()
    pauses = charging.result(30)
    assert has_column(owner)
    assert max(pauses) < LOCK_TIMEOUT_SECONDS + MARGIN_SECONDS
    assert len(pauses) > 3
    assert tokens.verify().closed


@pytest.mark.usefixtures("next_version", "reader")
def test_a_migration_that_is_kept_out_for_good_gives_up(
    token_database: TestDatabase, owner: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "PAUSES_SECONDS", (0.01, 0.01))
    with pytest.raises(DatabaseUnavailable, match="Nothing was changed: another session uses"):
        migrations.upgrade(token_database.url(OWNER))
    assert not has_column(owner)
    assert owner.execute("select version_num from tokenlib.alembic_version").fetchone() == ("0001",)


@pytest.mark.usefixtures("next_version")
def test_without_a_timeout_a_charge_would_wait_behind_it(
    token_database: TestDatabase,
    owner: psycopg.Connection,
    reader: psycopg.Connection,
    pro: Person,
    background: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: what the tests above would not see if nothing could wait."""
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MILLISECONDS", 0)
    migrating = background.submit(migrations.upgrade, token_database.url(OWNER))
    until(lambda: waits_for_table(owner))
    with token_database.connect("tokenlib_service") as service:
        service.execute("set lock_timeout = '1s'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            service.execute("select tokenlib.deduct(%s, %s, 'generate_insight', 1, null, null,"
                " false, null)", pro)  # fmt: skip
    reader.execute("rollback")
    assert migrating.result(30) is True


@pytest.mark.usefixtures("next_version")
def test_the_way_back(
    token_database: TestDatabase,
    owner: psycopg.Connection,
    tokens: Tokens,
    pro: Person,
) -> None:
    url = token_database.url(OWNER)
    shell = Shell({"TOKENLIB_DATABASE_URL": None, "TOKENLIB_MIGRATION_URL": None})
    assert migrations.upgrade(url) is True
    said = shell("migrate", "--url", url, "--to", "0001").stdout
    assert said == "Migrated from schema version 0002 to 0001.\n"
    assert not has_column(owner)
    assert migrations.downgrade(url, "0001") is False
    tokens.database.check()
    assert tokens.deduct_tokens(*pro, "generate_goal").remaining_balance == 17
    for target in ("0002", "0000", "base"):
        with pytest.raises(ConfigurationError, match="at schema version 0001, and there is no way"):
            migrations.downgrade(url, target)
    assert "--to is for a database of" in shell("migrate", "--to", "0001", exit_code=2).stderr
