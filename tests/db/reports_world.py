"""A small world made with the real verbs, for the tests of the reports: every situation in it has a
known place in time, so that windows, days and periods can be checked to the microsecond."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from tests.databases import copied
from tokenlib import Refused, Tokens
from tokenlib.db import Database, statements
from tokenlib.embedded import Embedded
from tokenlib.reports import Reports, Viewer
from tokenlib.testing import TestClock, TestDatabase

TICK = timedelta(microseconds=1)
SINCE = datetime(2026, 3, 1, tzinfo=UTC)
UNTIL = datetime(2026, 3, 15, 12, tzinfo=UTC)
NOW = UNTIL
DAY_AGO = UNTIL - timedelta(hours=24)
KOLKATA_MIDNIGHT = datetime(2026, 3, 7, 18, 30, tzinfo=UTC)
# The clocks of New York go ahead on 8 March 2026: that day has 23 hours.
NEW_YORK_8_MARCH = datetime(2026, 3, 8, 5, tzinfo=UTC)
NEW_YORK_9_MARCH = datetime(2026, 3, 9, 4, tzinfo=UTC)


@dataclass(frozen=True)
class World:
    """Organizations a (pro), b (enterprise), c (starter), d (pro, a period ahead); their users."""

    database: TestDatabase
    tokens: Tokens
    clock: TestClock
    a: UUID
    a1: UUID
    a2: UUID
    b: UUID
    b1: UUID
    c: UUID
    c1: UUID
    d: UUID
    d1: UUID
    staff: UUID

    def service(self) -> Reports:
        """Asked by the service itself."""
        return Reports(self.tokens.database)

    def member(self, user: UUID) -> Reports:
        """Asked by a signed-in member."""
        return Reports(self.tokens.database, Viewer(user, "authenticated"))

    def as_staff(self, user: UUID) -> Reports:
        """Asked by somebody who says to be staff."""
        return Reports(self.tokens.database, Viewer(user, "tokenlib_reader"))

    def plain(self, query: str, *values: object, **named: object) -> list[tuple[Any, ...]]:
        """What an operator's own SQL answers on the tables."""
        with self.database.connect("tokenlib_owner") as connection:
            return connection.execute(query.encode(), named or values).fetchall()


@contextmanager
def made(server: Embedded) -> Iterator[World]:
    """The world in a database of its own, with the clock stopped at NOW."""
    with copied(server) as database, lived(database) as world:
        yield world


@contextmanager
def lived(database: TestDatabase) -> Iterator[World]:
    """The world in a fresh database, with the clock stopped at NOW."""
    with Tokens(Database(database.url())) as tokens:
        yield _history(database, tokens)


