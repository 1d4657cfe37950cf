"""Each figure and chart of Overview is plain SQL's on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.console import edges
from tests.console.edges import MONDAY, NOW, ZONES, Books, spans
from tests.console.opening import open_page, texts
from tests.console.reading import chart, figures, plain, table, whole
from tokenlib.config import Settings
from tokenlib.console import process
from tokenlib.embedded import Embedded


@pytest.fixture(scope="module")
def filled(token_server: Embedded, world: str) -> Iterator[Books]:
    with edges.made(token_server, world) as books:
        yield books


@pytest.fixture
def books(filled: Books, tmp_path: Path) -> Iterator[Books]:
    process.gate.use(filled.tokens, Settings(data_dir=tmp_path))
    yield filled
    process.gate.forget()


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
