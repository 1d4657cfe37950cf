"""What adoption refuses, by name; and what it does while others use the tables."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa

from tests.db import old_system
from tests.db.old_system import LOG, MEMBERS, ORGANIZATIONS, OWNER, WALLETS, rows, tables
from tokenlib import ConfigurationError, DatabaseUnavailable, Tokens, adoption, migrations
from tokenlib.adoption import adopt
from tokenlib.db import Database, statements
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.testing import TestDatabase


@pytest.fixture(scope="module")
def product(token_server: Embedded) -> Iterator[Embedded]:
    """The server, with the product's roles."""
    with old_system.roles(token_server):
        yield token_server


@pytest.fixture(scope="module")
def old(product: Embedded) -> Iterator[TestDatabase]:
    """An old database, for tests that leave it as it is."""
    with old_system.database(product) as database:
        yield database


# What is refused ----------------------------------------------------------------------------------

DIFFERENCES = [
    (
        "alter table ai_tokens rename total_used to used",
        "alter table ai_tokens rename used to total_used",
        "ai_tokens.total_used is missing",
    ),
    (
        "alter table ai_tokens alter balance type numeric",
        "alter table ai_tokens alter balance type integer",
        "ai_tokens.balance is numeric, not integer or bigint or smallint",
    ),
    (
        "alter table ai_token_usage_log rename to usage_log",
        "alter table usage_log rename to ai_token_usage_log",
        "ai_token_usage_log is missing",
    ),
    (
        "alter table ai_tokens add reserved integer",
        "alter table ai_tokens drop reserved",
        "ai_tokens.reserved is there already",
    ),
    (
        "alter table ai_token_usage_log add seat integer not null default 1",
        "alter table ai_token_usage_log drop seat",
        "ai_token_usage_log.seat is not null or generated",
    ),
    (
        "create view balances as select organization_id, balance from ai_tokens",
        "drop view balances",
        "the view balances shows ai_tokens.balance",
    ),
    (
        "create table notes (wallet uuid references ai_tokens (id))",
        "drop table notes",
        "notes refers to ai_tokens by notes_wallet_fkey",
    ),
    (
        "create table ai_token_plans (plan text)",
        "drop table ai_token_plans",
        "ai_token_plans is there already",
    ),
    (
        "alter table user_profiles force row level security",
        "alter table user_profiles no force row level security",
        "user_profiles forces row-level security",
    ),
    (
        "create table quests (id uuid)",
        "drop table quests",
        "quests.quarter is missing",
    ),
    (
        """alter table ai_tokens drop constraint ai_tokens_token_type_check;
        update ai_tokens set token_type = 'images' where token_type = 'general'""",
        "update ai_tokens set token_type = 'general' where token_type = 'images'",
        "ai_tokens has the token type images",
    ),
    (
        """alter table ai_token_usage_log alter created_at drop not null;
        update ai_token_usage_log set created_at = null where remaining_balance = 999""",
        "update ai_token_usage_log set created_at = now() where created_at is null",
        "ai_token_usage_log has 14 rows without created_at",
    ),
    (
        "reset role; revoke product_owner from tokenlib_owner",
        "reset role; grant product_owner to tokenlib_owner",
        "ai_tokens belongs to product_owner, and tokenlib_owner has not that role's rights",
    ),
]


@pytest.mark.parametrize(("change", "undo", "said"), DIFFERENCES)
def test_what_is_not_the_old_system_is_refused_by_name(
    old: TestDatabase, change: str, undo: str, said: str
) -> None:
    with old.connect(SUPERUSER) as connection:
        connection.execute("set role product_owner")
        connection.execute(change.encode())
        before = rows(old, WALLETS), tables(old)
        try:
            for dry_run in (True, False):
                with pytest.raises(ConfigurationError) as refused:
                    adopt(old.url(OWNER), dry_run=dry_run)
                assert said in refused.value.message
            assert (rows(old, WALLETS), tables(old)) == before
        finally:
            connection.execute("set role product_owner")
            connection.execute(undo.encode())


def test_every_difference_is_named_at_once(old: TestDatabase) -> None:
    with old.connect("product_owner") as owner:
        with owner.transaction(force_rollback=True):
            owner.execute("alter table ai_tokens drop balance, drop refresh_date")
            question = statements("inspect", "adopt")["differences"].replace("%%", "%")
            found = [row[0] for row in owner.execute(question.encode()).fetchall()]
        assert found == ["ai_tokens.balance is missing", "ai_tokens.refresh_date is missing"]


def test_migrate_leaves_an_old_database_to_adopt(old: TestDatabase) -> None:
    with pytest.raises(ConfigurationError, match=r"Look with `tokenlib adopt --dry-run`"):
        migrations.upgrade(old.url(OWNER))


