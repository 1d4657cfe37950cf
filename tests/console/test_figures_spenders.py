"""Each figure and chart of Top spenders is plain SQL's on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.console import edges
from tests.console.edges import NOW, ZONES, Books, spans
from tests.console.opening import open_page
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


def test_a_trend_shows_days_that_begin_at_full_hours(books: Books) -> None:
    """What lies between that hour and the window counts to the day before, the end to the last."""
    since = NOW - timedelta(days=1)
    rows = table(open_page("spenders.py", range="24h"), "trend").set_index("organization")
    for name, trend in rows["trend"].items():
        asked = plain(
            books.database,
            "select least(floor(extract(epoch from l.created_at - date_trunc('hour', %s)) / 86400),"
            " case when l.created_at < %s then -1 else 0 end),"
            " sum(tokens_deducted) from ai_token_usage_log l"
            " join organizations o on o.id = l.organization_id"
            " where o.name = %s and l.created_at < %s group by 1",
            since,
            since,
            name,
            NOW,
        )
        by_day = {int(day): tokens for day, tokens in asked}
        assert list(trend) == [by_day.get(day, 0) for day in range(-27, 1)]
