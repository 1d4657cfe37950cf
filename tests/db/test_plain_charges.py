"""A charge that is decided at a glance is the one that the rules make, whatever was before it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tokenlib import Tokens
from tokenlib.errors import TokenlibError
from tokenlib.testing import TestClock, TestDatabase

Person = tuple[UUID, UUID]
FEATURES = ("generate_goal", "generate_insight", "forecast_revenue")
STEPS, CHARGES_EACH = 90, 3
MINUTE = timedelta(minutes=1)

GLANCE = "select * from tokenlib.deduct(%s, %s, %s, %s, %s, %s, %s, %s)"
BY_RULE = """
select * from tokenlib.deduct_by_rule(%s, %s, %s, %s, %s, %s,
    case when %s::text is not null then tokenlib.request_hash(%s, %s, %s, %s) end, %s, %s)
"""
# All that a charge may change, without the ids that chance draws and the hashes over them.
BOOKS = """
select relation, row - '{id,hash,log_hash,event_hash,subject_id}'::text[] as row from (
    select 'wallet' as relation, to_jsonb(t) as row from ai_tokens t
    union all select 'log', to_jsonb(t) from ai_token_usage_log t
    union all select 'event', to_jsonb(t) from ai_token_events t
    union all select 'grant', to_jsonb(t) from ai_token_grants t
    union all select 'hold', to_jsonb(t) from ai_token_reservations t
    union all select 'refusal', to_jsonb(t) from ai_token_refusals t) as books
order by relation, row
"""
DECIDED = "select coalesce(sum(calls), 0) from pg_stat_xact_user_functions where funcname = 'admit'"
LIMITS = """
insert into ai_token_limits (organization_id, requests_per_minute, seconds_between_requests,
    tokens_per_request, output_units_per_request, failed_attempts) values (%s, %s, %s, %s, %s, %s)
on conflict (scope) do update set requests_per_minute = excluded.requests_per_minute,
    seconds_between_requests = excluded.seconds_between_requests,
    tokens_per_request = excluded.tokens_per_request,
    output_units_per_request = excluded.output_units_per_request,
    failed_attempts = excluded.failed_attempts
