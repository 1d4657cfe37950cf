"""The balance as a story: its sums close after any history, and it knows every past moment."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.db.conftest import Person
from tokenlib import Balance, InvalidInput, Refused, Tokens
from tokenlib.domain import Reservation, Usage
from tokenlib.errors import AlreadyRefunded, NothingToRefund, ReservationOver
from tokenlib.reports import Reports, Viewer
from tokenlib.reports.explain import Story
from tokenlib.testing import TestClock

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
TYPES = ("goal_generation", "general", "shared")
STEPS = 70


def told(tokens: Tokens, organization: UUID, token_type: str, at: datetime | None = None) -> Story:
    story = Reports(tokens.database).explain(organization, token_type, at)
    assert story is not None
    assert story.closes, story
    return story


def figures(story: Story) -> tuple[int, int, int, datetime]:
    return story.balance, story.held, story.used, story.refresh_date


def stored(wallet: Balance) -> tuple[int, int, int, datetime]:
    return wallet.balance, wallet.reserved, wallet.total_used, wallet.refresh_date


def sums(story: Story) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in story.lines:
        found[line.kind] = found.get(line.kind, 0) + line.tokens
    return found


@dataclass
class History:
    """Random verbs on one organization, with the clock moved between them."""

    tokens: Tokens
    clock: TestClock
    chance: random.Random
    organization: UUID
    member: UUID

    def __post_init__(self) -> None:
        self.now = START
        self.holds: list[Reservation] = []
        self.usages: list[Usage] = []

    def step(self) -> None:
        verb = self.chance.choice(
            ["use", "use", "use", "hold", "hold", "end", "end", "refund", "grant", "plan", "wait"]
        )
        # The story must close after a refusal as well.
        with suppress(Refused, ReservationOver, AlreadyRefunded, NothingToRefund):
            getattr(self, f"_{verb}")()

    def _request(self) -> tuple[UUID, UUID, str, int]:
        feature = self.chance.choice(["generate_goal", "generate_insight", "analyze_efficiency"])
        return self.organization, self.member, feature, self.chance.randint(1, 5)

    def _use(self) -> None:
        self.usages.append(self.tokens.deduct_tokens(*self._request()))

    def _hold(self) -> None:
        life = timedelta(minutes=self.chance.choice([5, 60, 1440]))
        self.holds.append(self.tokens.reserve(*self._request(), hold_for=life))

    def _end(self) -> None:
        if self.holds:
            held = self.holds.pop(self.chance.randrange(len(self.holds)))
            if self.chance.random() < 0.4:
                self.tokens.release(held)
            else:
                units = self.chance.randint(1, held.units)
                self.usages.append(self.tokens.deduct(held, units))

    def _refund(self) -> None:
        if self.usages:
            self.tokens.refund(self.chance.choice(self.usages), "a test")

    def _grant(self) -> None:
        start = self.now + timedelta(days=self.chance.choice([0, 0, 2]))
        end = self.chance.choice([None, start + timedelta(days=self.chance.randint(1, 40))])
        self.tokens.grant(
            self.organization,
            self.chance.choice(TYPES),
            self.chance.randint(1, 30),
            effective_at=start,
            expires_at=end,
        )

    def _plan(self) -> None:
        plan = self.chance.choice(["starter", "pro", "enterprise"])
        self.tokens.change_plan(self.organization, plan, actor="tests", reason="a test")

    def _wait(self) -> None:
        self.pass_time(timedelta(hours=self.chance.choice([1, 20, 24 * 5, 24 * 35])))

    def pass_time(self, step: timedelta) -> None:
        self.now += step
        self.clock.set(self.now)


@pytest.fixture
def history(tokens: Tokens, token_clock: TestClock, request: Any) -> History:
    token_clock.set(START)
    organization = tokens.create_organization("Acme", "pro")
    member = tokens.add_member(organization, "A member", "member@example.org")
    return History(tokens, token_clock, random.Random(request.param), organization, member)  # noqa: S311


THOROUGHLY = [pytest.param(seed, marks=pytest.mark.thorough) for seed in (1, 2, 3)]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("history", [0, *THOROUGHLY], indirect=True)
def test_after_any_history_the_sums_close_and_every_past_moment_is_known(
    history: History, owner: psycopg.Connection, kept: bool
) -> None:
    """Also where its charges are told from the rollups."""
    tokens, organization = history.tokens, history.organization
    if kept:
        owner.execute(
            "insert into ai_token_usage_kept (scope, organization_id, closed_to)"
            " values (%s, %s, %s)",
            (organization, organization, START),
        )
    seen: list[tuple[datetime, dict[str, tuple[int, int, int, datetime]]]] = []
    for _ in range(STEPS):
        history.step()
        if kept and history.chance.random() < 0.3:
            tokens.close_usage()
        wallets = tokens.get_token_stats(organization).by_type
        now = {
            wallet.token_type: stored(wallet) for wallet in wallets if wallet.token_type in TYPES
        }
        assert {one: figures(told(tokens, organization, one)) for one in now} == now
        seen.append((history.now, now))
        history.pass_time(TICK)

    # Every moment that was seen, asked about at the end.
    for moment, then in seen[:: max(1, STEPS // 25)] + seen[-1:]:
        found = {one: figures(told(tokens, organization, one, moment)) for one in then}
        assert found == then, moment
        for one in set(TYPES) - set(then):
            assert Reports(tokens.database).explain(organization, one, moment) is None

    # Every charge left the balance that the log says.
    rows = owner.execute(
        "select token_type, created_at, remaining_balance from ai_token_usage_log"
        " where organization_id = %s and tokens_deducted > 0 order by random() limit 20",
        [organization],
    ).fetchall()
    assert rows
    for token_type, moment, balance in rows:
        assert told(tokens, organization, token_type, moment).balance == balance
    assert tokens.verify().closed
    if kept:
        row = owner.execute(
            "select closed_to from ai_token_usage_kept where plan is null"
        ).fetchone()
        assert row is not None
        assert row[0] > START + timedelta(days=10)


def test_the_movements_of_a_period_are_told_by_kind(
    tokens: Tokens, noon: datetime, token_clock: TestClock, pro: Person
) -> None:
    organization, member = pro
    reports = Reports(tokens.database)
    one = tokens.deduct_tokens(organization, member, "generate_insight", 3)
    tokens.deduct_tokens(organization, member, "generate_insight", 4)
    tokens.deduct_tokens(organization, member, "analyze_efficiency", 5)
    tokens.refund(one, "a mistake")
    tokens.grant(organization, "general", 20, kind="purchase", expires_at=noon + timedelta(days=9))
    kept = tokens.reserve(organization, member, "analyze_efficiency", 6)
    tokens.deduct(kept, 2)
    tokens.reserve(organization, member, "generate_insight", 2)

    story = told(tokens, organization, "general")
    assert (story.opened_by, story.opened_at, story.opening) == ("opening", noon, 50)
    assert [(line.label, line.count, line.tokens) for line in story.lines] == [
        ("granted as purchase", 1, 20),
        ("given back for generate_insight", 1, 3),
        ("used for generate_insight", 2, -7),
        ("used for analyze_efficiency", 2, -14),
    ]
    assert (story.holds, story.held, story.balance, story.used) == (1, 2, 50, 18)
    assert story.allocated == 70
    assert not story.refresh_due
    assert reports.explain(organization, "shared") is None

    token_clock.advance(timedelta(days=30))  # the hold and the purchase end, then the period
    due = told(tokens, organization, "general")
    assert due.refresh_due
    assert due.balance == story.balance
    tokens.refresh_tokens(organization)
    after = told(tokens, organization, "general")
    assert (after.opened_by, after.opened_at) == ("refresh", noon + timedelta(days=30))
    assert (after.opening, after.lines, after.balance) == (50, (), 50)


def test_what_fell_due_unseen_counts_from_its_own_time(
    tokens: Tokens, noon: datetime, token_clock: TestClock, pro: Person
) -> None:
    organization, member = pro
    hour, day = timedelta(hours=1), timedelta(days=1)
    tokens.grant(organization, "general", 10, effective_at=noon + day, expires_at=noon + 2 * day)
    tokens.deduct_tokens(organization, member, "generate_insight", 4)
    tokens.reserve(organization, member, "generate_insight", 5, hold_for=hour)
    token_clock.advance(100 * day)  # nobody touches the wallet: three refreshes fall due
    tokens.refresh_tokens(organization)

    def balance(at: datetime) -> tuple[int, int]:
        story = told(tokens, organization, "general", at)
        return story.balance, story.held

    assert balance(noon) == (41, 5)
    assert balance(noon + hour - TICK) == (41, 5)
    assert balance(noon + hour) == (46, 0)
    assert balance(noon + day - TICK) == (46, 0)
    assert balance(noon + day) == (56, 0)
    assert balance(noon + 2 * day - TICK) == (56, 0)
    assert balance(noon + 2 * day) == (46, 0)  # what was used came off the gift: it expires first
    for days in (30, 59, 60, 95):
        story = told(tokens, organization, "general", noon + days * day)
        begun = noon + days // 30 * 30 * day
        assert (story.balance, story.opening) == (50, 50)
        assert (story.opened_at, story.refresh_date) == (begun, begun + 30 * day)
    before = told(tokens, organization, "general", noon + 30 * day - TICK)
    assert (before.opened_by, before.refresh_date) == ("opening", noon + 30 * day)


def test_waived_charges_and_top_ups_are_told(
    tokens: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    organization, member = pro
    owner.execute(
        "insert into ai_token_organization_allowances values (%s, 'general', null)", [organization]
    )
    owner.execute("update organizations set plan = 'enterprise' where id = %s", [organization])
    for _ in range(3):
        tokens.deduct_tokens(organization, member, "generate_insight", 400)
    tokens.set_mode("off", organization, actor="tests", reason="a test")
    tokens.deduct_tokens(organization, member, "generate_insight", 7)
    story = told(tokens, organization, "general")
    assert story.unlimited
    assert sums(story)["charge"] == -1200
    assert sums(story)["top_up"] == 1000
    (used,) = [line for line in story.lines if line.kind == "charge"]
    assert (used.count, used.waived) == (4, 7)


def test_a_hold_whose_grant_expired_gives_back_less(
    tokens: Tokens, noon: datetime, token_clock: TestClock, pro: Person
) -> None:
    organization, member = pro
    hour = timedelta(hours=1)
    tokens.grant(organization, "goal_generation", 9, expires_at=noon + hour)
    held = tokens.reserve(organization, member, "generate_goal", 4, hold_for=4 * hour)
    token_clock.advance(2 * hour)
    tokens.release(held)
    story = told(tokens, organization, "goal_generation")
    assert sums(story) == {"grant": 9, "grant_expired": 0, "hold_lapsed": -9}
    assert (story.balance, story.held) == (20, 0)


def test_a_hold_over_the_end_of_a_period_is_part_of_the_next_opening(
    tokens: Tokens, noon: datetime, token_clock: TestClock, pro: Person
) -> None:
    hour, month = timedelta(hours=1), timedelta(days=30)
    token_clock.set(noon + month - hour)
    held = tokens.reserve(*pro, "generate_goal", 2, hold_for=5 * hour)
    token_clock.set(noon + month + hour)
    tokens.refresh_tokens(pro[0])
    story = told(tokens, pro[0], "goal_generation")
    assert (story.opening, story.held, story.holds, story.balance) == (26, 6, 1, 20)
    token_clock.set(noon + month + 2 * hour)
    tokens.deduct(held, 1)
    after = told(tokens, pro[0], "goal_generation")
    # The hold's tokens were of the period before: the half that was not used is gone with it.
    assert sums(after) == {"charge": -3, "hold_lapsed": -3}
    assert (after.opening, after.held, after.balance) == (26, 0, 20)
    assert figures(told(tokens, pro[0], "goal_generation", noon + month + hour)) == figures(story)


def test_adopted_books_begin_with_what_was_found(
    tokens: Tokens, noon: datetime, pro: Person, owner: psycopg.Connection
) -> None:
    organization = uuid4()
    owner.execute(
        "insert into organizations (id, name, plan) values (%s, 'Old', 'pro')", [organization]
    )
    owner.execute(
        "insert into ai_tokens (organization_id, token_type, balance, total_allocated, total_used,"
        " refresh_date) values (%s, 'general', 35, 50, 15, %s)",
        [organization, noon + timedelta(days=10)],
    )
    assert Reports(tokens.database).explain(organization, "general") is None
    tokens.get_token_stats(organization)
    story = told(tokens, organization, "general")
    assert (story.opening, story.used, story.allocated) == (35, 15, 50)
    assert story.refresh_date == noon + timedelta(days=10)
    assert pro


# Who may ask -------------------------------------------------------------------------------------


@pytest.fixture
def people(pro: Person, tokens: Tokens, owner: psycopg.Connection) -> dict[str, Reports]:
    other = tokens.create_organization("Other", "pro")
    stranger = tokens.add_member(other, "Stranger", "stranger@example.org")
    staff = uuid4()
    owner.execute(
        "insert into tokenlib_staff (user_id, email, full_name, role)"
        " values (%s, 's@example.org', 'S', 'support')",
        [staff],
    )
    return {
        "staff": Reports(tokens.database, Viewer(staff, "tokenlib_reader")),
        "member": Reports(tokens.database, Viewer(pro[1], "authenticated")),
        "stranger": Reports(tokens.database, Viewer(stranger, "authenticated")),
        "no staff": Reports(tokens.database, Viewer(uuid4(), "tokenlib_reader")),
    }


def test_a_story_is_told_to_its_own_people_and_staff(
    people: dict[str, Reports], pro: Person, tokens: Tokens
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal")
    stories = {who: reports.explain(pro[0], "goal_generation") for who, reports in people.items()}
    assert stories["stranger"] is None
    assert stories["no staff"] is None
    for who in ("staff", "member"):
        story = stories[who]
        assert story is not None
        assert (story.balance, sums(story)) == (17, {"charge": -3})


def test_a_moment_needs_a_zone(tokens: Tokens, pro: Person) -> None:
    with pytest.raises(InvalidInput, match="at must have a time zone"):
        Reports(tokens.database).explain(pro[0], "general", datetime(2026, 3, 1))  # noqa: DTZ001


# Grants ------------------------------------------------------------------------------------------


def test_what_is_left_of_each_grant_counts_what_waits_to_be_drawn(
    tokens: Tokens, noon: datetime, token_clock: TestClock, pro: Person
) -> None:
    organization, member = pro
    reports = Reports(tokens.database)
    tokens.grant(organization, "general", 10, expires_at=noon + timedelta(days=2), reason="sorry")
    tokens.grant(organization, "general", 30, kind="purchase", actor="billing")
    tokens.grant(organization, "general", 5, effective_at=noon + timedelta(days=1))
    tokens.deduct_tokens(organization, member, "generate_insight", 14)
    tokens.reserve(organization, member, "generate_insight", 50)

    def left() -> list[tuple[str, int, str | None, str | None]]:
        rows = [row for row in reports.grants(organization) if row.token_type == "general"]
        return [(row.kind, row.remaining, row.actor, row.reason) for row in rows]

    assert left() == [
        ("gift", 0, "api", "sorry"),
        ("allowance", 0, None, None),
        ("purchase", 26, "billing", None),
        ("gift", 5, "api", None),
    ]
    balance = tokens.get_token_balance(organization, "general").balance
    assert balance == 26
    token_clock.advance(TICK)
    tokens.grant(organization, "general", 1)  # draws what waited: nothing that is left changes
    assert [row[1] for row in left()] == [0, 0, 26, 1, 5]


def test_closed_grants_come_after_the_open_ones(
    tokens: Tokens, noon: datetime, token_clock: TestClock, pro: Person
) -> None:
    tokens.grant(pro[0], "general", 10, expires_at=noon + timedelta(days=2))
    token_clock.advance(timedelta(days=3))
    tokens.refresh_tokens(pro[0])
    reports = Reports(tokens.database)
    assert all(row.closed_at is None for row in reports.grants(pro[0]))
    *_, last = reports.grants(pro[0], closed=True)
    assert (last.kind, last.remaining, last.closed_at) == ("gift", 0, noon + timedelta(days=3))
