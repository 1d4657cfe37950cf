"""The overview equals the questions and the plain SQL that it brings together."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Literal
from uuid import uuid4

import psycopg
import pytest

from tests.db import reports_world
from tests.db.conftest import Person
from tests.db.reports_world import DAY_AGO, NOW, SINCE, TICK, UNTIL, World
from tokenlib import InvalidInput, PermissionDenied, Refused, Tokens
from tokenlib.embedded import Embedded
from tokenlib.reports import Page, Reports
from tokenlib.reports.organizations import OrganizationRow
from tokenlib.reports.overview import last_monday
from tokenlib.testing import TestClock

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def world(token_server: Embedded) -> Iterator[World]:
    with reports_world.made(token_server) as made:
        yield made


@pytest.fixture(scope="module")
def broken(token_server: Embedded) -> Iterator[World]:
    """A world with what cannot happen in books of ours, and a verification that found it."""
    with reports_world.made(token_server) as made:
        with made.database.connect("tokenlib_owner") as owner:
            reports_world.break_books(owner, made.a, made.b)
        made.tokens.verify(made.a)
        yield made


@pytest.mark.parametrize(
    ("since", "until"), [(SINCE, UNTIL), (DAY_AGO, NOW), (NOW - 30 * DAY, NOW), (NOW, NOW)]
)
def test_each_figure_is_the_plain_query_s_now_and_before(
    world: World, since: datetime, until: datetime
) -> None:
    found = world.service().overview(since, until)
    for figures, start, end in (
        ([getattr(found, name).value for name in FIGURES], since, until),
        ([getattr(found, name).before for name in FIGURES], since - (until - since), since),
    ):
        ((uses, tokens, organizations),) = world.plain(
            "select count(*), coalesce(sum(tokens_deducted), 0), count(distinct organization_id)"
            " from ai_token_usage_log where created_at >= %s and created_at < %s",
            start,
            end,
        )
        refused = sum(row.count for row in world.service().refusals_by_rule(start, end))
        rate = refused / (refused + uses) if refused + uses else 0
        money = world.service().cost_against_revenue(start, end)
        assert figures == [
            tokens,
            uses,
            organizations,
            rate,
            world.service().refunds(start, end).tokens,
            float(money.cost_cents),
            float(money.revenue_cents),
        ]


FIGURES = (
    "tokens",
    "uses",
    "organizations",
    "refusal_rate",
    "refunded",
    "cost_cents",
    "revenue_cents",
)


@pytest.mark.parametrize("timezone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_the_days_are_the_reader_s_days(world: World, timezone: str) -> None:
    found = world.service().overview(SINCE, UNTIL, timezone)
    rows = world.plain(
        "select (created_at at time zone %(zone)s)::date, count(*), sum(tokens_deducted),"
        " count(distinct organization_id) from ai_token_usage_log"
        " where (created_at at time zone %(zone)s)::date >= %(first)s and created_at < %(until)s"
        " group by 1",
        zone=timezone,
        first=found.days[0],
        until=UNTIL,
    )
    by_day = {day: figures for day, *figures in rows}
    for index, day in enumerate(found.days):
        figures = [
            getattr(found, name).daily[index] for name in ("uses", "tokens", "organizations")
        ]
        assert figures == by_day.get(day, [0, 0, 0])
    assert set(by_day) <= set(found.days)
    # Two refusals against starter on 12 March UTC, one charge waived the day before.
    refusals = dict(zip(found.days, found.refusal_rate.daily, strict=True))
    if timezone == "UTC":
        assert refusals[date(2026, 3, 12)] == 1
        assert refusals[date(2026, 3, 11)] == 0


def test_a_short_window_still_has_a_sparkline(world: World) -> None:
    found = world.service().overview(DAY_AGO, NOW)
    assert (found.days[0], found.days[-1]) == (date(2026, 3, 2), date(2026, 3, 15))
    assert len(found.days) == 14
    assert len(found.tokens.daily) == 14
    assert found.tokens.change == (found.tokens.value - found.tokens.before) / found.tokens.before
    midnight = datetime(2026, 3, 14, tzinfo=UTC)
    assert world.service().overview(SINCE, midnight).days[-1] == date(2026, 3, 13)
    with pytest.raises(InvalidInput, match="timezone"):
        world.service().overview(DAY_AGO, NOW, "Mars/Base")
    with pytest.raises(PermissionDenied):
        world.member(world.a1).overview(DAY_AGO, NOW)


def test_attention_counts_what_the_questions_list(broken: World) -> None:
    reports = broken.as_staff(broken.staff)
    found = reports.attention(limit=1)
    near = broken.plain(
        "select distinct organization_id, case when total_used < total_allocated then 80"
        " else 100 end from ai_tokens where total_allocated > 0 and total_used * 5 >="
        " total_allocated * 4"
    )
    pages: dict[Literal[80, 100], Page[OrganizationRow]] = {80: found.at_80, 100: found.at_100}
    for at, page in pages.items():
        every = {organization for organization, level in near if level == at}
        listed = reports.organizations(near=at)
        assert {row.organization_id for row in listed.rows} == every
        assert (page.total, page.rows) == (len(every), listed.rows[:1])
    assert found.expired_holds.total == len(reports.reservations(expired_only=True)) > 1
    assert found.overdue.total == len(reports.overdue_periods()) > 1
    assert found.findings.total == len(reports.findings(settled=False)) == 2
    assert found.abuse == reports.abuse(DAY_AGO, NOW, 1)
    assert len(found.expired_holds.rows) == len(found.overdue.rows) == len(found.findings.rows) == 1
    assert found.verification is None  # only one organization was verified
    broken.tokens.verify()
    verified = reports.attention().verification
    assert verified is not None
    assert verified == reports.verifications()[0]
    assert verified.at == NOW
    assert verified.problems > 0
    ((wallets, entries),) = broken.plain(
        "select (select count(*) from ai_tokens), (select count(*) from ai_token_usage_log)"
        " + (select count(*) from ai_token_events)"
    )
    assert (verified.wallets, verified.entries) == (wallets, entries)
    with pytest.raises(PermissionDenied):
        broken.member(broken.a1).attention()


# Movers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "timezone", "monday"),
    [
        (datetime(2026, 3, 15, 12, tzinfo=UTC), "UTC", datetime(2026, 3, 9, tzinfo=UTC)),
        (datetime(2026, 3, 9, 12, tzinfo=UTC), "UTC", datetime(2026, 3, 2, tzinfo=UTC)),
        (datetime(2026, 3, 10, tzinfo=UTC), "UTC", datetime(2026, 3, 9, tzinfo=UTC)),
        # Still Monday in New York, whose clocks went ahead the day before.
        (
            datetime(2026, 3, 10, 3, tzinfo=UTC),
            "America/New_York",
            datetime(2026, 3, 2, 5, tzinfo=UTC),
        ),
    ],
)
def test_last_monday(now: datetime, timezone: str, monday: datetime) -> None:
    assert last_monday(now, timezone) == monday


def test_movers_compare_the_same_days_of_the_week(world: World) -> None:
    found = world.service().movers()
    assert found.since == datetime(2026, 3, 9, tzinfo=UTC)

    def used(since: datetime, until: datetime) -> dict[object, int]:
        return dict(
            world.plain(
                "select organization_id, sum(tokens_deducted)::bigint from ai_token_usage_log"
                " where created_at >= %s and created_at < %s group by 1",
                since,
                until,
            )
        )

    now, before = used(found.since, NOW), used(found.since - 7 * DAY, NOW - 7 * DAY)
    moved = {one.organization_id: (one.tokens, one.before) for one in found.moved}
    assert moved == {
        one: (now.get(one, 0), before.get(one, 0))
        for one in now | before
        if now.get(one, 0) != before.get(one, 0)
    }
    changes = [abs(one.change) for one in found.moved]
    assert changes == sorted(changes, reverse=True)
    assert len(world.service().movers(limit=1).moved) == 1
    upgrades = [(one.organization, one.refusals, one.rate_limited) for one in found.upgrades]
    assert upgrades[0] == ("Organization C", 2, 0)


def test_who_runs_out_is_projected_from_the_last_week(
    tokens: Tokens, noon: datetime, token_clock: TestClock, pro: Person, owner: psycopg.Connection
) -> None:
    organization, member = pro
    reports = Reports(tokens.database)
    tokens.grant(organization, "shared", 70)
    token_clock.advance(25 * DAY)
    now = noon + 25 * DAY
    tokens.deduct_tokens(organization, member, "analyze_strategy", 35)  # 70 of 100: 3 days left
    tokens.deduct_tokens(organization, member, "generate_goal", 5)  # 15 of 20: 2.33 days left
    tokens.deduct_tokens(organization, member, "generate_leads", 6)  # 30 of 50: 4.67 days left
    tokens.deduct_tokens(organization, member, "forecast_revenue", 4)  # 14 of 30: 6.1 days left,
    # which is after its refresh
    tokens.deduct_tokens(organization, member, "forecast_revenue", 9)  # from `shared`: 36 of 70
    token_clock.advance(TICK)  # what was used until now counts
    page = reports.run_outs()
    days = [(one.token_type, round((one.run_out_at - now) / DAY, 2)) for one in page.rows]
    assert days == [
        ("goal_generation", 2.33),
        ("strategy_analysis", 3.0),
        ("lead_generation", 4.67),  # before its refresh in 5 days
        ("shared", 6.61),  # its period ends before, but nothing refills it
    ]
    assert reports.run_outs(3 * DAY).total == 1
    assert [one.token_type for one in reports.run_outs(limit=1).rows] == ["goal_generation"]
    assert reports.run_outs(limit=1).total == 4
    assert reports.run_outs(organization_ids=[uuid4()]).rows == ()
    assert reports.run_outs(organization_ids=[organization]) == page
    tokens.deduct_tokens(organization, member, "generate_goal")
    token_clock.advance(TICK)
    assert reports.run_outs(limit=1).rows[0].balance == 2
    # Unlimited never runs out, whatever its balance.
    owner.execute("update ai_tokens set allowance = null where token_type = 'goal_generation'")
    assert "goal_generation" not in {one.token_type for one in reports.run_outs().rows}


def test_an_upgrade_is_offered_for_what_it_would_have_helped(
    tokens: Tokens, noon: datetime, pro: Person
) -> None:
    reports = Reports(tokens.database)
    tokens.deduct_tokens(*pro, "generate_insight", limits=True)
    for _ in range(3):
        with pytest.raises(Refused):
            tokens.deduct_tokens(*pro, "generate_insight", limits=True)  # rate limited
    assert reports.upgrade_candidates(noon, noon + DAY) == []
    with pytest.raises(Refused):
        tokens.deduct_tokens(*pro, "generate_goal", 100)
    (found,) = reports.upgrade_candidates(noon, noon + DAY)
    assert (found.organization_id, found.refusals, found.insufficient_tokens) == (pro[0], 1, 1)
    (every,) = reports.frequent_refusals(noon, noon + DAY)
    assert every.refusals == 4
