"""How many organizations were charged in a window: those at its edges count once, or not at all."""

# ruff: noqa: S311 - chance is no secret

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import psycopg
import pytest

from tokenlib import Tokens
from tokenlib.testing import TestClock

NOW = datetime(2026, 3, 30, 9, 17, 23, 456789, tzinfo=UTC)
DAY = timedelta(days=1)
COUNTED = (
    "select tokenlib.active_between(%(since)s, %(until)s), (select count(distinct organization_id)"
    " from ai_token_usage_log where created_at >= %(since)s and created_at < %(until)s)"
)


@pytest.mark.parametrize("seed", range(3))
def test_who_enters_or_leaves_at_an_edge_counts_once_or_not_at_all(
    tokens: Tokens, token_clock: TestClock, owner: psycopg.Connection, seed: int
) -> None:
    """A few charges each, within minutes of where windows begin and end."""
    chance = Random(seed)
    token_clock.set(NOW - 60 * DAY)
    ids = [tokens.create_organization(f"Organization {n}", "pro") for n in range(60)]
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    windows = []
    for days in (1, 1, 1, 7, 7, 30):
        for _ in range(8):
            until = chance.choice((NOW, midnight)) - chance.randrange(14) * DAY
            until -= chance.choice((0, 0, 1, 60)) * chance.random() * timedelta(minutes=5)
            windows.append((until - days * DAY, until))
    edges = [moment for window in windows for moment in window]
    for one in ids:
        for _ in range(chance.randrange(1, 5)):
            at = chance.choice(edges) + (chance.random() - 0.5) * timedelta(minutes=10)
            owner.execute(
                "insert into ai_token_usage_log (organization_id, token_type, feature_used,"
                " tokens_deducted, remaining_balance, created_at)"
                " values (%s, 'general', 'generate_insight', %s, 0, %s)",
                (one, chance.randrange(3), min(at, NOW)),
            )
    for back in (1.3 * DAY, timedelta(0)):
        token_clock.set(NOW - back)
        tokens.close_usage()
        tokens.close_usage()
        seen = set()
        for since, until in windows:
            row = owner.execute(COUNTED, {"since": since, "until": until}).fetchone()
            assert row is not None
            assert row[0] == row[1], (since, until)
            seen.add(row[1])
        assert len(seen) > 3
