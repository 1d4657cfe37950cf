"""Books whose charges lie on both sides of every window's edge, in three time zones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from tests.console.conftest import copied
from tests.console.reading import plain
from tokenlib import FeatureNotInPlan
from tokenlib.db import Database
from tokenlib.embedded import Embedded
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


@contextmanager
def made(token_server: Embedded, world: str) -> Iterator[Books]:
    """Books with a charge on each of these moments, a refund for every tenth, three refusals."""
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