"""


class Life:
    """Whatever may come before a charge, by chance."""

    def __init__(
        self, tokens: Tokens, root: psycopg.Connection, clock: TestClock, seed: int, join: Any
    ) -> None:
        self.tokens, self.root, self.clock = tokens, root, clock
        self.chance = random.Random(seed)  # noqa: S311 - no secret
        self.people: list[Person] = [join("pro"), join("starter")]
        self.keys = [f"key {number}" for number in range(6)]

    def one(self, *values: Any) -> Any:
        return self.chance.choice(values)

    def time(self) -> datetime:
        return self.clock.now()

    def step(self) -> None:
        """Something that is not a charge happens, or that much time passes."""
        organization, user = self.one(*self.people)
        who = {"actor": "somebody", "reason": "a test"}
        until = self.one(None, self.time() + self.one(-1, 1) * MINUTE)
        mode = self.one(*["enforce"] * 5, "log_only", "off")
        happens: list[Callable[[], object]] = [
            lambda: self.tokens.set_status(
                organization, self.one(*["active"] * 5, "suspended", "limited"), **who
            ),
            lambda: self.tokens.pause_user(organization, user, self.chance.random() < 0.2, **who),
            lambda: self.tokens.change_plan(organization, self.one("pro", "enterprise")),
            lambda: self.root.execute(
                "update organizations set plan = %s where id = %s",
                (self.one("pro", "enterprise"), organization),
            ),
            lambda: self.root.execute(
                "insert into ai_token_organization_settings (organization_id, mode, mode_until)"
                " values (%s, %s, %s) on conflict (organization_id)"
                " do update set mode = excluded.mode, mode_until = excluded.mode_until",
                (organization, self.one(None, mode), until),
            ),
            lambda: self.root.execute(
                "update ai_token_parameters set mode = %s, mode_until = %s", (mode, until)
            ),
            *[lambda: self.limit(self.one(None, organization))] * 4,
            lambda: self.tokens.failed_attempt(user, "a test"),
            *[lambda: self.grant(organization)] * 3,
            *[lambda: self.hold(organization, user)] * 4,
            lambda: self.archive(organization),
            lambda: self.keys.append(f"key {len(self.keys)}"),
            *[lambda: self.clock.advance(timedelta(seconds=self.one(1, 30, 70, 700, 3e6)))] * 6,
        ]  # fmt: skip
        with suppress(TokenlibError):
            self.chance.choice(happens)()

    def limit(self, organization: UUID | None) -> None:
        """For everyone or one organization; often above what comes."""
        minute, seconds = self.one(None, 2, 1000, 1000), self.one(None, 0, 0, 2.5)
        tokens, output, failed = self.one(None, 2, 1000), self.one(None, 100), self.one(None, 1, 3)
        self.root.execute(LIMITS, (organization, minute, seconds, tokens, output, failed))

    def grant(self, organization: UUID) -> None:
        """Now and then under the key of another request."""
        kind = self.one("shared", "goal_generation", "general")
        key = self.one(None, *self.keys)
        self.tokens.grant(organization, kind, 100, source="a test", idempotency_key=key)

    def hold(self, organization: UUID, user: UUID) -> None:
        """Which the next charge may find over."""
        self.tokens.reserve(
            organization,
            user,
            self.one(*FEATURES),
            idempotency_key=self.one(*self.keys),
            hold_for=self.one(1, 20) * MINUTE,
        )

    def archive(self, organization: UUID) -> None:
        """As if a charge with a key had been moved out of the log."""
        self.keys.append(f"archived {len(self.keys)}")
        self.root.execute(
            "insert into ai_token_archived_keys values (%s, %s)", (organization, self.keys[-1])
        )

    def request(self) -> tuple[Any, ...]:
        """Whom to charge for what, and how."""
        organization, user = self.one(*self.people)
        if self.chance.random() < 0.1:
            user = self.one(uuid4(), self.people[0][1], self.people[1][1])
        units = self.one({}, {"output_units": self.one(50, 500)})
        return (
            self.one(organization, *[organization] * 20, uuid4()),
            user,
            self.one(*FEATURES * 6, "no such feature"),
            self.one(1, 1, 1, 2, 40),
            self.one(None, Jsonb({"a": 1, **units})),
            self.one(None, *[str(uuid4())] * 4, self.keys[-1], *self.keys[:3]),
            self.chance.random() < 0.5,
            self.one(*[None] * 12, "enforce", "off"),
        )

    def charged(self, statement: str, values: tuple[Any, ...]) -> tuple[Any, Any, bool]:
        """The answer and the books after it, which are then as before; whether rules decided."""
        with self.root.transaction(force_rollback=True):
            before = self.root.execute(DECIDED).fetchone()
            cursor = self.root.execute(statement, values)
            answer = dict(
                zip([column.name for column in cursor.description or ()], *cursor, strict=True)
            )
            if answer["status"] == "ok" and not answer["replayed"]:
                answer["id"] = "drawn"
            after = self.root.execute(DECIDED).fetchone()
            return answer, self.root.execute(BOOKS).fetchall(), before != after


THOROUGHLY = [pytest.param(seed, marks=pytest.mark.thorough) for seed in (1, 2)]


@pytest.mark.parametrize("seed", [0, *THOROUGHLY])
def test_a_charge_at_a_glance_is_the_one_that_the_rules_make(
    tokens: Tokens,
    token_database: TestDatabase,
    token_clock: TestClock,
    noon: datetime,
    join: Callable[[str], Person],
    seed: int,
) -> None:
    seen: Counter[tuple[str, bool]] = Counter()
    with token_database.connect("postgres") as root:
        root.execute("set track_functions = 'all'")
        life = Life(tokens, root, token_clock, seed, join)
        for _ in range(STEPS):
            life.step()
            for _ in range(CHARGES_EACH):
                request = life.request()
                organization, user, feature, units, metadata, key, limits, mode = request
                asked = (user, feature, units, metadata)
                glance = life.charged(GLANCE, request)
                rules = life.charged(
                    BY_RULE,
                    (organization, *asked, key, key, *asked, limits, mode),
                )
                assert glance[:2] == rules[:2], request
                assert rules[2]
                seen[glance[0]["status"], glance[2]] += 1
            with root.transaction():
                root.execute(GLANCE, life.request())
    assert tokens.verify().closed
    assert seen["ok", False] > STEPS / 5, "few were charged at a glance"
    assert {status for status, decided in seen if not decided} == {"ok"}
    assert len(seen) > 5


def test_a_minute_that_has_room_is_counted_at_a_glance(
    token_database: TestDatabase,
    token_clock: TestClock,
    join: Callable[[str], Person],
    tokens: Tokens,
) -> None:
    organization, user = join("pro")
    with token_database.connect("postgres") as root:
        root.execute("set track_functions = 'all'")
        life = Life(tokens, root, token_clock, 0, lambda _plan: (organization, user))
        root.execute(LIMITS, (organization, 2, 0, None, None, None))
        for key in ("first", "second", "third"):
            token_clock.advance(timedelta(seconds=40))
            request = (organization, user, FEATURES[0], 1, None, key, True, None)
            answer, _books, decided = life.charged(GLANCE, request)
            assert (answer["status"], decided) == ("ok", False)
            root.execute(GLANCE, request)
        one_more = (organization, user, FEATURES[0], 1, None, "fourth", True, None)
        answer, _books, decided = life.charged(GLANCE, one_more)
        assert (answer["status"], decided) == ("rate_limited", True)
