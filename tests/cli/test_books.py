"""initialize, refresh, verify, stats: what they do, print and return."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tests.cli.shell import Shell
from tokenlib import Tokens
from tokenlib.testing import TestClock, TestDatabase


def insert(database: TestDatabase, plan: str = "pro") -> UUID:
    """An organization that another program created: it has no wallets."""
    with database.connect() as connection:
        row = connection.execute(
            "insert into organizations (name, plan) values ('Elsewhere', %s) returning id", (plan,)
        ).fetchone()
    assert row is not None
    return UUID(str(row[0]))


def test_initialize_all_creates_what_is_missing_once(
    shell: Shell, tokens: Tokens, token_database: TestDatabase
) -> None:
    tokens.create_organization("Has its wallets", "pro")
    ids = sorted(str(insert(token_database)) for _ in range(2))
    dry = shell.json("initialize", "--all", "--dry-run")
    assert dry == {
        "dry_run": True,
        "wallets": 10,
        "organizations": dict.fromkeys(ids, 5),
        "failed": {},
    }
    dry_text = shell("initialize", "--all", "--dry-run").stdout
    assert dry_text == "10 wallets would be created for 2 organizations.\n"
    assert shell("initialize", "--all").stdout == "10 wallets created for 2 organizations.\n"
    assert shell("initialize", "--all").stdout == "0 wallets created for 0 organizations.\n"
    assert tokens.get_token_balance(ids[0], "goal_generation").balance == 20


def test_initialize_one(shell: Shell, tokens: Tokens, token_database: TestDatabase) -> None:
    one, other = insert(token_database), insert(token_database)
    assert shell("initialize", one).stdout == "5 wallets created for 1 organization.\n"
    assert shell("initialize", one).stdout == "0 wallets created for 0 organizations.\n"
    assert tokens.organizations_to_initialize() == [other]


def test_initialize_goes_on_after_an_organization_that_fails(
    shell: Shell, token_database: TestDatabase
) -> None:
    bad, good = insert(token_database), insert(token_database)
    with token_database.connect() as connection:
        # Stands for whatever makes one organization impossible.
        connection.execute(
            "create function tokenlib.refuse() returns trigger language plpgsql as"
            " $$ begin raise exception 'broken' using errcode = 'TK001'; end $$"
        )
        connection.execute(
            "create trigger refuse before insert on ai_tokens for each row"
            f" when (new.organization_id = '{bad}') execute function tokenlib.refuse()"
        )
    found = shell.json("initialize", "--all", exit_code=1)
    assert found["failed"] == {str(bad): "broken"}
    assert found["organizations"] == {str(good): 5}
    assert shell.error("initialize", bad, exit_code=1) == "broken"


@pytest.fixture
def due(token_clock: TestClock, pro: tuple[UUID, UUID]) -> UUID:
    """An organization whose five periods have just ended."""
    token_clock.advance(timedelta(days=31))
    return pro[0]


@pytest.mark.usefixtures("due")
def test_refresh_ends_what_is_due_once(shell: Shell, tokens: Tokens) -> None:
    idle = tokens.create_organization("Idle", "pro")
    assert shell("refresh", idle).stdout == "0 wallets brought up to date.\n"
    assert shell.json("refresh") == {"wallets": 5}
    assert shell("refresh").stdout == "0 wallets brought up to date.\n"


def test_refresh_also_counts_a_wallet_whose_hold_ended(
    shell: Shell, tokens: Tokens, pro: tuple[UUID, UUID], token_clock: TestClock
) -> None:
    tokens.reserve(*pro, "generate_goal")
    token_clock.advance(timedelta(days=1))
    assert shell("refresh").stdout == "1 wallet brought up to date.\n"
    assert "hold ended" in " ".join(shell("refresh", "--help").stdout.split())


def test_refresh_of_one_leaves_the_others(shell: Shell, due: UUID) -> None:
    assert shell("refresh", due).stdout == "5 wallets brought up to date.\n"


def test_verify_counts_and_passes(shell: Shell, tokens: Tokens, pro: tuple[UUID, UUID]) -> None:
    tokens.deduct_tokens(*pro, "generate_goal")
    tokens.create_organization("Other", "pro")
    assert shell("verify").stdout == "10 wallets, 11 entries: the books close.\n"
    assert shell("verify", pro[0]).stdout == "5 wallets, 6 entries: the books close.\n"
    passed = {"closed": True, "wallets": 10, "entries": 11, "problems": []}
    assert shell.json("verify") == passed


def test_verify_lists_problems_by_wallet_and_entry_and_ends_with_1(
    shell: Shell, tokens: Tokens, token_database: TestDatabase, pro: tuple[UUID, UUID]
) -> None:
    usage = tokens.deduct_tokens(*pro, "generate_goal")
    with token_database.connect("postgres") as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute("alter table ai_token_usage_log disable trigger append_only")
        connection.execute(
            "update ai_token_usage_log set tokens_deducted = 1 where id = %s", (usage.id,)
        )
    found = shell.json("verify", exit_code=1)
    assert found["closed"] is False
    kinds = {problem["kind"]: problem for problem in found["problems"]}
    assert set(kinds) == {
        "log_hash_differs",
        "balance_after_differs",
        "wallet_differs_from_entries",
    }
    changed = kinds["log_hash_differs"]
    assert changed["organization_id"] == str(pro[0])
    assert (changed["token_type"], changed["entry"]) == ("goal_generation", "log 1")

    lines = shell("verify", pro[0], exit_code=1).stdout.splitlines()
    assert lines[0] == "5 wallets, 6 entries: 3 problems."
    assert any(
        line.startswith(f"{pro[0]}  goal_generation  log 1") and "log hash differs" in line
        for line in lines
    )


def test_stats_shows_each_wallet_and_the_totals(
    shell: Shell, tokens: Tokens, token_clock: TestClock
) -> None:
    token_clock.set(datetime(2026, 3, 1, 12, tzinfo=UTC))
    organization = tokens.create_organization("Acme", "enterprise")
    user = tokens.add_member(organization, "A member", "member@example.org")
    tokens.deduct_tokens(organization, user, "generate_goal")
    tokens.reserve(organization, user, "forecast_revenue")
    assert shell("stats", organization).stdout.splitlines() == [
        "token type         balance  reserved  used  allocated  refresh (UTC)",
        "lead_generation        500         0     0        500  2026-03-31 12:00",
        "goal_generation        197         0     3        200  2026-03-31 12:00",
        "strategy_analysis    1,000         0     0      1,000  2026-03-31 12:00",
        "forecast               196         4     0        200  2026-03-31 12:00",
        "general                500         0     0        500  2026-03-31 12:00",
        "total                2,393         4     3      2,400",
    ]
    found = shell.json("stats", organization)
    assert found["organization_id"] == str(organization)
    assert (found["total_balance"], found["total_used"]) == (2393, 3)
    assert found["refresh_date"] == "2026-03-31T12:00:00Z"
    assert [wallet["balance"] for wallet in found["by_type"]] == [500, 197, 1000, 196, 500]
