"""Who went beyond the limits is found among the hasty alone, and is who the whole log finds."""

# ruff: noqa: S311 - chance is no secret

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import psycopg
import pytest

from tokenlib import Tokens
from tokenlib.reports import Reports
from tokenlib.testing import TestClock

NOW = datetime(2026, 3, 30, 9, 17, 23, 456789, tzinfo=UTC)
HOUR = timedelta(hours=1)
LIMITS = (
    "update ai_token_limits set alert_tokens_per_hour = %s, tokens_per_request = %s,"
    " requests_per_minute = %s, seconds_between_requests = %s"
)
WINDOWS = [1, 2.5, 24, 100, 7 * 24, 12 * 24]


class Plain(Reports):
    """The same questions, answered from the log alone."""

    @property
    def _closed(self) -> str:
        return ""


def write(
    owner: psycopg.Connection,
    chance: Random,
    one: UUID,
    person: UUID,
    at: datetime,
    now: datetime = NOW,
) -> None:
    """A charge, or a hold and its charge a little later."""
    tokens, hold = chance.randrange(1, 9), None
    if chance.random() < 0.3:
        row = owner.execute(
            "insert into ai_token_reservations (organization_id, user_id, token_type, feature,"
            " units, tokens, state, created_at, expires_at, resolved_at)"
            " values (%s, %s, 'general', 'generate_insight', 1, %s, 'deducted', %s, %s, %s)"
            " returning id",
            (one, person, tokens, at, at + HOUR, at + HOUR),
        ).fetchone()
        assert row is not None
        hold = row[0]
        at += timedelta(seconds=chance.randrange(1, 100))
    owner.execute(
        "insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used,"
        " tokens_deducted, remaining_balance, created_at, reservation_id, held)"
        " values (%s, %s, 'general', 'generate_insight', %s, 0, %s, %s, %s)",
        (one, person, tokens, min(at, now - timedelta(seconds=1)), hold, tokens if hold else 0),
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "limits",
    # Each alone, so that no other finds who breaks it; then together.
    [
        (30, None, None, None),
        (None, 7, None, None),
        (None, None, 3, None),
        (None, None, None, 4),
        (40, 7, 4, 2),
    ],
    ids=["tokens an hour", "tokens a request", "requests a minute", "seconds between", "all"],
)
def test_the_hasty_are_those_beyond_the_limits(
    tokens: Tokens,
    token_clock: TestClock,
    owner: psycopg.Connection,
    limits: tuple[int | None, ...],
    seed: int,
) -> None:
    chance = Random(seed)
    token_clock.set(NOW - 300 * HOUR)
    people = []
    for name in "ABC":
        one = tokens.create_organization(name, "pro")
        people += [(one, tokens.add_member(one, "A", f"{n}-{one}@example.org")) for n in range(7)]
    owner.execute(LIMITS, limits)
    closings = sorted(chance.random() * 260 for _ in range(4))
    bursts = sorted(
        [chance.random() * 280 for _ in range(60)]
        + [chance.random() for _ in range(6)]
        # Where the windows that are kept begin.
        + [hours + chance.uniform(-1, 1) for hours in (24, 7 * 24) for _ in range(6)]
    )
    while bursts or closings:
        if not bursts or (closings and closings[-1] > bursts[-1]):
            token_clock.set(NOW - closings.pop() * HOUR)
            tokens.close_usage()
            tokens.close_usage()
            continue
        begun = NOW - bursts.pop() * HOUR
        one, person = chance.choice(people)
        spread = chance.choice((20, 90, 600, 5000))
        for _ in range(chance.randrange(2, 9)):
            write(owner, chance, one, person, begun + spread * chance.random() * HOUR / 3600)
    token_clock.set(NOW)

    def same(now: datetime = NOW) -> int:
        total = 0
        for hours in WINDOWS:
            for until in (now, now - hours / 3 * HOUR):
                found = Reports(tokens.database).abuse(now - hours * HOUR, until)
                plain = Plain(tokens.database).abuse(now - hours * HOUR, until)
                assert found == plain, (hours, until)
                total += found.total
        return total

    assert same() > 0
    found = owner.execute("select hasty_to from ai_token_usage_closed").fetchone()
    assert found is not None
    assert found[0] is not None
    kept = owner.execute(
        "select count(distinct user_id), count(*) from ai_token_usage_bursts"
    ).fetchone()
    assert kept is not None
    assert 1 < kept[0] < kept[1]
    # Stricter than those that were kept: nobody is missed, before the next closing or after it.
    owner.execute(LIMITS, [None if limit is None else limit // 2 for limit in limits[:3]] + [20])
    before = same()
    tokens.close_usage()
    tokens.close_usage()
    assert same() == before
    # What came since, and what left the windows, moves those alone who asked for it.
    for minutes in (1, 11, 30, 57):
        since, now = token_clock.now(), NOW + minutes * HOUR / 60
        token_clock.set(now)
        for one, person in chance.sample(people, 5):
            for _ in range(chance.randrange(1, 5)):
                at = since + chance.random() * (now - since)
                write(owner, chance, one, person, at, now)
        assert same(now) > 0
        one = people[minutes % 3][0]
        window = now - 24 * HOUR, now
        theirs = Reports(tokens.database).abuse(*window, organization_id=one)
        assert theirs == Plain(tokens.database).abuse(*window, organization_id=one)
