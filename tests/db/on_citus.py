"""What only a Citus shows; for `make test-citus`, which names this file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.db.conftest import Person
from tokenlib import Tokens
from tokenlib.db import statements
from tokenlib.doctor import examine
from tokenlib.errors import PermissionDenied
from tokenlib.testing import TestDatabase

DEDUCT = "select status from tokenlib.deduct(%s, %s, 'generate_goal', 1, null, %s, true, null)"


def test_a_charge_runs_on_the_node_of_the_organization(
    pro: Person, token_database: TestDatabase
) -> None:
    with token_database.connect("tokenlib_service") as connection:
        said: list[str] = []
        connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
        connection.execute("set client_min_messages = debug1")
        assert connection.execute(DEDUCT, (*pro, "a key")).fetchone() == ("ok",)
    assert "pushing down the function call" in said


def test_organizations_lie_on_both_workers(tokens: Tokens, owner: psycopg.Connection) -> None:
    for number in range(20):
        tokens.create_organization(f"Acme {number}", "pro")
    nodes = owner.execute(
        "select count(distinct nodename) from pg_dist_shard_placement where shardid in (select"
        " get_shard_id_for_distribution_column('ai_tokens', id) from organizations)"
    ).fetchone()
    assert nodes == (2,)


def test_a_member_reads_its_own_rows_wherever_they_lie(tokens: Tokens, pro: Person) -> None:
    other = tokens.create_organization("Globex", "pro")
    query = "select distinct organization_id from public.ai_tokens"
    for user, own in ((pro[1], [pro[0]]), (uuid4(), [])):
        rows = tokens.database.rows(query, reader="authenticated", user_id=user)
        assert [row["organization_id"] for row in rows] == own
    found = {row["organization_id"] for row in tokens.database.rows(query)}
    assert found == {pro[0], other}


def test_what_is_on_record_is_changed_by_nobody(
    tokens: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    """Without triggers: the owner itself has no right to it."""
    tokens.deduct_tokens(*pro, "generate_goal", metadata={"prompt": "ours"})
    for statement in (
        "update {} set organization_id = organization_id",
        "update {} set created_at = now()",
        "delete from {}",
        "truncate {}",
    ):
        for table in ("ai_token_usage_log", "ai_token_events"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                owner.execute(statement.format(table).encode())
    with pytest.raises(psycopg.errors.CheckViolation):
        owner.execute("update ai_tokens set balance = 9999")
    assert tokens.erase(*pro, actor="an operator", reason="asked for").log_entries == 1
    assert tokens.verify().closed


def test_the_doctor_knows_what_the_statements_leave(tokens: Tokens) -> None:
    failed = [check.detail for check in examine(tokens, smoke=True) if check.status == "failed"]
    assert failed == ["not as packaged: clock"]  # the clock of the tests


def test_the_switch_is_for_everyone_where_no_organization_is_named(
    tokens: Tokens, pro: Person
) -> None:
    """Citus crashes when it looks for the node of null; so these run where they are asked."""
    tokens.set_mode("log_only", actor="an operator", reason="a drill")
    assert tokens.deduct_tokens(*pro, "generate_goal").remaining_balance == 20
    asked = dict.fromkeys(("organization_id", "user_id", "mode"))
    with pytest.raises(PermissionDenied, match="Only staff"):
        tokens.database.call(
            statements("api")["write_for_everyone"],
            {
                **asked,
                "caller": uuid4(),
                "secret": None,
                "verb": "set_mode",
                "key": "k",
                "hash": b"",
                "args": "{}",
            },
        )


def test_the_refresh_of_everybody_forgets_old_requests_of_the_api(
    tokens: Tokens, noon: datetime, owner: psycopg.Connection
) -> None:
    for days in (6, 8, 8):
        owner.execute(
            "insert into ai_token_api_requests (organization_id, caller_id, idempotency_key,"
            " request_hash, verb, answer, created_at) values (gen_random_uuid(),"
            " gen_random_uuid(), 'k', '', 'deduct', '{}', %s)",
            [noon - timedelta(days=days)],
        )
    tokens.refresh_tokens()
    assert owner.execute("select count(*) from ai_token_api_requests").fetchone() == (1,)


def test_periods_of_every_organization_are_refreshed(
    tokens: Tokens, noon: datetime, owner: psycopg.Connection
) -> None:
    organizations: list[UUID] = [tokens.create_organization(f"O{n}", "pro") for n in range(8)]
    owner.execute(
        "update tokenlib.test_clock set stopped_at = %s", (datetime(2026, 4, 2, tzinfo=UTC),)
    )
    assert tokens.refresh_tokens() == 5 * len(organizations)
    assert tokens.refresh_tokens() == 0
    assert tokens.verify().closed
