"""Questions read what they need through an index, for the service, for staff and for members."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tokenlib import Tokens
from tokenlib.db import Database, Reader, statements
from tokenlib.embedded import Embedded
from tokenlib.testing import TestDatabase

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
ROWS = 30_000
LEDGER = dict.fromkeys(
    (
        *("token_type", "before_at", "before_type", "before_log", "before_event", "before_id"),
        *("feature", "kind", "since", "until", "user_id"),
    )
)
FILTERS = {"user_id": None, "feature": None, "plan": None}
BY_DAY = {"timezone": "UTC", "bucket": "day", "by": "feature", "top": 8}
FIRST_ROWS = {"before_at": None, "before_organization": None, "before_id": None, "limit": 100}
BEFORE = NOW - timedelta(days=14)


class Busy:
    """A log of 100 organizations over 120 days, and somebody of each kind who asks."""

    def __init__(self, database: TestDatabase, tokens: Tokens) -> None:
        self.tokens = tokens
        self.organization = tokens.create_organization("Organization A", "pro")
        member = tokens.add_member(self.organization, "User A1", "a1@example.org")
        staff = uuid4()
        with database.connect("tokenlib_owner") as owner:
            owner.execute(
                "insert into tokenlib_staff (user_id, email, full_name, role)"
                " values (%s, 'staff@example.org', 'Staff', 'support')",
                [staff],
            )
            owner.execute(
                "create temporary table many as select %s::uuid as id, 0 as n"
                " union all select gen_random_uuid(), n from generate_series(1, 99) as n",
                [self.organization],
            )
            owner.execute(
                "insert into ai_token_usage_log (organization_id, user_id, token_type,"
                " feature_used, tokens_deducted, remaining_balance, number, created_at)"
                " select id, %s, 'general', 'generate_insight', 1, 1, g,"
                " %s - (%s - g) * interval '120 days' / %s"
                " from generate_series(1, %s) as g join many on n = g %% 100",
                [member, NOW, ROWS, ROWS, ROWS],
            )
            owner.execute(
                "insert into ai_token_events (organization_id, token_type, number, after_log, kind,"
                " balance_change, balance_after, effective_at, created_at, actor, hash_version,"
                " hash) select organization_id, token_type, number, number,"
                " case when number % 100 = 0 then 'refund' else 'reserve' end, 1, 1, created_at,"
                " created_at, 'A test', 1, '' from ai_token_usage_log",
            )
            owner.execute(
                "insert into ai_token_refusals (organization_id, user_id, feature, rule, minute,"
                " first_at, last_at) select organization_id, user_id, feature_used, 'rate_limited',"
                " created_at, created_at, created_at from ai_token_usage_log",
            )
            owner.execute("analyze")
        self.viewers: dict[str, tuple[Reader, UUID | None]] = {
            "the service": ("tokenlib_service", None),
            "staff": ("tokenlib_reader", staff),
            "a member": ("authenticated", member),
        }

    def plan(self, viewer: str, noun: str, question: str, **params: Any) -> str:
        reader, user_id = self.viewers[viewer]
        with self.tokens.database.transaction(reader=reader, user_id=user_id) as connection:
            driver: Any = connection.connection.driver_connection
            rows = driver.execute(
                "explain " + statements(noun)[question], params, prepare=False
            ).fetchall()
        return "\n".join(line for (line,) in rows)


@pytest.fixture(scope="module")
def busy(token_server: Embedded) -> Iterator[Busy]:
    database = TestDatabase(token_server, f"busy_{uuid4().hex[:12]}")
    with TestDatabase(token_server, "postgres").connect("postgres") as connection:
        connection.execute(f'create database "{database.name}" template tokenlib_template')
        try:
            with Tokens(Database(database.url())) as tokens:
                yield Busy(database, tokens)
        finally:
            connection.execute(f'drop database "{database.name}" with (force)')


@pytest.mark.parametrize("viewer", ["the service", "staff", "a member"])
@pytest.mark.parametrize(
    ("noun", "question", "more"),
    [
        ("usage", "by_feature", {}),
        ("usage", "by_day", {"timezone": "UTC", "by_feature": True}),
        ("usage", "top_organizations", {"limit": 10}),
        ("usage", "top_users", {"limit": 10}),
        ("usage", "refunds", {}),
        ("refusals", "by_rule", {}),
        ("refusals", "latest", {"limit": 10, "user_id": None}),
        ("refusals", "frequent", {"limit": 10, "by_user": False, "by_plan": False}),
        ("series", "series", {**BY_DAY, **FILTERS}),
        ("series", "totals", FILTERS),
        (
            "series",
            "before",
            {"by": "user", "top": 8, "before": BEFORE, "before_until": NOW - timedelta(days=7)},
        ),
        ("series", "rows", {**FIRST_ROWS, **FILTERS, "token_type": None}),
        ("spend", "spenders", {"limit": 10, "by_user": True, "last_day": 6, "before": BEFORE}),
    ],
)
def test_a_window_is_read_by_its_index(
    busy: Busy, viewer: str, noun: str, question: str, more: dict[str, Any]
) -> None:
    week = {"since": NOW - timedelta(days=7), "until": NOW}
    for organization_id in (None, busy.organization):
        plan = busy.plan(viewer, noun, question, **week, organization_id=organization_id, **more)
        for table in ("ai_token_usage_log", "ai_token_events", "ai_token_refusals"):
            assert f"Seq Scan on {table}" not in plan, plan
        assert "Index" in plan


@pytest.mark.parametrize("viewer", ["the service", "staff", "a member"])
@pytest.mark.parametrize(
    ("noun", "question", "more"),
    [
        ("wallets", "ledger", {**LEDGER, "limit": 50}),
        ("explain", "story", {"token_type": "general", "at": None}),
        ("organizations", "members", {}),
    ],
)
def test_one_organization_is_read_by_its_index(
    busy: Busy, viewer: str, noun: str, question: str, more: dict[str, Any]
) -> None:
    plan = busy.plan(viewer, noun, question, organization_id=busy.organization, **more)
    for table in ("ai_token_usage_log", "ai_token_events"):
        assert f"Seq Scan on {table}" not in plan, plan


@pytest.mark.parametrize("viewer", ["the service", "staff", "a member"])
@pytest.mark.parametrize(
    ("noun", "question", "more"),
    [
        ("overview", "run_outs", {"within": timedelta(days=7), "limit": 5, "ids": None}),
        ("settings", "cost_effects", {"feature": "generate_goal", "cost": 4, "limit": 8}),
    ],
)
def test_a_time_up_to_now_is_read_by_its_index(
    busy: Busy, viewer: str, noun: str, question: str, more: dict[str, Any]
) -> None:
    plan = busy.plan(viewer, noun, question, **more)
    assert "Seq Scan on ai_token_usage_log" not in plan, plan
    # From where the week begins: with its end alone, the index is read from the log's first row on.
    assert re.search(r"Index Cond: .*created_at >= .*created_at < ", plan), plan


@pytest.mark.parametrize("viewer", ["the service", "staff"])
@pytest.mark.parametrize(
    ("noun", "question", "more"),
    [
        ("overview", "totals", {"since": NOW - timedelta(days=7), "until": NOW, "before": BEFORE}),
        (
            "overview",
            "days",
            {"since": NOW - timedelta(days=7), "until": NOW, "timezone": "UTC"},
        ),
        (
            "settings",
            "changes",
            {**FIRST_ROWS, "organization_id": None, "action": None, "actor": None},
        ),
    ],
)
def test_what_staff_ask_is_read_by_its_index(
    busy: Busy, viewer: str, noun: str, question: str, more: dict[str, Any]
) -> None:
    plan = busy.plan(viewer, noun, question, **more)
    for table in ("ai_token_usage_log", "ai_token_events", "ai_token_refusals"):
        assert f"Seq Scan on {table}" not in plan, plan