def _history(database: TestDatabase, tokens: Tokens) -> World:
    clock = TestClock(database)

    def at(moment: datetime) -> None:
        clock.set(moment)

    def refused(organization: UUID, user: UUID, feature: str, units: int = 1) -> None:
        try:
            tokens.deduct_tokens(organization, user, feature, units)
        except Refused:
            return
        raise AssertionError(f"{feature} was not refused")

    use = tokens.deduct_tokens

    at(datetime(2026, 2, 5, 12, tzinfo=UTC))
    d = tokens.create_organization("Organization D", "pro")
    d1 = tokens.add_member(d, "User D1", "d1@example.org")
    at(datetime(2026, 2, 6, 10, tzinfo=UTC))
    old = use(d, d1, "analyze_strategy")

    at(datetime(2026, 2, 25, 9, tzinfo=UTC))
    a = tokens.create_organization("Organization A", "pro")
    a1 = tokens.add_member(a, "User A1", "a1@example.org")
    a2 = tokens.add_member(a, "User A2", "a2@example.org")
    b = tokens.create_organization("Organization B", "enterprise")
    b1 = tokens.add_member(b, "User B1", "b1@example.org")
    c = tokens.create_organization("Organization C", "starter")
    c1 = tokens.add_member(c, "User C1", "c1@example.org")

    at(SINCE - TICK)
    use(a, a1, "generate_goal")
    at(SINCE)
    first = use(a, a1, "generate_goal")
    use(b, b1, "generate_leads", 3)
    at(KOLKATA_MIDNIGHT - TICK)
    use(a, a2, "generate_insight")
    at(KOLKATA_MIDNIGHT)
    use(a, a2, "generate_insight", 4)
    at(NEW_YORK_8_MARCH - TICK)
    use(a, a1, "analyze_efficiency")
    at(NEW_YORK_8_MARCH)
    use(a, a1, "analyze_efficiency", 2)
    at(NEW_YORK_9_MARCH - TICK)
    use(b, b1, "forecast_revenue")
    at(NEW_YORK_9_MARCH)
    held = tokens.reserve(b, b1, "forecast_revenue", 3)
    tokens.deduct(held, units=2)

    at(datetime(2026, 3, 10, 12, tzinfo=UTC))
    tokens.refund(first, "wrong quarter", actor="User of the tests")
    at(datetime(2026, 3, 10, 13, tzinfo=UTC))
    tokens.refund(old, "after its period", actor="User of the tests")
    at(datetime(2026, 3, 11, tzinfo=UTC))
    tokens.grant(b, "shared", 500, kind="purchase", source="pack_500")
    mistaken = use(b, b1, "generate_leads")
    tokens.refund(mistaken, "a mistake")

    at(datetime(2026, 3, 11, 1, tzinfo=UTC))
    tokens.set_mode("log_only", c, actor="User of the tests", reason="a test")
    use(c, c1, "generate_goal")
    tokens.set_mode("enforce", c, actor="User of the tests", reason="a test is over")
    at(datetime(2026, 3, 12, tzinfo=UTC))
    refused(c, c1, "generate_goal")
    refused(c, c1, "generate_goal")

    at(datetime(2026, 3, 13, tzinfo=UTC))
    use(a, a2, "generate_insight", 29)  # 1 + 4 + 2 + 4 + 29 = 40 of 50: exactly 80 %
    use(b, b1, "generate_insight", 437)
    at(DAY_AGO - TICK)
    use(b, b1, "generate_insight")
    at(DAY_AGO)
    use(b, b1, "generate_insight", 2)
    at(DAY_AGO + timedelta(hours=2))
    use(a, a1, "generate_goal")
    use(d, d1, "forecast_revenue", 7)
    refused(d, d1, "forecast_revenue")
    use(d, d1, "generate_insight", 50)  # exactly 100 %
    use(d, d1, "generate_goal", 5)  # 15 of 20: below 80 %
    at(DAY_AGO + timedelta(hours=3))
    refused(a, a1, "generate_goal", 10)
    refused(b, b1, "forecast_revenue", 1000)
    tokens.pause_user(a, a2, actor="User of the tests", reason="a test")
    refused(a, a2, "generate_insight")

    at(NOW - timedelta(minutes=20))
    for organization, user in ((a, a1), (b, b1)):
        tokens.reserve(organization, user, "analyze_strategy")
        tokens.reserve(organization, user, "generate_leads", 2, hold_for=timedelta(hours=1))
        tokens.database.call(
            statements("plans")["save_quest"],
            {
                "organization_id": organization,
                "user_id": user,
                "title": f"Quest of {user}",
                "description": "Four steps",
                "quarter": "Q2 2026",
                "target": 90_000,
                "metadata": Jsonb({"steps": []}),
            },
        )
    tokens.set_status(b, "limited", actor="User of the tests", reason="payment failed")
    refused(b, b1, "generate_insight")
    at(UNTIL - TICK)
    use(a, a1, "generate_leads")
    at(UNTIL)
    use(a, a1, "generate_leads")

    staff = uuid.uuid4()
    with database.connect("tokenlib_owner") as owner:
        owner.execute(
            "insert into tokenlib_staff (user_id, email, full_name, role)"
            " values (%s, 'staff@example.org', 'Staff', 'support')",
            [staff],
        )
    at(NOW)
    return World(database, tokens, clock, a, a1, a2, b, b1, c, c1, d, d1, staff)


def break_books(owner: psycopg.Connection, *organizations: UUID) -> None:
    """What cannot happen in books of ours and is found in adopted ones, in every organization."""
    owner.execute("alter table ai_tokens drop constraint sums_close")
    trigger = owner.execute("select tgname from pg_trigger where tgname = 'sums_close'")
    if trigger.fetchone():  # not on a Citus
        owner.execute("alter table ai_tokens disable trigger sums_close")
    for organization in organizations:
        owner.execute(
            "update ai_tokens set balance = total_allocated + 5"
            " where organization_id = %s and token_type = 'general'",
            [organization],
        )
        owner.execute(
            "update ai_tokens set refresh_date = %s"
            " where organization_id = %s and token_type = 'strategy_analysis'",
            [NOW, organization],
        )
        owner.execute(
            "update organizations set plan = case plan when 'pro' then 'enterprise' else 'pro' end"
            " where id = %s",
            [organization],
        )
        owner.execute(
            "insert into ai_token_findings (organization_id, token_type, kind, detail, found_at)"
            " values (%s, 'general', 'emergency_balance', %s, %s)",
            [organization, f"found in {organization}", NOW],
        )