def test_a_database_without_the_old_tables_is_left_to_migrate(product: Embedded) -> None:
    with old_system.database(product, books=False) as database:
        before = tables(database)
        for dry_run in (True, False):
            with pytest.raises(ConfigurationError, match="There are no old tables here"):
                adopt(database.url(OWNER), dry_run=dry_run)
        assert tables(database) == before
        assert rows(database, "select to_regnamespace('tokenlib')") == [(None,)]
        assert migrations.upgrade(database.url(OWNER))
        assert adopt(database.url(OWNER)).before == "tokenlib"
        with Tokens(Database(database.url())) as tokens:
            tokens.database.check()
            tokens.create_organization("Acme", "pro")
            assert tokens.verify().closed


# While others work --------------------------------------------------------------------------------


def test_a_table_in_use_is_waited_for_shortly_and_named(
    old: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MILLISECONDS", 50)
    monkeypatch.setattr(migrations, "PAUSES_SECONDS", (0.01,))
    before = rows(old, WALLETS), tables(old)
    with old.connect(SUPERUSER) as user, user.transaction(force_rollback=True):
        user.execute("update ai_tokens set balance = balance")
        assert adopt(old.url(OWNER), dry_run=True).wallets == 39, "a dry run blocks nobody"
        with pytest.raises(DatabaseUnavailable, match="Nothing was changed: another session"):
            adopt(old.url(OWNER))
    assert (rows(old, WALLETS), tables(old)) == before


def test_what_it_counts_and_judges_is_locked_already(
    product: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no row can come between what is told and what is taken in."""
    asked: list[bool] = []
    with old_system.database(product) as database, database.connect(SUPERUSER) as user:
        words = adoption._words

        def watch(connection: sa.Connection, question: str, **params: object) -> list[str]:
            if question == statements("inspect", "adopt")["bad_rows"]:
                with pytest.raises(psycopg.errors.LockNotAvailable), user.transaction():
                    user.execute("lock table ai_token_usage_log in row exclusive mode nowait")
                asked.append(True)
            return words(connection, question, **params)

        monkeypatch.setattr(adoption, "_words", watch)
        adopt(database.url(OWNER))
    assert asked == [True]


def old_charge(connection: psycopg.Connection) -> bool:
    """A charge as the old code made it, with the product's own server role; False: no right."""
    try:
        with connection.transaction():
            connection.execute(
                "insert into ai_token_usage_log (organization_id, user_id, token_type,"
                " feature_used, tokens_deducted, remaining_balance)"
                " select organization_id, %s, token_type, 'analyze_strategy', 1, balance - 1"
                " from ai_tokens where organization_id = %s and token_type = 'strategy_analysis'",
                (MEMBERS["healthy"], ORGANIZATIONS["healthy"]),
            )
            connection.execute(
                "update ai_tokens set balance = balance - 1, total_used = total_used + 1"
                " where organization_id = %s and token_type = 'strategy_analysis'",
                (ORGANIZATIONS["healthy"],),
            )
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def test_the_old_system_may_run_until_the_last_moment(product: Embedded) -> None:
    with old_system.database(product) as database:
        charges: list[int] = []
        started = threading.Event()

        def run() -> None:
            with database.connect("product_owner") as connection:
                connection.execute("set role service_role")
                while len(charges) < 95 and old_charge(connection):
                    charges.append(1)
                    if len(charges) == 5:
                        started.set()

        writer = threading.Thread(target=run)
        writer.start()
        assert started.wait(30)
        found = adopt(database.url(OWNER))
        writer.join(30)
        assert not writer.is_alive()
        assert found.log_rows == 3360 + len(charges)
        with Tokens(Database(database.url())) as tokens:
            assert tokens.verify().closed
            wallet = tokens.get_token_balance(ORGANIZATIONS["healthy"], "strategy_analysis")
        assert wallet.balance == 100 - len(charges)


def test_two_adoptions_at_once_are_one(product: Embedded) -> None:
    with old_system.database(product) as database:
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda: found.append(adopt(database.url(OWNER)).before))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(found) == ["old", "tokenlib"]
        openings = "select count(*) from ai_token_events where kind = 'opening'"
        assert rows(database, openings) == [(39,)]


def test_what_fails_half_way_leaves_the_old_system(
    product: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with old_system.database(product) as database:
        before = rows(database, LOG), tables(database)
        script = adoption._script
        monkeypatch.setattr(adoption, "_script", lambda name: script(name) + "; select 1 / 0;")
        with pytest.raises(DatabaseUnavailable, match="division by zero"):
            adopt(database.url(OWNER))
        assert (rows(database, LOG), tables(database)) == before
        monkeypatch.undo()
        assert adopt(database.url(OWNER)).changed
