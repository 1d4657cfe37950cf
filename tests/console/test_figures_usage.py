"""Each figure and chart of Usage is plain SQL's on the same rows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from tests.console import edges
from tests.console.edges import NOW, WINDOWS, YESTERDAY, ZONES, Books, spans
from tests.console.opening import open_page
from tests.console.reading import chart, figures, plain, table, whole
from tokenlib.config import Settings
from tokenlib.console import charges, process
from tokenlib.console.narrowing import Narrowed
from tokenlib.embedded import Embedded
from tokenlib.reports import Reports


@pytest.fixture(scope="module")
def filled(token_server: Embedded, world: str) -> Iterator[Books]:
    with edges.made(token_server, world) as books:
        yield books


@pytest.fixture
def books(filled: Books, tmp_path: Path) -> Iterator[Books]:
    process.gate.use(filled.tokens, Settings(data_dir=tmp_path))
    yield filled
    process.gate.forget()


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
