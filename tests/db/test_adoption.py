"""Adoption of the old system's database: balances kept, nothing lost, ours from then on."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from tests.db import old_system
from tests.db.old_system import (
    DEPARTED,
    LOG,
    MEMBERS,
    ORGANIZATIONS,
    OWNER,
    WALLETS,
    rows,
    tables,
)
from tests.db.test_migrations import rights, schema
from tokenlib import InsufficientTokens, Tokens, migrations
from tokenlib.adoption import Adoption, adopt
from tokenlib.db import Database
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.reports import Reports
from tokenlib.testing import TestDatabase


@pytest.fixture(scope="module")
def product(token_server: Embedded) -> Iterator[Embedded]:
    """The server, with the product's roles."""
    with old_system.roles(token_server):
        yield token_server


@dataclass(frozen=True)
class Adopted:
    """A database that was taken in, what adoption said, and what stood there before."""

    database: TestDatabase
    dry: Adoption
    real: Adoption
    log: list[tuple[Any, ...]]
    wallets: list[tuple[Any, ...]]
    answers: list[list[list[str]]]


@pytest.fixture(scope="module")
def adopted(product: Embedded) -> Iterator[Adopted]:
    """For tests that read only."""
    with old_system.database(product) as database:
        log, wallets = rows(database, LOG), rows(database, WALLETS)
        asked = answers(database, SUPERUSER)
        before = tables(database), rows(database, "select * from ai_tokens order by id")
        dry = adopt(database.url(OWNER), dry_run=True)
        assert (tables(database), rows(database, "select * from ai_tokens order by id")) == before
        real = adopt(database.url(OWNER))
        yield Adopted(database, dry, real, log, wallets, asked)


@pytest.fixture
def taken(product: Embedded) -> Iterator[TestDatabase]:
    """A database that was taken in, for one test."""
    with old_system.database(product) as database:
        adopt(database.url(OWNER))
        yield database


# What is kept -------------------------------------------------------------------------------------


def test_no_usable_balance_changes(adopted: Adopted) -> None:
    """Below zero nobody could spend anything, and nobody can now."""
    assert len(adopted.wallets) == 39
    kept = [(*wallet[:2], max(wallet[2], 0)) for wallet in adopted.wallets]
    assert rows(adopted.database, WALLETS) == kept


def test_no_log_row_is_lost_or_changed(adopted: Adopted) -> None:
    assert len(adopted.log) == 7 * 480 == adopted.real.log_rows
    assert rows(adopted.database, LOG) == adopted.log
    numbers = "select distinct number from ai_token_usage_log"
    assert rows(adopted.database, numbers) == [(None,)]


def test_the_books_close_and_hold_the_old_rows(adopted: Adopted) -> None:
    with Tokens(Database(adopted.database.url())) as tokens:
        found = tokens.verify()
    assert found.closed, found.problems
    assert (found.wallets, found.entries) == (39, 39)
    held = "select sum((data ->> 'legacy_rows')::int) from ai_token_events where kind = 'opening'"
    without_wallet = 240
    assert rows(adopted.database, held) == [(len(adopted.log) - without_wallet,)]


TAMPERED = [
    "update ai_token_usage_log set tokens_deducted = 0 where id = (table one)",
    "update ai_token_usage_log set metadata = '{}' where id = (table one)",
    "update ai_token_usage_log set user_id = null where id = (table one)",
    "update ai_token_usage_log set token_type = 'forecast' where id = (table one)",
    "delete from ai_token_usage_log where id = (table one)",
    """insert into ai_token_usage_log (organization_id, token_type, feature_used, tokens_deducted,
        remaining_balance) select organization_id, token_type, feature_used, 1, 1
        from ai_token_usage_log where id = (table one)""",
]


def test_verify_finds_old_rows_that_were_changed_removed_or_added(taken: TestDatabase) -> None:
    with taken.connect(SUPERUSER) as admin, Tokens(Database(taken.url())) as tokens:
        admin.execute("alter table ai_token_usage_log disable trigger append_only")
        admin.execute(
            "create temporary table one as select id from ai_token_usage_log"
            " where token_type = 'general' order by created_at limit 1;"
            " create temporary table kept as select * from ai_token_usage_log"
        )
        for change in TAMPERED:
            admin.execute(change.encode())
            found = {(problem.kind, problem.token_type) for problem in tokens.verify().problems}
            assert ("legacy_rows_differ", "general") in found, change
            admin.execute(
                "delete from ai_token_usage_log; insert into ai_token_usage_log table kept"
            )
        assert tokens.verify().closed


# What is found ------------------------------------------------------------------------------------


