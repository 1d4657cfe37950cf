"""What is closed is not read again: a question about everybody reads a few rows at the edges.

However long the log is; counted as rows that the statement fetched, not as time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tokenlib import Tokens
from tokenlib.db import Database, statements
from tokenlib.embedded import Embedded
from tokenlib.testing import TestClock, TestDatabase

DAY = timedelta(days=1)
NOW = datetime(2026, 3, 15, 12, 2, 30, tzinfo=UTC)
SMALL = 4_000
SIZES = (SMALL, pytest.param(10 * SMALL, marks=pytest.mark.thorough))
FILL = """
with many as (select gen_random_uuid() as id, gen_random_uuid() as person, n
    from generate_series(0, 99) as n)
insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used, tokens_deducted,
    remaining_balance, created_at)
select id, person, 'general', 'generate_insight', 1 + g %% 7, 1,
    %(now)s - g * interval '120 days' / %(rows)s
from generate_series(1, %(rows)s) as g join many on n = g %% 100
"""
READ = """
select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint as rows
from pg_stat_xact_user_tables where relname in ('ai_token_usage_log', 'ai_token_events')
"""


@pytest.fixture(scope="module", params=SIZES)
def tokens(request: pytest.FixtureRequest, token_server: Embedded) -> Iterator[Tokens]:
    database = TestDatabase(token_server, f"read_{uuid4().hex[:12]}")
    with TestDatabase(token_server, "postgres").connect("postgres") as root:
        root.execute(
            f'create database "{database.name}" template tokenlib_template strategy file_copy'
        )
        try:
            with Tokens(Database(database.url())) as made:
                with database.connect("tokenlib_owner") as owner:
                    owner.execute(FILL, {"now": NOW, "rows": request.param})
                    owner.execute("analyze")
                TestClock(database).set(NOW)
                assert made.close_usage(anew=True) == NOW - timedelta(minutes=2, seconds=30)
                yield made
        finally:
            root.execute(f'drop database "{database.name}" with (force)')


DAYS = [1, 7, 30, 90]
ALL = {"organization_id": None}
BARS = {"timezone": "Asia/Kathmandu", "bucket": "day", "by": "feature", "top": 8, "feature": None}
QUESTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("usage", "by_feature_closed"): ALL,
    ("usage", "by_day_closed"): {**ALL, "timezone": "Europe/Rome", "by_feature": True},
    ("usage", "top_organizations_closed"): {"limit": 10},
    ("usage", "top_users_closed"): {**ALL, "limit": 10},
    ("usage", "cost_against_revenue_closed"): {},
    ("series", "series_closed"): {**ALL, **BARS},
    ("series", "totals_closed"): {**ALL, "feature": None},
    ("series", "plans_closed"): {**BARS, "by": "plan", "plan": None},
    ("series", "totals_of_plan"): {"plan": "pro", "feature": None},
    ("overview", "totals"): {},
    ("overview", "run_outs_closed"): {"within": timedelta(days=7), "limit": 5},
}


@pytest.mark.parametrize("days", DAYS)
@pytest.mark.parametrize("question", QUESTIONS, ids=" ".join)
def test_a_question_reads_the_edges_of_its_window(
    tokens: Tokens, question: tuple[str, str], days: int
) -> None:
    noun, name = question
    since = NOW - timedelta(days=days)
    params = {"since": since, "until": NOW, "before": since - timedelta(days=days)}
    rows = fetched(tokens, statements(noun)[name], {**params, **QUESTIONS[question]})
    # At 40,000 rows a step of five minutes has one or two. Counting organizations, the overview
    # looks up each that lies at an edge of its two windows.
    assert rows <= (200 if noun == "overview" else 30), question


def test_movers_read_to_the_nearest_midnight(tokens: Tokens) -> None:
    """Twice 12 hours at most, and days of those alone who can be among the first."""
    rows = []
    for size, week in ((5, DAY * 7), (1, DAY * 7)):
        since = NOW - timedelta(days=6)
        params = {"since": since, "until": NOW, "before": since - week, "before_until": NOW - week}
        asked = {**params, "limit": size}
        rows.append(fetched(tokens, statements("overview")["movers_closed"], asked))
        whole = fetched(tokens, statements("overview")["movers"], asked)
        # Each edge is read for the first ones, and again for all who can be among them.
        assert rows[-1] <= whole // 3, (rows, whole)


def test_the_log_alone_is_read_as_a_whole(tokens: Tokens) -> None:
    """The count counts: without the rollups it is every row of the window."""
    params = {"since": NOW - timedelta(days=90), "until": NOW, **ALL}
    rows = fetched(tokens, statements("usage")["by_feature"], params)
    assert rows >= 90 * SMALL // 120


def fetched(tokens: Tokens, statement: str, params: dict[str, Any]) -> int:
    """How many rows of the log and the events a statement read."""
    with tokens.database.transaction() as connection:
        # What this connection read before and has not yet reported counts with it.
        before = connection.exec_driver_sql(READ).scalar_one()
        connection.exec_driver_sql(statement, params)
        return int(connection.exec_driver_sql(READ).scalar_one() - before)
