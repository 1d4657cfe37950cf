"""What row-level security costs a member when the log is large: its own, by index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import Tokens
from tokenlib.db import Database
from tokenlib.embedded import Embedded
from tokenlib.testing import TestDatabase

pytestmark = pytest.mark.timeout(300)  # the rows take a while where many are at work

ORGANIZATIONS = 1_000
ROWS = [200_000, pytest.param(1_000_000, marks=pytest.mark.thorough)]

# Seven months of charges, the organizations in turn: everybody's rows lie among everybody else's.
FILL = """
insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used, tokens_deducted,
    remaining_balance, created_at, number, hash_version, hash)
select case n %% %(organizations)s when 0 then %(id)s
        else md5((n %% %(organizations)s)::text)::uuid end,
    %(user)s, 'general', 'generate_insight', 1, 1,
    timestamptz '2026-01-01 00:00Z' + n * (interval '20000000 seconds' / %(rows)s),
    1 + n / %(organizations)s, 1, ''
from generate_series(0, %(rows)s - 1) as n
"""
QUESTIONS = {
    "all of it": "select * from ai_token_usage_log",
    "the latest": (
        "select * from ai_token_usage_log where organization_id = %(id)s"
        " order by created_at desc limit 50"
    ),
    "a month by feature": (
        "select feature_used, sum(tokens_deducted) from ai_token_usage_log"
        " where created_at >= '2026-07-20' group by 1"
    ),
    "a stranger": "select * from ai_token_usage_log where user_id = gen_random_uuid()",
    "another organization": (
        "select * from ai_token_usage_log where organization_id = md5('1')::uuid"
    ),
    "with the wallet": (
        "select l.* from ai_tokens join ai_token_usage_log l using (organization_id, token_type)"
    ),
}


@dataclass(frozen=True)
class Member:
    """A session as a member of one of a thousand organizations."""

    organization: UUID
    session: psycopg.Connection
    rows: int


@pytest.fixture(scope="module", params=ROWS, ids="{:,} rows".format)
def member(token_server: Embedded, request: pytest.FixtureRequest) -> Iterator[Member]:
    database = TestDatabase(token_server, f"million_{uuid4().hex[:12]}")
    with TestDatabase(token_server, "postgres").connect("postgres") as root:
        root.execute(
            f'create database "{database.name}" template tokenlib_template strategy file_copy'
        )
        try:
            with (
                Tokens(Database(database.url())) as tokens,
                database.connect("postgres") as session,
            ):
                organization = tokens.create_organization("One of many", "pro")
                user = tokens.add_member(organization, "A member", "member@example.org")
                fill(session, organization, user, request.param)
                session.execute("set role authenticated")
                claims = json.dumps({"sub": str(user)})
                session.execute("select set_config('request.jwt.claims', %s, false)", [claims])
                yield Member(organization, session, request.param)
        finally:
            root.execute(f'drop database "{database.name}" with (force)')


def fill(session: psycopg.Connection, organization: UUID, user: UUID, rows: int) -> None:
    params = {"id": organization, "user": user, "organizations": ORGANIZATIONS, "rows": rows}
    session.execute("alter table ai_token_usage_log set unlogged")  # it is to be read, not kept
    assert session.execute(FILL, params).rowcount == rows
    session.execute("analyze ai_token_usage_log")


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_member_reads_its_own_of_a_million_rows_by_index(member: Member, question: str) -> None:
    row = member.session.execute(
        f"explain (analyze, format json) {QUESTIONS[question]}".encode(),
        {"id": member.organization},
    ).fetchone()
    assert row is not None
    [explained] = row[0]
    log = "ai_token_usage_log"
    scans = [node for node in nodes(explained["Plan"]) if node.get("Relation Name") == log]
    assert scans
    for scan in scans:
        assert scan["Node Type"] != "Seq Scan", scan
        assert "organization_id" in scan.get("Index Cond", scan.get("Recheck Cond", "")), scan
        # It has not seen a row of another organization; its own at most once for each wallet.
        rows = scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)
        assert rows * scan["Actual Loops"] <= 5 * member.rows // ORGANIZATIONS, scan
    # The memberships are asked for once, not for every row.
    asked = [
        node for node in nodes(explained["Plan"]) if node.get("Subplan Name", "")[:4] == "Init"
    ]
    assert asked
    assert all(node["Actual Loops"] == 1 for node in asked)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)