FAULTS = [
    ("emergency", "goal_generation", "emergency_balance"),
    ("emergency", "goal_generation", "balance_above_allocated"),
    ("raised", "lead_generation", "balance_above_allocated"),
    ("unlogged", "general", "used_differs_from_log"),
    ("departed", "forecast", "log_of_deleted_users"),
    # Its dates moved, so another part of the log is its period.
    ("overdue", "forecast", "used_differs_from_log"),
    ("overdue", "general", "used_differs_from_log"),
    ("odd", "general", "negative_figure"),
    ("odd", "forecast", "log_without_wallet"),
    ("odd", "lead_generation", "plan_unknown"),
    ("odd", "goal_generation", "plan_unknown"),
    ("odd", "strategy_analysis", "plan_unknown"),
    ("odd", "general", "plan_unknown"),
]


def test_every_fault_is_found(adopted: Adopted) -> None:
    found = Counter((f.organization_id, f.token_type, f.kind) for f in adopted.real.findings)
    assert found == Counter((ORGANIZATIONS[name], *fault) for name, *fault in FAULTS)


def test_a_dry_run_says_what_is_done_then(adopted: Adopted) -> None:
    assert adopted.dry.dry_run
    assert not adopted.dry.changed
    assert adopted.real.changed
    assert adopted.dry.findings == adopted.real.findings
    assert adopted.dry.steps == adopted.real.steps
    assert (adopted.dry.wallets, adopted.dry.log_rows) == (39, 3360)
    steps = "\n".join(adopted.dry.steps)
    for done in (
        "change the owner of ai_tokens from product_owner to tokenlib_owner",
        "drop the policy Users update their tokens of ai_tokens",
        "drop the trigger touch of ai_tokens",
        "FOREIGN KEY (user_id) REFERENCES auth.users(id) ON DELETE CASCADE",
        "drop the index idx_usage_created of ai_token_usage_log",
        "revoke all rights on ai_tokens from service_role",
    ):
        assert done in steps


def test_what_is_told_is_what_is_recorded(adopted: Adopted) -> None:
    with Tokens(Database(adopted.database.url())) as tokens:
        recorded = Reports(tokens.database).findings(settled=False)
    told = [(f.organization_id, f.token_type, f.kind, f.detail) for f in adopted.real.findings]
    assert sorted(told) == sorted(
        (f.organization_id, f.token_type, f.kind, f.detail) for f in recorded
    )


def test_every_finding_can_be_settled(taken: TestDatabase) -> None:
    with Tokens(Database(taken.url())) as tokens, taken.connect(OWNER) as owner:
        owner.execute("delete from organizations where name = 'raised'")
        findings = Reports(tokens.database).findings()
        for finding in findings:
            tokens.settle_finding(
                finding.organization_id, finding.id, actor="support", reason="looked at"
            )
        assert Reports(tokens.database).findings(settled=False) == []
        assert tokens.verify().closed


# What it is then ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(product: Embedded) -> Iterator[TestDatabase]:
    """The same product without the old tables, migrated."""
    with old_system.database(product, books=False) as database:
        migrations.upgrade(database.url(OWNER))
        yield database


def test_the_schema_is_that_of_a_fresh_migration(adopted: Adopted, fresh: TestDatabase) -> None:
    """All but the order of columns, which a table keeps for life, and the product's function."""
    ours, wanted = schema(adopted.database), schema(fresh)
    for kind, things in wanted.items():
        assert ours[kind] == things, kind
    assert rights(adopted.database) == rights(fresh)


def test_the_order_of_columns_is_the_one_difference(adopted: Adopted, fresh: TestDatabase) -> None:
    question = (
        "select attname from pg_attribute where attrelid = 'ai_tokens'::regclass and attnum > 0"
        " and not attisdropped order by attnum"
    )
    ours, wanted = rows(adopted.database, question), rows(fresh, question)
    assert ours[:10] == wanted[:10]
    assert sorted(ours) == sorted(wanted)


def test_a_second_time_it_does_nothing(adopted: Adopted) -> None:
    before = schema(adopted.database), rows(adopted.database, "select * from ai_token_events")
    again = adopt(adopted.database.url(OWNER))
    assert (again.before, again.changed, again.steps) == ("tokenlib", False, ())
    assert not migrations.upgrade(adopted.database.url(OWNER))
    after = schema(adopted.database), rows(adopted.database, "select * from ai_token_events")
    assert after == before


OLD_QUERIES = [
    """select feature_used, count(*) as daily_uses from ai_token_usage_log
    where created_at > now() - interval '24 hours' group by feature_used""",
    """select organization_id, sum(tokens_deducted) as total from ai_token_usage_log
    where created_at > now() - interval '30 days' group by organization_id
    order by total desc limit 10""",
    """select feature_used, count(*) as uses, sum(tokens_deducted) as total
    from ai_token_usage_log
    where created_at > now() - interval '7 days' group by feature_used order by total desc""",
    """select user_id, count(*) as calls, sum(tokens_deducted) as tokens from ai_token_usage_log
    where created_at > now() - interval '1 day' group by user_id
    order by tokens desc, user_id limit 1""",
    """select * from ai_tokens where organization_id = '00000000-0000-0000-0000-000000000009'""",
]


