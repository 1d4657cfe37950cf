"""Spenders against their own past, and users beyond the limits, against plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from tests.db import reports_world
from tests.db.conftest import Person
from tests.db.reports_world import DAY_AGO, NOW, SINCE, UNTIL, World
from tokenlib import Tokens
from tokenlib.domain import Limits
from tokenlib.embedded import Embedded
from tokenlib.reports import Reports
from tokenlib.reports.spend import AbuseRow
from tokenlib.testing import TestClock

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def world(token_server: Embedded) -> Iterator[World]:
    with reports_world.made(token_server) as made:
        yield made


@pytest.mark.parametrize(("since", "until"), [(SINCE, UNTIL), (DAY_AGO, NOW), (NOW - 7 * DAY, NOW)])
@pytest.mark.parametrize("by", ["organization", "user"])
def test_spenders_are_the_operators_own(
    world: World, since: datetime, until: datetime, by: str
) -> None:
    found = world.service().spenders(since, until, by)  # type: ignore[arg-type]
    group = "organization_id" if by == "organization" else "organization_id, user_id"
    query = (
        f"select {group}, count(*), sum(tokens_deducted) from ai_token_usage_log"  # noqa: S608
        f" where created_at >= %s and created_at < %s group by {group}"
    )
    now = {row[:-2]: row[-2:] for row in world.plain(query, since, until)}
    before = {row[:-2]: row[-1] for row in world.plain(query, since - (until - since), since)}
    total = sum(tokens for _, tokens in now.values())
    assert len(found) == len(now)
    assert [one.tokens for one in found] == sorted((t for _, t in now.values()), reverse=True)
    for one in found:
        who = (one.organization_id,) if by == "organization" else (one.organization_id, one.user_id)
        assert (one.calls, one.tokens) == now[who]
        assert one.before == before.get(who, 0)
        assert one.share == pytest.approx(float(one.tokens / total))
        for block, tokens in enumerate(one.daily, -28):
            begin = since.replace(minute=0, second=0, microsecond=0) + block * DAY
            end = since if block == -1 else until if block == len(one.daily) - 29 else begin + DAY
            rows = world.plain(query, since if block == 0 else begin, end)
            assert tokens == {row[:-2]: row[-1] for row in rows}.get(who, 0)
        assert sum(one.daily[28:]) == one.tokens
        assert len(one.trend) == 28


def test_refunds_stand_beside_the_tokens_of_who_was_charged(world: World) -> None:
    users = world.service().spenders(SINCE, UNTIL, "user")
    assert {one.user: one.refunded for one in users if one.refunded} == {
        "User A1": 3,
        "User B1": 5,
        "User D1": 2,
    }
    organizations = world.service().spenders(SINCE, UNTIL)
    assert {one.organization: one.refunded for one in organizations if one.refunded} == {
        "Organization A": 3,
        "Organization B": 5,
        "Organization D": 2,
    }


def test_one_organization_s_users(world: World) -> None:
    found = world.service().spenders(SINCE, UNTIL, "user", organization_id=world.a)
    assert [one.user for one in found] == ["User A2", "User A1"]
    assert sum(one.share for one in found) == pytest.approx(1)
    assert len(world.service().spenders(SINCE, UNTIL, "user", limit=1)) == 1


def test_a_steady_past_makes_a_wild_day_unusual(
    tokens: Tokens, token_clock: TestClock, join: Callable[[str], Person]
) -> None:
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    token_clock.set(begin)
    steady, wild, fresh = (join("enterprise") for _ in range(3))
    for day in range(28):
        token_clock.set(begin + day * DAY)
        for person in (steady, wild):
            tokens.deduct_tokens(*person, "generate_insight", 4 + day % 3)
    token_clock.set(begin + 28 * DAY)
    tokens.deduct_tokens(*steady, "generate_insight", 6)
    tokens.deduct_tokens(*wild, "generate_insight", 60)
    tokens.deduct_tokens(*fresh, "generate_insight", 60)
    found = {
        one.organization_id: one
        for one in Reports(tokens.database).spenders(begin + 28 * DAY, begin + 29 * DAY)
    }
    # Of 4, 5, 6 the median is 5 and the median deviation 1.
    assert found[steady[0]].unusual == pytest.approx(0.6745)
    assert found[wild[0]].unusual == pytest.approx(55 * 0.6745)
    assert found[fresh[0]].unusual is None
    assert [found[one].new for one in (steady[0], wild[0], fresh[0])] == [False, False, True]
    assert found[wild[0]].change == pytest.approx((60 - 4) / 4)
    assert found[fresh[0]].change is None


# Abuse -------------------------------------------------------------------------------------------


@pytest.fixture
def begin(token_clock: TestClock) -> datetime:
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    token_clock.set(moment)
    return moment


def over(tokens: Tokens, since: datetime) -> list[AbuseRow]:
    return list(Reports(tokens.database).abuse(since, since + DAY).rows)


def test_the_hour_is_any_sixty_minutes(
    tokens: Tokens, token_clock: TestClock, begin: datetime, join: Callable[[str], Person]
) -> None:
    exact, beyond, spread = (join("enterprise") for _ in range(3))
    schedule: list[tuple[timedelta, Person, int]] = [
        (timedelta(minutes=30), exact, 250),
        (timedelta(minutes=80), exact, 250),  # 500 is the alert, and not above it
        (timedelta(minutes=30), beyond, 250),
        (timedelta(minutes=89, seconds=59), beyond, 251 - 1),
        (timedelta(minutes=89, seconds=59, microseconds=999_999), beyond, 1),
        (timedelta(minutes=30), spread, 300),
        (timedelta(minutes=90), spread, 300),  # an hour later to the microsecond
    ]
    for at, person, units in sorted(schedule, key=lambda one: one[0]):
        token_clock.set(begin + at)
        tokens.grant(person[0], "general", units)
        tokens.deduct_tokens(*person, "generate_insight", units)

    def alerted(rows: Iterable[AbuseRow]) -> list[AbuseRow]:  # each is a large request, too
        return [row for row in rows if "alert_tokens_per_hour" in row.over]

    (found,) = alerted(over(tokens, begin))
    assert (found.organization_id, found.user_id) == beyond
    assert found.peak_hour_tokens == 501
    assert found.peak_hour_until == begin + timedelta(hours=1, minutes=29, seconds=59.999999)
    # The hour may have begun before the window.
    later = Reports(tokens.database).abuse(begin + timedelta(minutes=80), begin + DAY)
    assert [row.peak_hour_tokens for row in alerted(later.rows)] == [501]


def test_bursts_count_requests_and_holds_as_the_gate_does(
    tokens: Tokens, token_clock: TestClock, begin: datetime, pro: Person, owner: psycopg.Connection
) -> None:
    tokens.grant(pro[0], "general", 100)
    for second in range(31):
        token_clock.set(begin + timedelta(seconds=second * 1.9))
        if second % 2:
            tokens.deduct_tokens(*pro, "generate_insight")
        else:
            tokens.deduct(tokens.reserve(*pro, "generate_insight"))
    (found,) = over(tokens, begin)
    assert (found.requests, found.peak_minute_requests, found.tokens) == (31, 31, 31)
    assert found.shortest_gap == pytest.approx(1.9)
    assert set(found.over) == {"requests_per_minute", "seconds_between_requests"}
    tokens.pause_user(*pro, actor="tests", reason="a test")
    (found,) = over(tokens, begin)
    assert found.paused_at == token_clock.now()
    # The organization's own limits count, once it has some.
    owner.execute(
        "insert into ai_token_limits values (%s, null, null, null, null, null, null)", [pro[0]]
    )
    assert over(tokens, begin) == []


def test_a_single_large_or_hasty_request_is_listed(
    tokens: Tokens, token_clock: TestClock, begin: datetime, pro: Person
) -> None:
    tokens.deduct_tokens(*pro, "generate_insight", 11)
    token_clock.set(begin + timedelta(seconds=2))
    with pytest.raises(Exception, match="seconds between"):
        tokens.deduct_tokens(*pro, "generate_insight", limits=True)
    tokens.deduct_tokens(*pro, "generate_insight")
    (found,) = over(tokens, begin)
    assert found.over == ["seconds_between_requests", "tokens_per_request"]
    assert (found.largest_request, found.rate_limited) == (11, 1)
    page = Reports(tokens.database).abuse(begin, begin + DAY, 1, pro[0])
    assert page.total == 1
    other = UUID(int=1)
    assert not Reports(tokens.database).abuse(begin, begin + DAY, 1, other).rows


def test_what_the_throttle_stops_is_what_the_abuse_view_marks(
    tokens: Tokens, begin: datetime, pro: Person, owner: psycopg.Connection
) -> None:
    """Both sides read one table: a limit of an organization changes both."""
    assert begin.tzinfo
    owner.execute(
        "insert into tokenlib_staff (user_id, email, full_name, role)"
        " values (%s, 'a@example.org', 'A', 'admin')",
        [UUID(int=7)],
    )
    limits = Limits(None, None, 2, None, None, None)
    tokens.staff_set_limits(UUID(int=7), pro[0], limits, reason="a test")
    tokens.deduct_tokens(*pro, "generate_insight", 3)
    assert not tokens.can_use(*pro, "generate_insight", 3, limits=True).allowed
    assert [row.over for row in over(tokens, begin)] == [["tokens_per_request"]]
