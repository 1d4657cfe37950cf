"""Use over time equals plain SQL on the log, for every grouping, bucket, zone and filter."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from tests.db import reports_world
from tests.db.reports_world import NOW, SINCE, TICK, UNTIL, World
from tokenlib import InvalidInput
from tokenlib.embedded import Embedded
from tokenlib.reports.series import SeriesPoint, UsageRow

ZONES = ("UTC", "Asia/Kolkata", "America/New_York")
GROUPINGS = ("feature", "plan", "organization", "user", "all")
WINDOWS = [(SINCE, UNTIL), (SINCE - TICK, UNTIL + TICK), (NOW - timedelta(days=90), NOW)]


@pytest.fixture(scope="module")
def world(token_server: Embedded) -> Iterator[World]:
    with reports_world.made(token_server) as made:
        yield made


def log(world: World, since: datetime, until: datetime) -> list[dict[str, Any]]:
    rows = world.plain(
        "select l.created_at, l.feature_used, o.plan, l.organization_id, l.user_id,"
        " l.tokens_deducted, l.id from ai_token_usage_log l"
        " join organizations o on o.id = l.organization_id"
        " where l.created_at >= %s and l.created_at < %s",
        since,
        until,
    )
    names = ("at", "feature", "plan", "organization", "user", "tokens", "id")
    return [dict(zip(names, row, strict=True), all="all") for row in rows]


def refunds(world: World, since: datetime, until: datetime) -> list[dict[str, Any]]:
    rows = world.plain(
        "select e.created_at, l.feature_used, o.plan, l.organization_id, l.user_id,"
        " e.balance_change from ai_token_events e join ai_token_usage_log l on l.id = e.subject_id"
        " join organizations o on o.id = l.organization_id"
        " where e.kind = 'refund' and e.created_at >= %s and e.created_at < %s",
        since,
        until,
    )
    names = ("at", "feature", "plan", "organization", "user", "refunded")
    return [dict(zip(names, row, strict=True), all="all") for row in rows]


def begin(moment: datetime, bucket: str, timezone: str) -> datetime:
    """When the hour, day or week of a moment begins, by Python's own time zones."""
    local = moment.astimezone(ZoneInfo(timezone))
    if bucket == "hour":
        return local.replace(minute=0, second=0, microsecond=0).astimezone(UTC)
    day = local.date() - timedelta(days=local.weekday() if bucket == "week" else 0)
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(timezone)).astimezone(UTC)


@pytest.mark.parametrize("timezone", ZONES)
@pytest.mark.parametrize("bucket", ["hour", "day", "week"])
@pytest.mark.parametrize("by", GROUPINGS)
def test_each_bar_is_the_sum_of_its_log_rows(
    world: World, by: Any, bucket: Any, timezone: str
) -> None:
    for since, until in WINDOWS:
        expected: dict[tuple[datetime, str], list[int]] = {}
        for row in log(world, since, until):
            place = (begin(row["at"], bucket, timezone), str(row[by]))
            figures = expected.setdefault(place, [0, 0, 0])
            figures[0] += 1
            figures[1] += row["tokens"]
        for row in refunds(world, since, until):
            place = (begin(row["at"], bucket, timezone), str(row[by]))
            expected.setdefault(place, [0, 0, 0])[2] += row["refunded"]
        points = world.service().usage_series(since, until, by, bucket, timezone, top=100)
        found = {(p.start, p.key): [p.uses, p.tokens, p.refunded] for p in points}
        assert found == expected
        assert len(points) == len(expected)


def test_what_is_outside_the_top_is_one_part(world: World) -> None:
    every = world.service().usage_series(SINCE, UNTIL, "feature", "week", top=100)
    some = world.service().usage_series(SINCE, UNTIL, "feature", "week", top=2)
    order = sorted(
        {p.key for p in every}, key=lambda key: -sum(p.tokens for p in every if p.key == key)
    )
    last_week = [p.key for p in some if p.start == some[-1].start]
    assert last_week == [*order[:2], None]
    assert {p.key for p in some} == {*order[:2], None}
    for start in {p.start for p in every}:
        assert sum(p.tokens for p in every if p.start == start) == sum(
            p.tokens for p in some if p.start == start
        )
    others = [p for p in some if p.key is None]
    assert {p.label for p in others} == {"Other"}
    assert sum(p.uses for p in others) == sum(p.uses for p in every if p.key not in order[:2])