def answers(database: TestDatabase, role: str) -> list[list[list[str]]]:
    """A sum of bigint is numeric: the same number, in a type of its own."""
    found = [rows(database, query, role) for query in OLD_QUERIES]
    return [sorted([str(value) for value in row] for row in answer) for answer in found]


@pytest.mark.parametrize("role", [OWNER, "tokenlib_service"])
def test_the_old_monitoring_queries_answer_as_before(adopted: Adopted, role: str) -> None:
    assert answers(adopted.database, role) == adopted.answers
    latest = "select * from ai_token_usage_log order by created_at desc limit 10"
    assert len(rows(adopted.database, latest, role)) == 10
    stuck = "select * from ai_tokens where balance > total_allocated"
    assert rows(adopted.database, stuck, role) == []


SET_UP = """
insert into ai_tokens (organization_id, token_type, balance, total_allocated, refresh_date)
select o.id, 'lead_generation', 50, 50, now() + interval '30 days'
from organizations o
where o.plan = 'pro' and not exists (select 1 from ai_tokens where organization_id = o.id)
"""


def test_the_old_set_up_still_works(taken: TestDatabase) -> None:
    new = uuid.uuid4()
    with taken.connect(OWNER) as owner:
        owner.execute("insert into organizations values (%s, 'New', 'pro')", (new,))
        assert owner.execute(SET_UP).rowcount == 1
        owner.execute("insert into auth.users values (%s)", (new,))
        owner.execute("insert into user_profiles values (%s, %s)", (new, new))
    with Tokens(Database(taken.url())) as tokens:
        assert tokens.deduct_tokens(new, new, "generate_leads").remaining_balance == 45
        assert tokens.verify().closed


def test_the_gate_charges_what_was_left(taken: TestDatabase) -> None:
    healthy, member = ORGANIZATIONS["healthy"], MEMBERS["healthy"]
    with Tokens(Database(taken.url())) as tokens:
        for left in (17, 14, 11, 8, 5, 2):
            usage = tokens.deduct_tokens(healthy, member, "generate_goal")
            assert usage.remaining_balance == left
        with pytest.raises(InsufficientTokens):
            tokens.deduct_tokens(healthy, member, "generate_goal")
        # What came on top of the plan's allowance in the emergency outlives the period.
        assert (
            tokens.get_token_balance(ORGANIZATIONS["emergency"], "goal_generation").balance == 9999
        )
        # Periods that were over are refreshed at the first touch.
        assert tokens.get_token_balance(ORGANIZATIONS["overdue"], "goal_generation").balance == 20
        assert tokens.verify().closed


def test_members_read_their_own_and_raise_nothing(taken: TestDatabase) -> None:
    claims = json.dumps({"sub": str(MEMBERS["healthy"])})
    with taken.connect("tokenlib_service") as member:
        member.execute("select set_config('request.jwt.claims', %s, false)", (claims,))
        member.execute("set role authenticated")
        seen = member.execute("select distinct organization_id from ai_tokens").fetchall()
        assert seen == [(ORGANIZATIONS["healthy"],)]
        for write in ("update ai_tokens set balance = 9999", "delete from ai_token_usage_log"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                member.execute(write.encode())


def test_deleting_people_and_organizations_leaves_the_log(taken: TestDatabase) -> None:
    before = rows(taken, LOG)
    with taken.connect(SUPERUSER) as product:
        product.execute("delete from auth.users")
        product.execute("delete from organizations")
    assert rows(taken, LOG) == before
    assert {DEPARTED, MEMBERS["healthy"]} < {row[2] for row in before}
    with Tokens(Database(taken.url())) as tokens:
        assert tokens.verify().closed


def test_columns_of_the_product_s_own_stay(product: Embedded) -> None:
    with old_system.database(product) as database:
        with database.connect("product_owner") as owner:
            owner.execute("alter table ai_tokens add column note text default 'theirs'")
            owner.execute("alter table ai_token_usage_log add column session text")
            owner.execute("create index by_session on ai_token_usage_log (session)")
            owner.execute("update ai_token_usage_log set session = 'one'")
        adopt(database.url(OWNER))
        assert rows(database, "select distinct note from ai_tokens") == [("theirs",)]
        assert rows(database, "select distinct session from ai_token_usage_log") == [("one",)]
        assert rows(database, "select to_regclass('by_session') is not null") == [(True,)]
        with Tokens(Database(database.url())) as tokens:
            tokens.deduct_tokens(ORGANIZATIONS["healthy"], MEMBERS["healthy"], "generate_goal")
            assert tokens.verify().closed
