"""What cannot happen in books of ours is found all the same; speed and size."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from tests.db.reports_world import break_books
from tokenlib import Tokens
from tokenlib.db import statements
from tokenlib.reports import Reports
from tokenlib.reports.health import PlanDrift, StuckWallet, latency

Person = tuple[UUID, UUID]


@pytest.fixture
def reports(tokens: Tokens) -> Reports:
    return Reports(tokens.database)


def test_healthy_books_show_nothing(tokens: Tokens, reports: Reports, pro: Person) -> None:
    tokens.deduct_tokens(*pro, "generate_goal")
    assert reports.stuck_tokens() == []
    assert reports.sums_that_do_not_close() == []
    assert reports.overdue_periods() == []
    assert reports.plan_drift() == []
    assert reports.findings() == []


def test_stuck_tokens_and_open_sums_are_the_operators_own(
    reports: Reports, pro: Person, owner: psycopg.Connection
) -> None:
    break_books(owner, pro[0])
    found = reports.stuck_tokens()
    assert found == [StuckWallet(pro[0], "Acme pro", "general", 55, 50)]
    assert [(row.organization_id, row.token_type) for row in found] == owner.execute(
        "select organization_id, token_type from ai_tokens where balance > total_allocated"
    ).fetchall()

    owner.execute("update ai_tokens set total_used = 2 where token_type = 'forecast'")
    assert [
        (row.token_type, row.balance, row.total_used, row.total_allocated, row.difference)
        for row in reports.sums_that_do_not_close()
    ] == [("forecast", 30, 2, 30, 2), ("general", 55, 0, 50, 5)]


@pytest.mark.usefixtures("pro")
def test_overdue_periods_the_longest_first(
    reports: Reports, noon: datetime, owner: psycopg.Connection
) -> None:
    for token_type, overdue in {"forecast": 1, "general": 3, "lead_generation": -1}.items():
        owner.execute(
            "update ai_tokens set refresh_date = %s where token_type = %s",
            [noon - timedelta(days=overdue), token_type],
        )
    assert [(row.token_type, row.overdue) for row in reports.overdue_periods()] == [
        ("general", timedelta(days=3)),
        ("forecast", timedelta(days=1)),
    ]


def test_a_plan_changed_outside_drifts_until_the_next_touch(
    tokens: Tokens, reports: Reports, pro: Person, owner: psycopg.Connection
) -> None:
    tokens.grant(pro[0], "shared", 100, kind="purchase")
    owner.execute("update organizations set plan = 'enterprise'")
    assert reports.plan_drift() == [PlanDrift(pro[0], "Acme pro", "enterprise", "pro", 5)]
    tokens.deduct_tokens(*pro, "generate_goal")
    assert [row.wallets for row in reports.plan_drift()] == [4]
    tokens.get_all_token_balances(pro[0])
    assert reports.plan_drift() == []


def test_findings_are_open_until_somebody_settles_them(
    tokens: Tokens, reports: Reports, owner: psycopg.Connection
) -> None:
    [[organization]] = owner.execute(
        "insert into organizations (name, plan) values ('Adopted', 'pro') returning id"
    ).fetchall()
    owner.execute(
        "insert into ai_tokens (organization_id, token_type, balance, total_allocated, total_used)"
        " values (%s, 'general', 9999, 9999, 0), (%s, 'forecast', 20, 27, 7)",
        [organization, organization],
    )
    tokens.get_all_token_balances(organization)
    found = {row.kind: row for row in reports.findings()}
    assert set(found) == {"emergency_balance", "used_differs_from_log"}
    assert found["emergency_balance"].found["balance"] == 9999
    assert found["emergency_balance"].organization == "Adopted"

    tokens.settle_finding(
        organization, found["emergency_balance"].id, actor="A test", reason="kept as it is"
    )
    assert [row.kind for row in reports.findings(settled=False)] == ["used_differs_from_log"]
    [settled] = reports.findings(settled=True)
    assert (settled.settled_by, settled.settlement) == ("A test", "kept as it is")
    assert [row.kind for row in reports.findings()] == [
        "used_differs_from_log",
        "emergency_balance",
    ]


@pytest.mark.parametrize(
    ("operation", "milliseconds", "grade"),
    [
        ("check", 5, "on_target"),
        ("check", 5.1, "acceptable"),
        ("check", 10.1, "slow"),
        ("check", 20, "alert"),
        ("deduct", 50, "acceptable"),
        ("stats", 49.9, "slow"),
        ("api", 500, "alert"),
        ("page", 300, "on_target"),
        ("something else", 1, "unknown"),
    ],
)
def test_a_measurement_is_graded_by_what_was_promised(
    operation: str, milliseconds: float, grade: str
) -> None:
    assert latency(operation, datetime(2026, 3, 1, tzinfo=UTC), milliseconds).grade == grade


def test_measurements_are_kept_with_their_targets(tokens: Tokens, reports: Reports) -> None:
    for operation, milliseconds in (("api", 80.0), ("page", 410.0), ("page", 250.0)):
        tokens.database.call(
            statements("plans")["record_latency"],
            {"operation": operation, "milliseconds": milliseconds},
        )
    since = datetime.now(UTC) - timedelta(hours=1)
    history = reports.latencies(since)
    assert [(row.operation, row.milliseconds, row.target, row.alert) for row in history] == [
        ("page", 250, 300, 1000),
        ("page", 410, 300, 1000),
        ("api", 80, 100, 500),
    ]
    assert reports.latencies(history[0].measured_at) == history[:1]
    assert [(row.operation, row.milliseconds) for row in reports.latest_latencies()] == [
        ("api", 80),
        ("page", 250),
    ]


def test_database_size_is_the_servers(reports: Reports, owner: psycopg.Connection) -> None:
    size = reports.database_size()
    [[now]] = owner.execute("select pg_database_size(current_database())").fetchall()
    assert size > 1_000_000
    assert abs(now - size) < 1_000_000  # the server may have written meanwhile
