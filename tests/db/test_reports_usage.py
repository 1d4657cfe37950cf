"""Usage figures equal the operators' own SQL on the contract tables, to the token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from tests.db import reports_world
from tests.db.reports_world import DAY_AGO, NOW, SINCE, TICK, UNTIL, World
from tokenlib import InvalidInput
from tokenlib.embedded import Embedded
from tokenlib.reports.usage import CostRevenue, DayUsage, FeatureUsage, RefundTotals

WINDOWS = {
    "24 hours": (NOW - timedelta(hours=24), NOW),
    "7 days": (NOW - timedelta(days=7), NOW),
    "30 days": (NOW - timedelta(days=30), NOW),
    "since the first": (SINCE, UNTIL),
    "up to and with the edge": (SINCE, UNTIL + TICK),
    "from before the edge": (SINCE - TICK, UNTIL),
    "nothing": (NOW - timedelta(days=90), NOW - timedelta(days=60)),
}
windows = pytest.mark.parametrize(("since", "until"), WINDOWS.values(), ids=WINDOWS)
# When organization B was charged 5 by mistake and got it back.
MISTAKE = datetime(2026, 3, 11, tzinfo=UTC)


@pytest.fixture(scope="module")
def world(token_server: Embedded) -> Iterator[World]:
    with reports_world.made(token_server) as made:
        yield made


@windows
def test_uses_and_tokens_per_feature_are_the_operators_own(
    world: World, since: datetime, until: datetime
) -> None:
    found = world.service().usage_by_feature(since, until)
    assert {row.feature: (row.uses, row.tokens) for row in found if row.uses} == {
        feature: (uses, tokens)
        for feature, uses, tokens in world.plain(
            "select feature_used, count(*), sum(tokens_deducted) from ai_token_usage_log"
            " where created_at >= %s and created_at < %s group by feature_used",
            since,
            until,
        )
    }


def test_features_show_waived_refunded_and_net_beside_the_gross_tokens(world: World) -> None:
    found = world.service().usage_by_feature(SINCE, UNTIL)
    assert found == [
        FeatureUsage("generate_insight", "general", 7, 524, 0, 0, 524),
        FeatureUsage("forecast_revenue", "forecast", 3, 40, 0, 0, 40),
        FeatureUsage("generate_leads", "lead_generation", 3, 25, 0, 5, 20),
        FeatureUsage("generate_goal", "goal_generation", 4, 21, 3, 3, 18),
        FeatureUsage("analyze_efficiency", "general", 2, 6, 0, 0, 6),
        # Refunded in the window, used before it.
        FeatureUsage("analyze_strategy", "strategy_analysis", 0, 0, 0, 2, -2),
    ]


def test_one_organization_is_the_operators_own_too(world: World) -> None:
    for organization in (world.a, world.b, world.c, world.d, uuid4()):
        found = world.service().usage_by_feature(SINCE, UNTIL, organization)
        assert {row.feature: row.tokens for row in found if row.uses} == dict(
            world.plain(
                "select feature_used, sum(tokens_deducted) from ai_token_usage_log"
                " where organization_id = %s and created_at >= %s and created_at < %s"
                " group by feature_used",
                organization,
                SINCE,
                UNTIL,
            )
        )


def test_a_charge_from_a_pack_counts_for_its_feature(token_server: Embedded) -> None:
    with reports_world.made(token_server) as world:
        world.tokens.grant(world.d, "shared", 100, kind="purchase", source="pack")
        paid = world.tokens.deduct_tokens(world.d, world.d1, "generate_insight", 3)
        assert paid.token_type == "shared"
        found = world.service().usage_by_feature(NOW, NOW + TICK, world.d)
        assert found == [FeatureUsage("generate_insight", "general", 1, 3, 0, 0, 3)]


@pytest.mark.parametrize(
    ("since", "until", "goals", "leads"),
    [
        (SINCE, UNTIL, 4, 3),
        (SINCE - TICK, UNTIL, 5, 3),
        (SINCE + TICK, UNTIL, 3, 2),
        (SINCE, UNTIL + TICK, 4, 4),
        (SINCE, UNTIL - TICK, 4, 2),
        (SINCE, SINCE, 0, 0),
    ],
)
def test_a_window_has_its_first_microsecond_and_not_its_last(
    world: World, since: datetime, until: datetime, goals: int, leads: int
) -> None:
    found = world.service().usage_by_feature(since, until)
    uses = {row.feature: row.uses for row in found}
    assert (uses.get("generate_goal", 0), uses.get("generate_leads", 0)) == (goals, leads)


@pytest.mark.parametrize(
    ("since", "until", "refunded"),
    [
        (MISTAKE, MISTAKE + TICK, 5),
        (SINCE, MISTAKE, 0),
        (SINCE, MISTAKE + TICK, 5),
        (MISTAKE, UNTIL, 5),
        (MISTAKE + TICK, UNTIL, 0),
    ],
)
def test_refunds_too_keep_to_the_microsecond(
    world: World, since: datetime, until: datetime, refunded: int
) -> None:
    reports = world.service()
    features = reports.usage_by_feature(since, until, world.b)
    days = reports.usage_by_day(since, until, organization_id=world.b)
    [spend] = [
        row for row in reports.top_organizations(since, until) if row.organization_id == world.b
    ]
    assert sum(row.refunded for row in features) == refunded
    assert sum(row.net for row in features) == sum(row.tokens for row in features) - refunded
    assert sum(row.refunded for row in days) == refunded
    assert (spend.refunded, spend.net) == (refunded, spend.tokens - refunded)
    assert reports.refunds(since, until, world.b).tokens == refunded


def test_refunds_of_everybody(world: World) -> None:
    assert world.service().refunds(SINCE, UNTIL) == RefundTotals(3, 10, 3)
    assert world.service().refunds(SINCE, MISTAKE) == RefundTotals(2, 5, 2)
    assert world.service().refunds(UNTIL, UNTIL) == RefundTotals(0, 0, 0)


@pytest.mark.parametrize(
    ("zone", "refunded"), [("UTC", {10: 5, 11: 5}), ("America/New_York", {10: 10})]
)
def test_a_refund_is_on_the_readers_day(world: World, zone: str, refunded: dict[int, int]) -> None:
    found = world.service().usage_by_day(SINCE, UNTIL, zone)
    assert {row.day.day: row.refunded for row in found if row.refunded} == refunded


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata", "Pacific/Auckland"])
@pytest.mark.parametrize("days", [7, 90])
def test_tokens_per_day_are_the_operators_own_in_the_readers_zone(
    world: World, zone: str, days: int
) -> None:
    since = NOW - timedelta(days=days)
    found = world.service().usage_by_day(since, NOW, zone)
    assert [(row.day, row.uses, row.tokens) for row in found if row.uses] == world.plain(
        "select date(created_at at time zone %s), count(*), sum(tokens_deducted)"
        " from ai_token_usage_log where created_at >= %s and created_at < %s"
        " group by 1 order by 1",
        zone,
        since,
        NOW,
    )
    assert {row.feature for row in found} == {None}


@pytest.mark.parametrize(
    ("zone", "tokens"),
    [
        # Kolkata's 8 March begins between the two insights, New York's between the efficiency
        # checks; New York's ends an hour early, between the forecasts.
        ("UTC", {7: 1 + 4, 8: 2 + 4, 9: 4 + 8}),
        ("America/New_York", {7: 1 + 4 + 2, 8: 4 + 4, 9: 8}),
        ("Asia/Kolkata", {7: 1, 8: 4 + 2 + 4, 9: 4 + 8}),
    ],
)
def test_a_day_begins_at_the_readers_midnight(
    world: World, zone: str, tokens: dict[int, int]
) -> None:
    found = world.service().usage_by_day(SINCE, UNTIL, zone)
    by_day = {row.day: row.tokens for row in found}
    for day, expected in tokens.items():
        assert by_day[date(2026, 3, day)] == expected


def test_days_can_be_split_by_feature_and_show_refunds_on_their_own_day(world: World) -> None:
    found = world.service().usage_by_day(SINCE, UNTIL, by_feature=True)
    assert [row for row in found if row.day in (date(2026, 3, 10), date(2026, 3, 11))] == [
        DayUsage(date(2026, 3, 10), "analyze_strategy", 0, 0, 2),
        DayUsage(date(2026, 3, 10), "generate_goal", 0, 0, 3),
        DayUsage(date(2026, 3, 11), "generate_goal", 1, 0, 0),
        DayUsage(date(2026, 3, 11), "generate_leads", 1, 5, 5),
    ]
    whole = world.service().usage_by_day(SINCE, UNTIL)
    for day in whole:
        parts = [row for row in found if row.day == day.day]
        assert sum(row.tokens for row in parts) == day.tokens
        assert sum(row.refunded for row in parts) == day.refunded


@windows
@pytest.mark.parametrize("limit", [2, 10])
def test_top_organizations_are_the_operators_own(
    world: World, since: datetime, until: datetime, limit: int
) -> None:
    found = world.service().top_organizations(since, until, limit)
    assert [(row.organization_id, row.uses, row.tokens) for row in found] == world.plain(
        "select organization_id, count(*), sum(tokens_deducted) from ai_token_usage_log"
        " where created_at >= %s and created_at < %s"
        " group by organization_id order by 3 desc, organization_id limit %s",
        since,
        until,
        limit,
    )


def test_top_organizations_name_plan_net_and_share_of_everything(world: World) -> None:
    found = world.service().top_organizations(SINCE, UNTIL, limit=3)
    assert [(row.name, row.plan, row.uses, row.tokens, row.refunded, row.net) for row in found] == [
        ("Organization B", "enterprise", 7, 472, 5, 467),
        ("Organization D", "pro", 3, 93, 2, 91),
        ("Organization A", "pro", 8, 51, 3, 48),
    ]
    assert [row.share for row in found] == pytest.approx([472 / 616, 93 / 616, 51 / 616])


@windows
def test_top_users_are_the_operators_own(world: World, since: datetime, until: datetime) -> None:
    found = world.service().top_users(since, until)
    assert [(row.user_id, row.calls, row.tokens) for row in found] == world.plain(
        "select user_id, count(*), sum(tokens_deducted) from ai_token_usage_log"
        " where created_at >= %s and created_at < %s"
        " group by user_id order by 3 desc, 2 desc, user_id limit 10",
        since,
        until,
    )


def test_the_user_with_the_most_tokens_in_the_last_day(world: World) -> None:
    [top] = world.service().top_users(DAY_AGO, UNTIL, limit=1)
    assert (top.user, top.organization, top.calls, top.tokens) == (
        "User D1",
        "Organization D",
        3,
        28 + 50 + 15,
    )
    assert top.share == pytest.approx(93 / (93 + 2 + 3 + 5))


def test_top_users_of_one_organization_share_its_tokens(world: World) -> None:
    found = world.service().top_users(SINCE, UNTIL, organization_id=str(world.a))
    assert [(row.user, row.calls, row.tokens) for row in found] == [
        ("User A2", 3, 34),
        ("User A1", 5, 17),
    ]
    assert sum(row.share for row in found) == pytest.approx(1)


def test_a_user_or_organization_that_is_gone_is_still_counted(
    token_server: Embedded,
) -> None:
    with reports_world.made(token_server) as world:
        gone, nobody = uuid4(), UUID(int=7)
        with world.database.connect("tokenlib_owner") as owner:
            for user in (nobody, None):
                owner.execute(
                    "insert into ai_token_usage_log (organization_id, user_id, token_type,"
                    " feature_used, tokens_deducted, remaining_balance, created_at)"
                    " values (%s, %s, 'general', 'an_old_feature', 1000, 0, %s)",
                    [gone, user, SINCE],
                )
        reports = world.service()
        assert {row.user for row in reports.top_users(SINCE, UNTIL, limit=2)} == {
            str(nobody),
            "unknown",
        }
        [top] = reports.top_organizations(SINCE, UNTIL, limit=1)
        assert (top.name, top.plan, top.tokens) == (str(gone), None, 2000)
        [feature] = reports.usage_by_feature(SINCE, UNTIL, gone)
        assert (feature.feature, feature.token_type) == ("an_old_feature", "general")


def test_cost_and_revenue_are_of_the_window(world: World) -> None:
    [(tokens,)] = world.plain(
        "select sum(tokens_deducted) from ai_token_usage_log"
        " where created_at >= %s and created_at < %s",
        NOW - timedelta(days=30),
        NOW,
    )
    month = 2 * 14900 + 39900  # two pro, one enterprise; starter pays nothing
    ask = world.service().cost_against_revenue
    assert ask(NOW - timedelta(days=30), NOW) == CostRevenue(
        tokens, Decimal(tokens), Decimal(month)
    )
    assert ask(NOW - timedelta(days=3), NOW).revenue_cents == Decimal(month) / 10
    assert ask(SINCE, SINCE + TICK).tokens == 3 + 15
    assert ask(SINCE - TICK, SINCE).tokens == 3


def test_cost_follows_the_price_of_a_token(token_server: Embedded) -> None:
    with reports_world.made(token_server) as world:
        with world.database.connect("tokenlib_owner") as owner:
            owner.execute("update ai_token_parameters set token_cost_cents = 0.25")
        found = world.service().cost_against_revenue(SINCE, UNTIL)
        assert found.cost_cents == found.tokens * Decimal("0.25")


def test_bad_windows_limits_ids_and_zones_name_the_field(world: World) -> None:
    reports = world.service()
    naive = datetime(2026, 3, 1)  # noqa: DTZ001 - is the bad input
    questions: dict[str, Callable[[], object]] = {
        "since": lambda: reports.usage_by_feature(naive, UNTIL),
        "until": lambda: reports.top_users(SINCE, naive),
        "limit": lambda: reports.top_users(SINCE, UNTIL, limit=0),
        "organization_id": lambda: reports.usage_by_feature(SINCE, UNTIL, "not an id"),
        "timezone": lambda: reports.usage_by_day(SINCE, UNTIL, "Mars/Olympus"),
    }
    for field, ask in questions.items():
        with pytest.raises(InvalidInput) as refused:
            ask()
        assert refused.value.field == field
    with pytest.raises(InvalidInput, match="later than until"):
        reports.refunds(UNTIL, SINCE)
    with pytest.raises(InvalidInput, match="time zone"):
        reports.usage_by_day(SINCE, SINCE, "Mars/Olympus", uuid4())  # no row to convert
