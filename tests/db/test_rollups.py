"""The rollups answer what the log answers, to the row: any history, window, zone, any closing."""

# ruff: noqa: S311 - the questions take what some of them need; chance is no secret

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.db.rollup_questions import (
    DAY,
    FEATURES,
    NOW,
    OF_A_PERSON,
    OF_ONE,
    QUESTIONS,
    STEP,
)
from tokenlib import Tokens
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase

# The clocks go ahead in Rome on 29 March, in Havana at midnight on 8 March.
ZONES = ("UTC", "Europe/Rome", "Asia/Kolkata", "Asia/Kathmandu", "America/Havana")


IN_90_DAYS = (
    "where last_at >= (select windows_to from ai_token_usage_closed) - interval '2160 hours'"
)
RULES = ("insufficient_tokens", "feature_not_in_plan", "rate_limited", "paused")


class Plain(Reports):
    """The same questions, answered from the books alone."""

    @property
    def _closed(self) -> str:
        return ""


class History:
    """Charges and refunds at times that like the edges, written as the owner."""

    def __init__(self, owner: psycopg.Connection, tokens: Tokens, chance: Random) -> None:
        self.owner, self.chance = owner, chance
        self.organizations = [
            tokens.create_organization(f"Organization {n}", chance.choice(("pro", "enterprise")))
            for n in range(12)
        ]
        self.people = {
            one: [tokens.add_member(one, "A", f"{n}-{one}@example.org") for n in range(3)]
            for one in self.organizations
        }
        # Somebody was charged in two organizations.
        self.people[self.organizations[1]].append(self.people[self.organizations[0]][0])

    def change_plans(self, count: int) -> None:
        """As a billing webhook does; to a plan that no catalog has, too."""
        for _ in range(count):
            self.owner.execute(
                "update organizations set plan = %s where id = %s",
                (
                    self.chance.choice(("pro", "enterprise", "starter")),
                    self.chance.choice(self.organizations),
                ),
            )

    def write(self, since: datetime, until: datetime, count: int) -> None:
        moments = sorted(self.moment(since, until) for _ in range(count))
        for at in moments:
            one = self.organizations[min(int(self.chance.expovariate(0.4)), 11)]
            user = self.chance.choice([*self.people[one], None])
            feature = self.chance.choice(list(FEATURES))
            type_ = self.chance.choice((FEATURES[feature], "shared"))
            self.owner.execute(
                "insert into ai_token_usage_log (organization_id, user_id, token_type,"
                " feature_used, tokens_deducted, tokens_waived, remaining_balance, created_at)"
                " values (%s, %s, %s, %s, %s, %s, 0, %s)",
                (one, user, type_, feature, self.chance.randrange(9), self.chance.randrange(2), at),
            )
            self.settle(one, type_, at)
            if self.chance.random() < 0.2:
                self.refuse(one, user, feature, at)
            if self.chance.random() < 0.2:
                other = self.chance.choice(self.organizations)
                self.settle(other, type_, at)
                self.owner.execute(
                    "insert into ai_token_events (organization_id, token_type, number, after_log,"
                    " kind, balance_change, balance_after, effective_at, created_at, actor, data,"
                    " hash_version, hash) select %s, %s, 1000 + count(*), 0, 'refund', %s, 0, %s,"
                    " %s, 'A test', jsonb_build_object('feature', %s::text, 'user_id', %s::uuid),"
                    " 1, '' from ai_token_events",
                    (other, type_, self.chance.randrange(1, 5), at, at, feature, user),
                )

    def settle(self, organization: UUID, token_type: str, at: datetime) -> None:
        """The wallet of an entry, as it may be left by it."""
        balance = self.chance.choice((0, 3, 17, 400))
        used = self.chance.choice((0, 10, 400))
        self.owner.execute(
            "update ai_tokens set balance = %(balance)s, reserved = 0, total_used = %(used)s,"
            " total_allocated = %(balance)s + %(used)s, last_used_at = %(at)s,"
            " refresh_date = %(refresh)s, plan = %(plan)s, allowance = %(allowance)s"
            " where organization_id = %(organization)s and token_type = %(type)s",
            {
                "organization": organization,
                "type": token_type,
                "balance": balance,
                "used": used,
                "at": at,
                "refresh": NOW + self.chance.random() * 20 * DAY,
                "plan": self.chance.choice(("pro", "pro", "enterprise")),
                "allowance": self.chance.choice((100, 100, None)),
            },
        )

    def refuse(self, organization: UUID, user: UUID | None, feature: str, at: datetime) -> None:
        self.owner.execute(
            "insert into ai_token_refusals (organization_id, user_id, feature, rule, minute,"
            " count, first_at, last_at, data) values (%s, %s, %s, %s,"
            " date_trunc('minute', %s, 'UTC'), %s, %s, %s, %s) on conflict do nothing",
            (
                organization,
                user or UUID(int=0),
                feature,
                self.chance.choice(RULES),
                at,
                self.chance.randrange(1, 4),
                at,
                at,
                self.chance.choice(("{}", "{}", '{"mode": "log_only"}')),
            ),
        )

    def moment(self, since: datetime, until: datetime) -> datetime:
        """Somewhere in between, as often as not on an edge of a step or next to it."""
        at = since + self.chance.random() * (until - since)
        if self.chance.random() < 0.5:
            at = at.replace(minute=at.minute // 5 * 5, second=0, microsecond=0)
            at += timedelta(microseconds=self.chance.choice((-1, 0, 1)))
        return min(max(at, since), until - timedelta(microseconds=1))


THOROUGHLY = [pytest.param(seed, marks=pytest.mark.thorough) for seed in (1, 2)]


@pytest.fixture(params=[0, *THOROUGHLY])
def chance(request: pytest.FixtureRequest) -> Random:
    return Random(request.param)


@pytest.fixture
def history(
    tokens: Tokens, token_clock: TestClock, owner: psycopg.Connection, chance: Random
) -> History:
    token_clock.set(NOW - 130 * DAY)
    owner.execute("set timezone = 'UTC'")
    few_are_kept(owner)
    return History(owner, tokens, chance)


def few_are_kept(owner: psycopg.Connection) -> None:
    """Keep sums for organizations of a small test, too, and look at few of the first."""
    row = owner.execute("select pg_get_functiondef('tokenlib.fold_kept'::regproc)").fetchone()
    assert row is not None
    assert "uses >= 10000\n" in row[0]
    assert "uses >= 1000 " in row[0]
    few = row[0].replace("uses >= 10000\n", "uses >= 30\n").replace("uses >= 1000 ", "uses >= 12 ")
    owner.execute(few.encode())
    row = owner.execute("select pg_get_functiondef('tokenlib.top_usage'::regproc)").fetchone()
    assert row is not None
    assert "p_limit + 100;" in row[0]  # of a small test that would be everybody
    owner.execute(row[0].replace("p_limit + 100;", "p_limit;").encode())


def windows(chance: Random) -> Iterator[tuple[datetime, datetime]]:
    """The rolling ones, those before them, and any."""
    for days in (1, 7, 30, 90):
        yield NOW - days * DAY, NOW
        yield NOW - 2 * days * DAY, NOW - days * DAY
    for _ in range(3):
        first, last = sorted(chance.random() * 125 for _ in range(2))
        yield NOW - last * DAY, NOW - first * DAY
    day = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    yield day - 6 * DAY, day + DAY


def answers(
    reports: Reports, chance: Random, people: dict[UUID, list[UUID]]
) -> dict[tuple[str, datetime, datetime, str], Any]:
    found = {}
    for since, until in windows(chance):
        zone = chance.choice(ZONES)
        for name in chance.sample(list(QUESTIONS), len(QUESTIONS) // 3):
            found[name, since, until, zone] = QUESTIONS[name](reports, since, until, zone)
        for name in chance.sample(list(OF_ONE), len(OF_ONE) // 2):
            one = chance.choice(list(people))
            answer = OF_ONE[name](reports, since, until, zone, one)
            found[f"{name} of {one}", since, until, zone] = answer
        for name, who in OF_A_PERSON.items():
            one = chance.choice(list(people)[:3])
            for person in people[one]:
                found[f"{name}, {person}", since, until, zone] = who(
                    reports, since, until, one, person
                )
    return found


def test_the_rollups_answer_what_the_log_answers(
    tokens: Tokens,
    token_clock: TestClock,
    history: History,
    chance: Random,
    owner: psycopg.Connection,
) -> None:
    reports = Reports(tokens.database)
    history.write(NOW - 125 * DAY, NOW - 40 * DAY, 500)
    token_clock.set(NOW - 40 * DAY)
    tokens.close_usage()
    tokens.close_usage()
    # Step by step, as a server does; then a night in which nobody closed.
    for back in (39.9, 39.5, 30, 5, 4.9, 4.8):
        row = owner.execute("select tokenlib.clock()").fetchone()
        assert row is not None
        before, after = row[0], NOW - back * DAY
        history.write(before, after, 60)
        history.change_plans(1)
        token_clock.set(after)
        tokens.close_usage()
        tokens.close_usage()
    history.write(NOW - 4.8 * DAY, NOW, 150)
    token_clock.set(NOW - chance.choice((0, 1, 100)) * timedelta(minutes=4))
    tokens.close_usage()
    closed = tokens.close_usage()
    token_clock.set(NOW)
    assert closed is not None
    assert NOW - closed < timedelta(hours=8)
    history.write(NOW - timedelta(minutes=1), NOW, 5)
    history.change_plans(chance.randrange(3))
    for kept in (
        "plan is not null",
        "user_id is null and plan is null",
        f"user_id = '{UUID(int=0)}'",
        f"user_id <> '{UUID(int=0)}'",
    ):
        assert owner.execute(f"select 1 from ai_token_usage_kept where {kept}").fetchone()  # noqa: S608
    # What is kept of an organization that is gone stands in nobody's way.
    owner.execute("delete from user_profiles where organization_id = %s", history.organizations[:1])
    owner.execute("delete from organizations where id = %s", history.organizations[:1])

    seed = chance.random()
    rolled = answers(reports, Random(seed), history.people)
    tables = contents(owner)
    owner.execute("select tokenlib.forget_usage()")
    plain = answers(Plain(tokens.database), Random(seed), history.people)
    assert rolled.keys() == plain.keys()
    assert answers(reports, Random(seed), history.people) == plain
    assert any(page.total for (name, *_), page in plain.items() if name == "run_outs")
    for asked, answer in plain.items():
        assert rolled[asked] == answer, asked
    # Made anew from the log they are the same, down to the row.
    token_clock.set(closed + timedelta(minutes=1))
    assert tokens.close_usage(anew=True) == closed
    assert contents(owner) == tables
    assert owner.execute(
        "select count(*) from tokenlib.sum_wallets(null) as w full join ai_token_wallet_sums as s"
        " on s = w where s.organization_id is null or w.organization_id is null"
    ).fetchone() == (0,)


def contents(owner: psycopg.Connection) -> dict[str, list[Any]]:
    """Every rollup of the past, but organizations that are not kept any more."""
    return {
        table: owner.execute(
            f"select {columns} from ai_token_{table} {where} order by {key}".encode()  # noqa: S608
        ).fetchall()
        for table, columns, where, key in (
            (
                "usage_sums",
                "*",
                "where organization_id = '00000000-0000-0000-0000-000000000000'",
                "2, 3, 4",
            ),
            ("usage_kept", "scope, plan", "where plan is not null", "1"),
            ("usage_windows", "*", "", "1, 2, 3"),
            ("usage_pace", "organization_id, token_type, tokens", "", "1, 2"),
            (
                "usage_costs",
                "organization_id, token_type, feature, units, tokens, period_units, lowest",
                "",
                "1, 2, 3",
            ),
            (
                "usage_cost_sums",
                "feature, sum(organizations), sum(units), sum(tokens)",
                "group by 1",
                "1",
            ),
            ("usage_days", "*", "", "1, 2"),
            ("usage_active", "*", "where change <> 0", "1, 2"),
            ("refusal_sums", "*", "", "1"),
            (
                "refusal_windows",
                (
                    "days, organization_id, user_id, insufficient_tokens, feature_not_in_plan,"
                    " rate_limited, last_at, case when insufficient_tokens + feature_not_in_plan"
                    " > 0 then plan_last_at end"
                ),
                "",
                "1, 2, 3",
            ),
            ("refusal_rules", "*", "", "1, 2"),
            ("refusal_seen", "*", IN_90_DAYS, "1, 2, 3"),
        )
    }


def test_without_a_closing_the_log_is_asked(tokens: Tokens, history: History) -> None:
    history.write(NOW - 3 * DAY, NOW, 30)
    assert Reports(tokens.database).usage_totals(NOW - 7 * DAY, NOW).uses == 30


def test_a_day_at_a_time_leads_to_the_same(
    tokens: Tokens, token_clock: TestClock, history: History, owner: psycopg.Connection
) -> None:
    history.write(NOW - 20 * DAY, NOW, 200)
    token_clock.set(NOW)
    tokens.close_usage()
    seen: list[datetime] = []
    closed = tokens.close_usage(progress=seen.append)
    assert len(seen) == 20
    assert seen[-1] == closed
    assert tokens.close_usage() == closed


def test_who_is_at_it_is_not_disturbed(
    tokens: Tokens, token_clock: TestClock, history: History, token_database: TestDatabase
) -> None:
    token_clock.set(NOW)
    with token_database.connect() as other, other.transaction():
        other.execute("select tokenlib.close_usage('1 day')")
        assert tokens.close_usage() is None


def test_making_them_anew_keeps_what_was_archived(
    tokens: Tokens, token_clock: TestClock, history: History, owner: psycopg.Connection
) -> None:
    reports = Reports(tokens.database)
    history.write(NOW - 120 * DAY, NOW, 300)
    token_clock.set(NOW)
    tokens.close_usage()
    tokens.close_usage()
    windows = [(NOW - days * DAY, NOW - 3 * STEP) for days in (119, 96, 92, 30)]
    before = [reports.usage_by_feature(since, until) for since, until in windows]
    last = NOW - 95 * DAY
    owner.execute("alter table ai_token_usage_log disable trigger append_only")
    gone = owner.execute("delete from ai_token_usage_log where created_at <= %s", [last]).rowcount
    assert gone > 20
    owner.execute(
        "insert into ai_token_events (organization_id, token_type, number, after_log, kind,"
        " balance_after, effective_at, created_at, actor, data, hash_version, hash)"
        " values (%s, 'general', 9999, 0, 'archived', 0, now(), now(), 'A test',"
        " jsonb_build_object('last_at', tokenlib.utc(%s)), 1, '')",
        (history.organizations[0], last),
    )
    assert reports.rollup_differences() == []
    tokens.close_usage(anew=True)
    for window, answer in zip(windows, before, strict=True):
        edge = window[0] < last  # the rows at its edge lie in the archive
        found = reports.usage_by_feature(*window)
        assert edge or found == answer
    aligned = (NOW - 119 * DAY).replace(minute=0, second=0, microsecond=0)
    kept = sum(row.uses for row in reports.usage_by_feature(aligned, NOW))
    assert kept > sum(row.uses for row in before[1])
    assert reports.rollup_differences() == []


@pytest.mark.parametrize("chance", [0], indirect=True)
def test_others_come_first_when_the_first_have_left_the_window(
    tokens: Tokens, token_clock: TestClock, history: History, owner: psycopg.Connection
) -> None:
    gone, stays = history.organizations[:2]
    for one, cost, at in (
        (gone, 9, NOW - DAY - timedelta(minutes=1)),
        (stays, 5, NOW - timedelta(hours=2)),
    ):
        owner.execute(
            "insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used,"
            " tokens_deducted, tokens_waived, remaining_balance, created_at)"
            " values (%s, %s, 'general', 'generate_goal', %s, 0, 0, %s)",
            (one, history.people[one][0], cost, at),
        )
    token_clock.set(NOW - timedelta(minutes=1))
    tokens.close_usage()
    assert tokens.close_usage() == NOW.replace(minute=15, second=0, microsecond=0)
    reports = Reports(tokens.database)
    [row] = reports.top_organizations(NOW - DAY, NOW, 1)
    assert (row.organization_id, row.tokens) == (stays, 5)
    [user] = reports.top_users(NOW - DAY, NOW, 1)
    assert (user.user_id, user.tokens) == (history.people[stays][0], 5)