def test_keys_have_their_names(world: World) -> None:
    def labels(by: Any) -> dict[str | None, str]:
        points = world.service().usage_series(SINCE, UNTIL, by, "week")
        return {point.key: point.label for point in points}

    assert labels("feature")["generate_goal"] == "Generate a quest"
    assert labels("plan") == {"pro": "Pro", "enterprise": "Enterprise", "starter": "Starter"}
    assert labels("organization")[str(world.b)] == "Organization B"
    assert labels("user")[str(world.a1)] == "User A1"
    assert labels("all") == {"all": "All"}


def test_the_two_hours_of_one_name_are_two_bars(world: World) -> None:
    """Where the clocks go back, an hour comes twice; plain truncation would join them."""
    moment = datetime(2026, 11, 1, 5, 30, tzinfo=UTC)  # 1:30 in New York, and an hour later again
    with world.database.connect("tokenlib_owner") as owner:
        for hours in (0, 1):
            owner.execute(
                "insert into ai_token_usage_log (organization_id, user_id, token_type,"
                " feature_used, tokens_deducted, remaining_balance, created_at)"
                " values (%s, %s, 'general', 'generate_insight', 1, 0, %s)",
                [uuid4(), uuid4(), moment + timedelta(hours=hours)],
            )
    points = world.service().usage_series(
        moment - timedelta(days=1), moment + timedelta(days=1), "all", "hour", "America/New_York"
    )
    assert [(p.start, p.uses) for p in points] == [
        (moment.replace(minute=0), 1),
        (moment.replace(hour=6, minute=0), 1),
    ]


@pytest.mark.parametrize("narrowed", ["feature", "plan", "organization_id", "user_id"])
def test_a_filter_leaves_what_it_names(world: World, narrowed: str) -> None:
    reports = world.service()
    column = narrowed.removesuffix("_id")
    for value in {row[column] for row in log(world, SINCE, UNTIL)}:
        rows = [row for row in log(world, SINCE, UNTIL) if row[column] == value]
        back = [row for row in refunds(world, SINCE, UNTIL) if row[column] == value]
        only: dict[str, Any] = {narrowed: value}
        totals = reports.usage_totals(SINCE, UNTIL, **only)
        assert (totals.uses, totals.tokens) == (len(rows), sum(row["tokens"] for row in rows))
        assert totals.refunded == sum(row["refunded"] for row in back)
        assert totals.net == totals.tokens - totals.refunded
        points = reports.usage_series(SINCE, UNTIL, **only)
        assert sum(point.tokens for point in points) == totals.tokens
        assert sum(point.refunded for point in points) == totals.refunded
        shown = reports.usage_rows(SINCE, UNTIL, **only)
        assert {row.id for row in shown} == {row["id"] for row in rows}


def test_the_rows_behind_come_page_by_page_without_a_gap(world: World) -> None:
    reports = world.service()
    whole = reports.usage_rows(SINCE, UNTIL, limit=1000)
    assert [row.created_at for row in whole] == sorted(
        (row["at"] for row in log(world, SINCE, UNTIL)), reverse=True
    )
    pages: list[UsageRow] = []
    while page := reports.usage_rows(SINCE, UNTIL, limit=3, before=pages[-1] if pages else None):
        pages += page
    assert pages == whole
    assert sum(row.refunded for row in whole) == 2  # the third was charged before the window
    assert reports.latest_charges(2) == reports.usage_rows(limit=2)


def test_a_row_says_who_what_and_what_was_left(world: World) -> None:
    (row, *_) = world.service().usage_rows(
        SINCE, SINCE + TICK, organization_id=world.a, feature="generate_goal"
    )
    assert (row.organization, row.plan, row.user) == ("Organization A", "pro", "User A1")
    assert (row.units, row.tokens, row.remaining_balance, row.refunded) == (1, 3, 14, True)


def test_wrong_questions_name_their_field(world: World) -> None:
    reports: Any = world.service()
    for wrong in (
        {"timezone": "Mars/Base"},
        {"by": "colour"},
        {"bucket": "month"},
        {"top": 0},
        {"organization_id": "no id"},
    ):
        with pytest.raises(InvalidInput) as refused:
            reports.usage_series(SINCE, UNTIL, **wrong)
        assert refused.value.field in wrong


def test_nothing_used_is_no_bar(world: World) -> None:
    empty = (NOW - timedelta(days=400), NOW - timedelta(days=390))
    points: list[SeriesPoint] = world.service().usage_series(*empty)
    assert points == []
    assert world.service().usage_totals(*empty).tokens == 0
    assert world.service().usage_rows(*empty) == []
