"""What wallets hold: stored figures, who runs low and when it ends, and holds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from tests.db import reports_world
from tests.db.reports_world import NOW, TICK, World
from tokenlib import Tokens
from tokenlib.embedded import Embedded
from tokenlib.reports import Reports
from tokenlib.testing import TestClock

Person = tuple[UUID, UUID]


@pytest.fixture(scope="module")
def world(token_server: Embedded) -> Iterator[World]:
    with reports_world.made(token_server) as made:
        yield made


@pytest.fixture
def reports(tokens: Tokens) -> Reports:
    return Reports(tokens.database)


def use_up(tokens: Tokens, person: Person, tokens_used: int) -> None:
    tokens.deduct_tokens(*person, "generate_insight", tokens_used)


def test_wallets_are_the_stored_figures(world: World) -> None:
    found = world.service().wallets()
    assert {
        (
            row.organization_id,
            row.token_type,
            row.balance,
            row.total_used,
            row.total_allocated,
            row.refresh_date,
            row.last_used_at,
        )
        for row in found
    } == set(
        world.plain(
            "select organization_id, token_type, balance, total_used, total_allocated,"
            " refresh_date, last_used_at from ai_tokens"
        )
    )
    assert len(found) == 4 * 5 + 1


def test_wallets_come_by_name_and_in_the_catalogs_order(world: World) -> None:
    found = world.service().wallets(world.b)
    assert [row.token_type for row in found] == [
        "lead_generation",
        "goal_generation",
        "strategy_analysis",
        "forecast",
        "general",
        "shared",
    ]
    assert {(row.name, row.plan, row.status) for row in found} == {
        ("Organization B", "enterprise", "limited")
    }
    names = [row.name for row in world.service().wallets()]
    assert names == sorted(names)


def test_a_wallet_is_due_from_its_refresh_date_on(
    tokens: Tokens, reports: Reports, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    use_up(tokens, pro, 30)
    token_clock.set(noon + timedelta(days=30) - TICK)
    assert not any(row.refresh_due for row in reports.wallets(pro[0]))
    assert reports.overdue_periods() == []

    token_clock.set(noon + timedelta(days=30))
    due = reports.wallets(pro[0])
    assert all(row.refresh_due for row in due)
    # Stored, not refreshed: reading moves nothing.
    assert {row.token_type: row.balance for row in due}["general"] == 20
    overdue = reports.overdue_periods()
    assert [row.overdue for row in overdue] == [timedelta(0)] * 5
    organization = reports.organization(pro[0])
    assert organization is not None
    assert organization.refresh_due

    tokens.refresh_tokens()
    assert not any(row.refresh_due for row in reports.wallets(pro[0]))


@pytest.mark.parametrize(
    ("used", "level"),
    [(24, "green"), (25, "yellow"), (40, "yellow"), (41, "red"), (50, "red")],
)
def test_a_wallet_has_its_colour_and_the_organization_that_of_its_worst(
    tokens: Tokens, reports: Reports, pro: Person, used: int, level: str
) -> None:
    use_up(tokens, pro, used)
    wallets = {row.token_type: row.level for row in reports.wallets(pro[0])}
    assert wallets.pop("general") == level
    assert set(wallets.values()) == {"green"}
    organization = reports.organization(pro[0])
    assert organization is not None
    assert organization.level == level


def test_zero_of_zero_and_packs_have_no_colour_for_the_organization(
    tokens: Tokens, reports: Reports
) -> None:
    starter = tokens.create_organization("A starter", "starter")
    user = tokens.add_member(starter, "A member", "member@example.org")
    assert {row.level for row in reports.wallets(starter)} == {"none"}
    tokens.grant(starter, "shared", 3, kind="purchase", source="pack")
    found = reports.organization(starter)
    assert found is not None
    assert (found.level, found.balance, found.members) == ("none", 3, 1)
    assert user is not None


def test_unlimited_is_said_and_is_never_near_its_limit(
    tokens: Tokens, reports: Reports, owner: psycopg.Connection
) -> None:
    owner.execute(
        "update ai_token_allowances set allowance = null"
        " where plan = 'enterprise' and token_type = 'general'"
    )
    organization = tokens.create_organization("Without a limit", "enterprise")
    user = tokens.add_member(organization, "A member", "member@example.org")
    use_up(tokens, (organization, user), 1000)
    wallets = {row.token_type: row for row in reports.wallets(organization)}
    general = wallets["general"]
    assert (general.unlimited, general.allowance, general.balance) == (True, None, 0)
    assert general.level == "green"
    assert not wallets["forecast"].unlimited
    assert reports.organizations(near=100).total == 0
    found = reports.organization(organization)
    assert found is not None
    assert (found.unlimited, found.level) == (True, "green")


def test_a_wallet_that_nobody_opened_is_not_called_unlimited(
    reports: Reports, owner: psycopg.Connection
) -> None:
    [[organization]] = owner.execute(
        "insert into organizations (name, plan) values ('Set up by a script', 'pro') returning id"
    ).fetchall()
    owner.execute(
        "insert into ai_tokens (organization_id, token_type, balance, total_allocated)"
        " values (%s, 'general', 50, 50)",
        [organization],
    )
    [wallet] = reports.wallets(organization)
    assert (wallet.plan, wallet.allowance, wallet.unlimited) == ("pro", None, False)


def test_granted_extra_is_what_this_period_has_beyond_the_allowance(
    tokens: Tokens, reports: Reports, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    def general() -> tuple[int, int | None, int]:
        row = {row.token_type: row for row in reports.wallets(pro[0])}["general"]
        return row.total_allocated, row.allowance, row.granted_extra

    assert general() == (50, 50, 0)
    tokens.grant(pro[0], "general", 30, effective_at=noon + timedelta(days=3))
    assert general() == (50, 50, 0)  # not yet in the balance
    tokens.grant(pro[0], "general", 10, expires_at=noon + timedelta(days=60))
    assert general() == (60, 50, 10)
    token_clock.set(noon + timedelta(days=4))
    use_up(tokens, pro, 56)
    assert general() == (90, 50, 40)
    token_clock.set(noon + timedelta(days=31))
    tokens.refresh_tokens()
    # The allowance (50) burns first, so 6 of the gifts are gone.
    assert general() == (84, 50, 34)


@pytest.mark.parametrize(("used", "at"), [(39, None), (40, 80), (49, 80), (50, 100)])
def test_near_the_limit_begins_at_exactly_80_and_100_percent(
    tokens: Tokens, reports: Reports, pro: Person, used: int, at: int | None
) -> None:
    use_up(tokens, pro, used)
    assert [near for near in (80, 100) if reports.organizations(near=near).total] == (
        [] if at is None else [at]
    )


def test_reservations_are_live_or_expired(world: World) -> None:
    reports = world.service()
    live = {("Organization A", "generate_leads", 10), ("Organization B", "generate_leads", 10)}
    over = {("Organization A", "analyze_strategy", 2), ("Organization B", "analyze_strategy", 2)}

    def held(expired_only: bool = False, live_only: bool = False) -> set[tuple[str, str, int]]:
        rows = reports.reservations(expired_only, live_only)
        return {(row.organization, row.feature, row.tokens) for row in rows}

    assert held() == live | over
    assert held(live_only=True) == live
    assert held(expired_only=True) == over
    expired = reports.reservations(expired_only=True)
    assert all(row.expired and row.age == timedelta(minutes=20) for row in expired)
    assert [(row.id,) for row in expired] == world.plain(
        "select id from ai_token_reservations where state = 'held' and expires_at <= %s"
        " order by created_at, id",
        NOW,
    )
    assert {row.user for row in reports.reservations(organization_id=world.a)} == {"User A1"}


def test_a_hold_is_expired_from_its_expiry_on(
    tokens: Tokens, reports: Reports, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    held = tokens.reserve(*pro, "generate_goal")
    token_clock.set(held.expires_at - TICK)
    assert [row.id for row in reports.reservations(live_only=True)] == [held.id]
    assert [row.expired for row in reports.reservations()] == [False]
    assert reports.reservations(expired_only=True) == []
    token_clock.set(held.expires_at)
    assert reports.reservations(live_only=True) == []
    [expired] = reports.reservations(expired_only=True)
    assert (expired.id, expired.expired, expired.age) == (held.id, True, held.expires_at - noon)
    tokens.refresh_tokens()  # its touch gives the hold back
    assert reports.reservations() == []
