"""The limit of requests a minute: exact, and at a cost that does not grow with what was made."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import RateLimited, Tokens
from tokenlib.testing import TestClock

Person = tuple[UUID, UUID]
Join = Callable[[str], Person]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TYPES = ("general", "goal_generation")

_CHARGES = """
insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used, tokens_deducted,
    remaining_balance, created_at, number, reservation_id, held)
select %s, user_id, %s, 'generate_goal', 1, 0, at, number, reservation_id, 1
from unnest(%s::uuid[], %s::timestamptz[], %s::uuid[])
    with ordinality as e (user_id, at, reservation_id, number)
"""
_EVENTS = """
insert into ai_token_events (organization_id, token_type, number, after_log, kind, balance_after,
    effective_at, created_at, actor, hash_version, hash)
select %s, %s, number, 0, 'reserve', 0, at, at, 'somebody', 1, ''
from unnest(%s::timestamptz[]) with ordinality as e (at, number)
"""
_HOLDS = """
insert into ai_token_reservations (organization_id, user_id, token_type, feature, units, tokens,
    created_at, expires_at)
select %s, user_id, %s, 'generate_goal', 1, 1, at, at + interval '1 hour'
from unnest(%s::uuid[], %s::timestamptz[]) as e (user_id, at) where user_id is not null
"""
_WALLET = """
insert into ai_tokens (log_number, event_number, last_used_at, last_entry_at, organization_id,
    token_type)
values (%s, %s, %s, %s, %s, %s)
"""


def history(chance: random.Random, mean: float) -> list[datetime]:
    """Times in order, up to now, of which some are older than a minute."""
    at = NOW - timedelta(seconds=chance.choice([0.1, 30, 55, 70, 200]))
    times: list[datetime] = []
    while at <= NOW and len(times) < 400:
        times.append(at)
        at += timedelta(seconds=chance.choice([0, 0, 2 * mean * chance.random()]))
    return times


def written(
    owner: psycopg.Connection, chance: random.Random, organization: UUID, users: list[UUID]
) -> dict[UUID, list[datetime]]:
    """Wallets with a random past; when each user made requests."""
    requests: dict[UUID, list[datetime]] = {user: [] for user in users}
    plain = chance.random() < 0.5  # one wallet, where every entry is a request
    for token_type in TYPES[: 1 if plain else None]:
        charges = history(chance, chance.choice([0.05, 0.3, 3]))
        who = [chance.choice(users) for _ in charges]
        holds = [uuid4() if not plain and chance.random() < 0.3 else None for _ in charges]
        owner.execute(_CHARGES, (organization, token_type, who, charges, holds))
        events = [] if plain else history(chance, chance.choice([0.1, 0.5, 5]))
        holders = [chance.choice([*users, None]) for _ in events]
        owner.execute(_EVENTS, (organization, token_type, events))
        owner.execute(_HOLDS, (organization, token_type, holders, events))
        last = max((*charges[-1:], *events[-1:]), default=NOW - timedelta(days=1))
        owner.execute(
            _WALLET,
            (
                len(charges),
                len(events),
                charges[-1] if charges else None,
                last,
                organization,
                token_type,
            ),
        )
        for user, at, hold in zip(who, charges, holds, strict=True):
            if hold is None:
                requests[user].append(at)
        for holder, at in zip(holders, events, strict=True):
            if holder is not None:
                requests[holder].append(at)
    return requests


def expected(requests: list[datetime], allowed: int) -> datetime | None:
    """By counting all of them."""
    recent = sorted(at for at in requests if at > NOW - MINUTE)
    return recent[-allowed] + MINUTE if len(recent) >= allowed else None


@pytest.mark.parametrize("seed", range(4))
def test_the_count_is_exact_on_any_past(owner: psycopg.Connection, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    seen = set()
    for _ in range(25):
        organization, users = uuid4(), [uuid4() for _ in range(chance.choice([1, 1, 3]))]
        requests = written(owner, chance, organization, users)
        for user in users:
            made = sum(at > NOW - MINUTE for at in requests[user])
            for allowed in {1, 30, 100, 101, 150, max(made, 1), made + 1, 1000}:
                found = owner.execute(
                    "select tokenlib.minute_full_until(%s, %s, %s, %s)",
                    (organization, user, allowed, NOW),
                ).fetchone()
                assert found == (expected(requests[user], allowed),), (made, allowed)
                seen.add((allowed > 100, found[0] is None))
    assert len(seen) == 4


LOADED = """
with wallet as (
    update ai_tokens set log_number = %(count)s, last_used_at = %(now)s, last_entry_at = %(now)s
    where organization_id = %(organization)s and token_type = 'goal_generation'
)
insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used, tokens_deducted,
    remaining_balance, created_at, number)
select %(organization)s, %(user)s, 'goal_generation', 'generate_goal', 0, 0,
    %(now)s::timestamptz - interval '1 minute' / 20000 * (%(count)s - n), n
from generate_series(1, %(count)s) as n
"""
TOUCHED = """
select sum(seq_tup_read + idx_tup_fetch)::integer from pg_stat_xact_user_tables
where relname in ('ai_token_usage_log', 'ai_token_reservations', 'ai_token_events')
"""


@pytest.mark.parametrize(("allowed", "most"), [(30, 70), (5_000, 5_100), (25_000, 20)])
def test_a_charge_looks_at_no_more_requests_than_are_allowed(
    tokens: Tokens,
    owner: psycopg.Connection,
    token_clock: TestClock,
    pro: Person,
    allowed: int,
    most: int,
) -> None:
    """One user made 20,000 requests in the last minute, of 30,000 in all."""
    organization, user = pro
    tokens.initialize_tokens(organization, "pro")
    token_clock.advance(2 * MINUTE)
    now = token_clock.now()
    token_clock.set(now)
    owner.execute(
        "update ai_token_limits set requests_per_minute = %s, seconds_between_requests = 0",
        (allowed,),
    )
    params = {"organization": organization, "user": user, "now": now, "count": 30_000}
    owner.execute(LOADED, params)
    owner.execute("analyze")
    with owner.transaction():
        answer = owner.execute(
            "select status"
            " from tokenlib.deduct(%s, %s, 'generate_goal', 1, null, 'key', true, null)",
            (organization, user),
        ).fetchone()
        touched = owner.execute(TOUCHED).fetchone()
    assert answer == ("ok" if allowed > 20_000 else "rate_limited",)
    assert touched is not None
    assert touched[0] <= most


@pytest.mark.usefixtures("noon")
def test_retry_after_speaks_of_the_request_that_has_to_leave_the_minute(
    tokens: Tokens, owner: psycopg.Connection, token_clock: TestClock, join: Join
) -> None:
    """The limit was lowered while more requests than that stand in the minute."""
    owner.execute("update ai_token_limits set seconds_between_requests = 0")
    pro = join("pro")
    for _ in range(4):
        tokens.deduct_tokens(*pro, "generate_insight", limits=True)
        token_clock.advance(timedelta(seconds=10))
    owner.execute("update ai_token_limits set requests_per_minute = 2")
    with pytest.raises(RateLimited) as refused:
        tokens.deduct_tokens(*pro, "generate_insight", limits=True)
    # Made at 0, 10, 20 and 30 s; it is 40 s, and one is allowed when that of 20 s has left.
    assert refused.value.retry_after == 40
    token_clock.advance(timedelta(seconds=refused.value.retry_after))
    tokens.deduct_tokens(*pro, "generate_insight", limits=True)
