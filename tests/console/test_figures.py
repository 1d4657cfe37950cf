"""Each figure and chart of Overview, Usage and Top spenders is plain SQL's on the same rows.

In three time zones, with charges on both sides of every window's edge.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from tests.console.conftest import copied
from tests.console.opening import open_page, texts
from tests.console.reading import chart, figures, plain, table, whole
from tokenlib import FeatureNotInPlan
from tokenlib.config import Settings
from tokenlib.console import charges, process
from tokenlib.console.narrowing import Narrowed
from tokenlib.db import Database
from tokenlib.embedded import Embedded
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

# Half past midnight of the 21st in Rome, the 20th in New York, past noon of the 21st in Auckland;
# and before everything that the world of the other tests did today.
NOW = datetime(2024, 11, 20, 23, 30, tzinfo=UTC)
FALL, LAST = date(2024, 10, 27), date(2024, 11, 3)
"""The clocks go back in Rome on the first, in New York on the second."""
MONDAY, YESTERDAY = date(2024, 11, 18), date(2024, 11, 19)
ZONES = ("America/New_York", "Europe/Rome", "Pacific/Auckland")
WINDOWS = {"24h": 1, "7d": 7, "30d": 30, "90d": 90}
TICK = timedelta(microseconds=1)
FEATURES = ("generate_insight", "generate_goal", "analyze_strategy")


def edges() -> list[datetime]:
    """Moments on and beside the edges of every window, and of days where the clocks change."""
    moments = {NOW - timedelta(days=days * times) for days in WINDOWS.values() for times in (1, 2)}
    for zone in ZONES:
        for day in (FALL, LAST, MONDAY, YESTERDAY):
            for after in (0, 1):
                midnight = datetime.combine(day + timedelta(days=after), time(), ZoneInfo(zone))
                moments.add(midnight.astimezone(UTC))
    # The hour that New York has twice.
    moments |= {datetime(2024, 11, 3, hour, 30, tzinfo=UTC) for hour in (4, 5, 6)}
    beside = {edge + step for edge in moments for step in (-TICK, timedelta(0))}
    return sorted(moment for moment in beside if moment < NOW)


@dataclass(frozen=True)
class Books:
    """A database that the tests only read."""

    database: TestDatabase
    tokens: Tokens
    organization: UUID
    user: UUID

    def total(self, what: str, since: datetime, until: datetime, more: str = "") -> int:
        ((found,),) = plain(
            self.database,
            f"select coalesce({what}, 0) from ai_token_usage_log"  # noqa: S608
            f" where created_at >= %s and created_at < %s {more}",
            since,
            until,
        )
        return int(found)


@pytest.fixture(scope="module")
def filled(token_server: Embedded, world: str) -> Iterator[Books]:
    with copied(token_server, world) as database, Tokens(Database(database.url())) as tokens:
        clock = TestClock(database)
        clock.set(edges()[0] - timedelta(days=1))
        starter = tokens.create_organization("Gate Starter", "starter")
        nobody = tokens.add_member(starter, "Nobody", "nobody@example.org")
        people = []
        for name in ("Gate North", "Gate South"):
            organization = tokens.create_organization(name, "enterprise")
            for place in range(2):
                who = f"{name} {place}"
                mail = f"{who.replace(' ', '.').lower()}@example.org"
                people.append((organization, tokens.add_member(organization, who, mail)))
        for place, moment in enumerate(edges()):
            clock.set(moment)
            organization, user = people[place % 4]
            feature = FEATURES[place % len(FEATURES)]
            usage = tokens.deduct_tokens(organization, user, feature)
            if place % 10 == 9:
                tokens.refund(usage, "a test")
        for days in (1.0, 0.5, 0.0):
            clock.set(NOW - timedelta(days=days))
            with pytest.raises(FeatureNotInPlan):
                tokens.reserve(starter, nobody, "generate_goal")
        yield Books(database, tokens, *people[0])


@pytest.fixture
def books(filled: Books, tmp_path: Path) -> Iterator[Books]:
    process.gate.use(filled.tokens, Settings(data_dir=tmp_path))
    yield filled
    process.gate.forget()


def spans(zone: str) -> dict[str, tuple[datetime, datetime, dict[str, Any]]]:
    """Each window with its bounds, and how its link says so."""
    found: dict[str, tuple[datetime, datetime, dict[str, Any]]] = {
        name: (NOW - timedelta(days=days), NOW, {"range": name}) for name, days in WINDOWS.items()
    }
    first, last = FALL, LAST
    found["custom"] = (
        datetime.combine(first, time(), ZoneInfo(zone)),
        datetime.combine(last + timedelta(days=1), time(), ZoneInfo(zone)),
        {"range": "Custom", "dates": [first.isoformat(), last.isoformat()]},
    )
    return found


@pytest.mark.parametrize("name", [*WINDOWS, "custom"])
@pytest.mark.parametrize("zone", ZONES)
def test_usage_is_what_plain_sql_says(books: Books, zone: str, name: str) -> None:
    since, until, query = spans(zone)[name]
    app = open_page("usage.py", timezone=zone, **query)
    assert not app.exception
    tokens = books.total("sum(tokens_deducted)", since, until)
    shown = figures(app)
    assert whole(shown["Tokens charged"]) == tokens > 0
    assert whole(shown["Uses"]) == books.total("count(*)", since, until)
    refunds = plain(
        books.database,
        "select coalesce(sum(balance_change), 0) from ai_token_events where kind = 'refund'"
        " and created_at >= %s and created_at < %s",
        since,
        until,
    )
    assert whole(shown["Tokens refunded"]) == refunds[0][0]
    assert whole(shown["Net tokens"]) == tokens - refunds[0][0]

    step = "hour" if name == "24h" else "day"
    bars = chart(app)
    bars = bars[bars["value"] > 0]
    asked = plain(
        books.database,
        "select date_trunc(%s, created_at, %s), feature_used, sum(tokens_deducted)"
        " from ai_token_usage_log where created_at >= %s and created_at < %s group by 1, 2",
        step,
        zone,
        since,
        until,
    )
    assert {
        (datetime.fromisoformat(start).astimezone(UTC), key): value
        for start, key, value in zip(bars["start"], bars["key"], bars["value"], strict=True)
    } == {(start.astimezone(UTC), feature): sum_ for start, feature, sum_ in asked}

    parts = table(app, "share")
    assert parts["tokens"].sum() == tokens
    days = (until - since).days if name == "custom" else None
    earlier = since - (timedelta(days=days) if days else until - since)
    before = {
        row[0]: row[1]
        for row in plain(
            books.database,
            "select f.title, sum(tokens_deducted) from ai_token_usage_log l"
            " join ai_token_features f on f.feature = l.feature_used"
            " where l.created_at >= %s and l.created_at < %s group by 1",
            earlier,
            since,
        )
    }
    assert dict(zip(parts["group"], parts["before"], strict=True)) == {
        group: before.get(group, 0) for group in parts["group"]
    }


@pytest.mark.parametrize("by", ["plan", "organization", "user"])
def test_usage_divided_otherwise_has_the_same_sum(books: Books, by: str) -> None:
    column = {
        "plan": "initcap(o.plan)",
        "organization": "o.name",
        "user": "(select full_name from user_profiles u where u.id = l.user_id)",
    }[by]
    said = {"plan": "By plan", "organization": "By organization", "user": "By person"}[by]
    app = open_page("usage.py", by=said)
    asked = plain(
        books.database,
        f"select {column}, count(*), sum(tokens_deducted) from ai_token_usage_log l"  # noqa: S608
        " join organizations o on o.id = l.organization_id"
        " where l.created_at >= %s and l.created_at < %s group by 1",
        NOW - timedelta(days=30),
        NOW,
    )
    parts = table(app, "share")[["group", "uses", "tokens"]]
    assert sorted(map(tuple, parts.to_numpy().tolist())) == sorted(asked)
    assert chart(app)["value"].sum() == sum(row[2] for row in asked)


@pytest.mark.parametrize("zone", ZONES)
def test_weeks_begin_on_the_readers_monday(books: Books, zone: str) -> None:
    app = open_page("usage.py", timezone=zone, range="90d", step="Week")
    bars = chart(app)
    drawn = bars[bars["value"] > 0].groupby("start")["value"].sum()
    asked = plain(
        books.database,
        "select date_trunc('week', created_at, %s), sum(tokens_deducted)"
        " from ai_token_usage_log where created_at >= %s and created_at < %s group by 1",
        zone,
        NOW - timedelta(days=90),
        NOW,
    )
    assert {datetime.fromisoformat(str(start)): value for start, value in drawn.items()} == dict(
        asked
    )


@pytest.mark.parametrize("zone", ZONES)
def test_a_clicked_bar_lists_its_charges(books: Books, zone: str) -> None:
    start = datetime.combine(YESTERDAY, time(), ZoneInfo(zone))
    app = open_page("usage.py", timezone=zone, bar=f"{start.isoformat()}_generate_insight")
    asked = plain(
        books.database,
        "select tokens_deducted from ai_token_usage_log where created_at >= %s and created_at < %s"
        " and feature_used = 'generate_insight' order by created_at desc",
        start,
        start + timedelta(days=1),
    )
    assert table(app, "remaining_balance")["tokens"].tolist() == [row[0] for row in asked]
    chip = next(button for button in app.button if button.key == "clear_bar")
    assert chip.label == "19 Nov, Generate an insight"
    chip.click().run()
    assert len(table(app, "remaining_balance")) == charges.ROWS


def test_filters_of_a_link_hold_for_every_figure(books: Books) -> None:
    app = open_page(
        "usage.py",
        range="90d",
        feature="Analyze strategy",
        organization=str(books.organization),
        user=str(books.user),
    )
    tokens = books.total(
        "sum(tokens_deducted)",
        NOW - timedelta(days=90),
        NOW,
        f"and feature_used = 'analyze_strategy' and user_id = '{books.user}'",
    )
    assert whole(figures(app)["Tokens charged"]) == tokens > 0
    assert chart(app)["value"].sum() == tokens
    assert table(app, "remaining_balance")["tokens"].sum() == tokens
    labels = [button.label for button in app.button]
    assert "Gate North" in labels
    assert "Gate North 0" in labels
    next(button for button in app.button if button.key == "clear_user").click().run()
    everyone = whole(figures(app)["Tokens charged"])
    assert everyone > tokens
    next(button for button in app.button if button.label == "Gate North 0").click().run()
    assert whole(figures(app)["Tokens charged"]) == tokens


def test_charges_are_paged_to_the_last(books: Books) -> None:
    app = open_page("usage.py", range="90d")
    seen: list[str] = []
    while True:
        seen += [str(moment) for moment in table(app, "remaining_balance")["created_at"]]
        older = [button for button in app.button if button.key == "charges_older"]
        if not older:
            break
        older[0].click().run()
    assert len(seen) == books.total("count(*)", NOW - timedelta(days=90), NOW)
    assert seen == sorted(seen, reverse=True)
    next(button for button in app.button if button.key == "charges_latest").click().run()
    assert [str(one) for one in table(app, "remaining_balance")["created_at"]] == seen[
        : charges.ROWS
    ]


def test_files_hold_every_charge(books: Books) -> None:
    reports = Reports(books.tokens.database, None)
    asked = charges.Asked(
        NOW - timedelta(days=90), NOW, Narrowed(None, None, books.organization, None)
    )
    sums = books.total(
        "sum(tokens_deducted)",
        asked.since,
        asked.until,
        f"and organization_id = '{books.organization}'",
    )
    text = pd.read_csv(io.BytesIO(charges.as_csv(reports, asked)))
    typed = pd.read_parquet(io.BytesIO(charges.as_parquet(reports, asked)))
    assert text["tokens"].sum() == typed["tokens"].sum() == sums
    assert list(text.columns) == list(typed.columns)
    assert list(pd.to_datetime(text["created_at"], format="ISO8601")) == list(typed["created_at"])


@pytest.mark.parametrize("name", ["24h", "30d", "custom"])
@pytest.mark.parametrize("zone", ZONES)
def test_the_overview_is_what_plain_sql_says(books: Books, zone: str, name: str) -> None:
    since, until, query = spans(zone)[name]
    app = open_page("overview.py", timezone=zone, **query)
    assert not app.exception
    shown = figures(app)
    uses = books.total("count(*)", since, until)
    ((refused, refunded, revenue),) = plain(
        books.database,
        "select (select coalesce(sum(count), 0) from ai_token_refusals"
        " where last_at >= %s and last_at < %s),"
        " (select coalesce(sum(balance_change), 0) from ai_token_events"
        " where kind = 'refund' and created_at >= %s and created_at < %s),"
        " (select sum(monthly_price_cents) from organizations join ai_token_plans using (plan))",
        since,
        until,
        since,
        until,
    )
    tokens = books.total("sum(tokens_deducted)", since, until)
    assert whole(shown["Tokens charged"]) == tokens
    assert whole(shown["Organizations"]) == books.total(
        "count(distinct organization_id)", since, until
    )
    assert shown["Refusal rate"] == f"{float(refused) / float(refused + uses):.1%}"
    assert whole(shown["Tokens refunded"]) == refunded
    assert shown["Estimated AI cost"] == f"${tokens / 100:,.0f}"
    share = tokens / float(revenue) * 30 / ((until - since).total_seconds() / 86400)
    assert f"The estimated AI cost is {share:.0%} of what the plans bring in" in texts(app)
    assert chart(app)["value"].sum() == tokens

    # A sparkline has whole days only: the one that is not over would end every line in a dive.
    line = next(one for one in app.metric if one.label == "Tokens charged").proto.chart_data
    last = until.astimezone(ZoneInfo(zone)).date()
    days = [last - timedelta(days=back) for back in range(len(line), 0, -1)]
    asked = dict(
        plain(
            books.database,
            "select (created_at at time zone %s)::date, sum(tokens_deducted)"
            " from ai_token_usage_log group by 1",
            zone,
        )
    )
    assert list(line) == [asked.get(day, 0) for day in days]


@pytest.mark.parametrize("zone", ZONES)
def test_what_moved_is_what_plain_sql_says(books: Books, zone: str) -> None:
    app = open_page("overview.py", timezone=zone)
    monday = datetime.combine(MONDAY, time(), ZoneInfo(zone))
    assert "Since Monday, 18 Nov 2024" in texts(app)
    week = timedelta(days=7)
    asked = plain(
        books.database,
        "select o.name, coalesce(sum(tokens_deducted) filter (where l.created_at >= %s), 0)"
        " from ai_token_usage_log l join organizations o on o.id = l.organization_id"
        " where l.created_at < %s and (l.created_at >= %s"
        " or (l.created_at >= %s and l.created_at < %s)) group by 1",
        monday,
        NOW,
        monday,
        monday - week,
        NOW - week,
    )
    moved = table(app, "change")
    assert dict(zip(moved["name"], moved["tokens"], strict=True)).items() <= dict(asked).items()
    assert len(moved) == 2


@pytest.mark.parametrize("name", ["24h", "30d", "custom"])
@pytest.mark.parametrize("zone", ZONES)
def test_spenders_are_what_plain_sql_says(books: Books, zone: str, name: str) -> None:
    since, until, query = spans(zone)[name]
    tokens = books.total("sum(tokens_deducted)", since, until)
    for who, named in (("Organizations", "o.name"), ("People", "u.full_name")):
        app = open_page("spenders.py", timezone=zone, who=who, **query)
        assert not app.exception
        asked = plain(
            books.database,
            f"select {named}, sum(tokens_deducted), count(*) from ai_token_usage_log l"  # noqa: S608
            " join organizations o on o.id = l.organization_id"
            " join user_profiles u on u.id = l.user_id"
            " where l.created_at >= %s and l.created_at < %s group by 1",
            since,
            until,
        )
        column = "organization" if who == "Organizations" else "user"
        rows = table(app, "unusual")
        shown = rows[[column, "tokens", "calls"]].to_numpy().tolist()
        assert sorted(map(tuple, shown)) == sorted(asked)
        assert rows["share"].tolist() == [round(one / tokens, 3) for one in rows["tokens"]]
        assert whole(figures(app)["Tokens charged"]) == tokens
        assert chart(app)["tokens"].tolist() == rows["tokens"].tolist()


def test_a_trend_shows_whole_days(books: Books) -> None:
    rows = table(open_page("spenders.py", range="24h"), "trend").set_index("organization")
    for name, trend in rows["trend"].items():
        asked = plain(
            books.database,
            "select floor(extract(epoch from l.created_at - %s) / 86400),"
            " sum(tokens_deducted) from ai_token_usage_log l"
            " join organizations o on o.id = l.organization_id where o.name = %s group by 1",
            NOW - timedelta(days=1),
            name,
        )
        by_day = {int(day): tokens for day, tokens in asked}
        assert list(trend) == [by_day.get(day, 0) for day in range(-27, 1)]
