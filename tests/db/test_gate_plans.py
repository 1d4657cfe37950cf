"""What a wallet is given: initialize, plan changes that never refill, refreshes, adoption."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import (
    FeatureNotInPlan,
    PlanMismatch,
    Tokens,
    UnknownOrganization,
    UnknownPlan,
)
from tokenlib.testing import TestClock, TestDatabase

Person = tuple[UUID, UUID]
Join = Callable[[str], Person]

pytestmark = pytest.mark.usefixtures("books_close")

GOAL = "goal_generation"
DAY = timedelta(days=1)


def figures(tokens: Tokens, person: Person, token_type: str = GOAL) -> tuple[int, int, int]:
    """Balance, reserved, used."""
    wallet = tokens.get_token_balance(person[0], token_type)
    assert wallet.total_allocated == wallet.balance + wallet.reserved + wallet.total_used
    return wallet.balance, wallet.reserved, wallet.total_used


def bare_organization(owner: psycopg.Connection, plan: str) -> UUID:
    """An organization that its own product wrote; tokenlib has not seen it yet."""
    organization = uuid4()
    owner.execute(
        "insert into organizations (id, name, plan) values (%s, 'Acme', %s)", (organization, plan)
    )
    return organization


@pytest.mark.parametrize(
    ("plan", "allowances"),
    [
        ("starter", [0, 0, 0, 0, 0]),
        ("pro", [50, 20, 100, 30, 50]),
        ("enterprise", [500, 200, 1000, 200, 500]),
    ],
)
def test_initialize_makes_five_wallets_and_is_safe_to_call_twice(
    tokens: Tokens, owner: psycopg.Connection, plan: str, allowances: list[int]
) -> None:
    organization = bare_organization(owner, plan)
    assert tokens.organizations_to_initialize() == [organization]
    assert tokens.initialize_tokens(organization, plan, dry_run=True) == 5
    assert owner.execute("select count(*) from ai_tokens").fetchone() == (0,)
    assert tokens.initialize_tokens(organization, plan) == 5
    assert tokens.initialize_tokens(organization) == 0
    assert tokens.organizations_to_initialize() == []
    wallets = tokens.get_all_token_balances(organization)
    assert [wallet.balance for wallet in wallets] == allowances
    assert [wallet.total_allocated for wallet in wallets] == allowances


def test_initialize_says_when_the_plan_is_another(
    tokens: Tokens, owner: psycopg.Connection, pro: Person
) -> None:
    with pytest.raises(PlanMismatch) as mismatch:
        tokens.initialize_tokens(pro[0], "enterprise")
    assert (mismatch.value.plan, mismatch.value.asked) == ("pro", "enterprise")
    with pytest.raises(UnknownPlan, match="starter, pro, enterprise"):
        tokens.initialize_tokens(pro[0], "gold")
    with pytest.raises(UnknownOrganization):
        tokens.initialize_tokens(uuid4())


def test_a_plan_change_never_refills(tokens: Tokens, noon: datetime, pro: Person) -> None:
    tokens.deduct_tokens(*pro, "generate_goal", 5)
    seen = []
    for plan in ("enterprise", "pro", "starter", "pro", "starter", "enterprise", "pro"):
        tokens.change_plan(pro[0], plan, actor="billing")
        seen.append(figures(tokens, pro))
    assert seen == [
        (185, 0, 15),
        (5, 0, 15),
        (0, 0, 15),
        (5, 0, 15),
        (0, 0, 15),
        (185, 0, 15),
        (5, 0, 15),
    ]
    assert tokens.get_token_balance(pro[0], GOAL).refresh_date == noon + 30 * DAY


def test_a_plan_change_is_never_negative_and_counts_what_was_used(
    tokens: Tokens, noon: datetime, join: Join, token_clock: TestClock
) -> None:
    person = join("enterprise")
    tokens.deduct_tokens(*person, "generate_goal", 50)
    tokens.change_plan(person[0], "pro")
    assert figures(tokens, person) == (0, 0, 150)
    tokens.change_plan(person[0], "enterprise")
    assert figures(tokens, person) == (50, 0, 150)
    tokens.change_plan(person[0], "pro")
    token_clock.set(noon + 30 * DAY)
    assert figures(tokens, person) == (20, 0, 0)


def test_a_plan_change_around_a_hold(tokens: Tokens, join: Join) -> None:
    person = join("enterprise")
    tokens.deduct_tokens(*person, "generate_goal", 5)
    held = tokens.reserve(*person, "generate_goal", 4)
    tokens.change_plan(person[0], "pro")
    assert figures(tokens, person) == (0, 12, 15)
    tokens.release(held)
    # Had the hold never been: 20 less 15.
    assert figures(tokens, person) == (5, 0, 15)


def test_a_plan_change_is_on_record(
    tokens: Tokens, noon: datetime, pro: Person, owner: psycopg.Connection
) -> None:
    tokens.change_plan(pro[0], "enterprise", actor="billing", reason="invoice 12")
    tokens.change_plan(pro[0], "enterprise", actor="billing", reason="again")
    assert owner.execute("select plan from organizations").fetchall() == [("enterprise",)]
    changes = owner.execute(
        "select organization_id, action, actor, reason, before, after from ai_token_changes"
    ).fetchall()
    before, after = {"plan": "pro"}, {"plan": "enterprise"}
    assert changes == [(pro[0], "change_plan", "billing", "invoice 12", before, after)]
    entries = owner.execute(
        "select actor, reason, data, count(*)::int from ai_token_events"
        " where kind = 'plan_change' group by 1, 2, 3"
    ).fetchall()
    assert [entry[:2] for entry in entries] == [("billing", "invoice 12")] * len(entries)
    changed = {"from": "pro", "to": "enterprise"}
    assert {entry[2].pop("allowance"): entry[3] for entry in entries} == {200: 2, 500: 2, 1000: 1}
    assert [entry[2] for entry in entries] == [changed] * len(entries)


def test_a_plan_that_is_not_there(tokens: Tokens, pro: Person) -> None:
    with pytest.raises(UnknownPlan, match="starter, pro, enterprise"):
        tokens.change_plan(pro[0], "gold")
    with pytest.raises(UnknownOrganization):
        tokens.change_plan(uuid4(), "pro")
    assert figures(tokens, pro) == (20, 0, 0)


def test_a_plan_edited_from_outside_applies_at_the_next_touch(
    tokens: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal")
    owner.execute("update organizations set plan = 'enterprise' where id = %s", (pro[0],))
    assert tokens.deduct_tokens(*pro, "generate_goal", 20).remaining_balance == 137
    owner.execute("update organizations set plan = 'starter' where id = %s", (pro[0],))
    with pytest.raises(FeatureNotInPlan):
        tokens.deduct_tokens(*pro, "generate_goal")
    assert figures(tokens, pro) == (0, 0, 63)
    assert [w.balance for w in tokens.get_all_token_balances(pro[0])] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("plan", [None, "gold"])
def test_a_plan_from_outside_that_the_catalog_lacks_gives_nothing(
    tokens: Tokens, pro: Person, owner: psycopg.Connection, plan: str | None
) -> None:
    # A host table of another product may allow more than ours does.
    owner.execute("alter table organizations drop constraint plan_known")
    owner.execute("alter table organizations alter column plan drop not null")
    owner.execute("update organizations set plan = %s where id = %s", (plan, pro[0]))
    with pytest.raises(FeatureNotInPlan):
        tokens.deduct_tokens(*pro, "generate_goal")
    tokens.change_plan(pro[0], "pro")
    assert figures(tokens, pro) == (20, 0, 0)


def test_a_refresh_ends_the_period(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal", 4)
    token_clock.set(noon + 30 * DAY - timedelta(microseconds=1))
    assert figures(tokens, pro) == (8, 0, 12)
    token_clock.set(noon + 30 * DAY)
    # No rollover: the next period starts with its allowance.
    assert figures(tokens, pro) == (20, 0, 0)
    wallet = tokens.get_token_balance(pro[0], GOAL)
    assert (wallet.period_start, wallet.refresh_date) == (noon + 30 * DAY, noon + 60 * DAY)


def test_a_refresh_skips_idle_periods_in_one_step(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock, owner: psycopg.Connection
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal", 4)
    token_clock.set(noon + 200 * DAY)
    assert tokens.refresh_tokens(pro[0]) == 5
    assert tokens.refresh_tokens(pro[0]) == 0
    wallet = tokens.get_token_balance(pro[0], GOAL)
    assert (wallet.period_start, wallet.refresh_date) == (noon + 180 * DAY, noon + 210 * DAY)
    entries = owner.execute(
        "select balance_change, used_change, effective_at, data from ai_token_events"
        " where kind = 'refresh' and token_type = 'goal_generation'"
    ).fetchall()
    begins, ends = (f"{noon + days * DAY:%Y-%m-%dT%H:%M:%S.%fZ}" for days in (180, 210))
    data = {"lapsed": 8, "granted": 20, "periods": 6, "allowance": 20}
    period = {"period_start": begins, "refresh_date": ends}
    assert entries == [(12, -12, noon + 30 * DAY, data | period)]


def test_refresh_brings_every_due_wallet_up_to_date_once(
    tokens: Tokens, noon: datetime, join: Join, token_clock: TestClock, owner: psycopg.Connection
) -> None:
    people = [join("pro") for _ in range(3)]
    token_clock.set(noon + 10 * DAY)
    late = join("pro")
    token_clock.set(noon + 31 * DAY)
    with ThreadPoolExecutor(8) as threads:
        counts = list(threads.map(lambda _: tokens.refresh_tokens(), range(8)))
    # Whoever finds a wallet locked leaves it to the one who holds it.
    assert sum(counts) == 15
    refreshes = owner.execute(
        "select organization_id, count(*)::int from ai_token_events where kind = 'refresh'"
        " group by 1"
    ).fetchall()
    assert dict(refreshes) == {organization: 5 for organization, _ in people}
    assert tokens.get_token_balance(late[0], GOAL).refresh_date == noon + 40 * DAY


def test_refreshing_an_organization_that_is_not_there(tokens: Tokens, pro: Person) -> None:
    with pytest.raises(UnknownOrganization):
        tokens.refresh_tokens(uuid4())


def test_a_period_has_thirty_days_whatever_the_session_s_time_zone(
    tokens: Tokens,
    token_database: TestDatabase,
    token_clock: TestClock,
) -> None:
    spring = datetime(2026, 3, 20, 12, tzinfo=UTC)  # clocks in Berlin change on 29 March
    token_clock.set(spring)
    organization = tokens.create_organization("Acme", "pro")
    token_clock.set(spring + 31 * DAY)
    with token_database.connect("tokenlib_service") as berlin:
        berlin.execute("set timezone = 'Europe/Berlin'")
        assert berlin.execute("select tokenlib.refresh(null, 100)").fetchone() == (5,)
    wallet = tokens.get_token_balance(organization, GOAL)
    assert (wallet.period_start, wallet.refresh_date) == (spring + 30 * DAY, spring + 60 * DAY)


SET_UP_SCRIPT = """
insert into ai_tokens (organization_id, token_type, balance, total_allocated, refresh_date)
select o.id, 'lead_generation', 50, 50, now() + interval '30 days'
from organizations o where o.plan = 'pro'
union all
select o.id, 'goal_generation', 20, 20, now() + interval '30 days'
from organizations o where o.plan = 'pro'
"""


@pytest.mark.one_node
def test_wallets_of_the_old_set_up_script_are_taken_in_at_the_first_touch(
    tokens: Tokens, owner: psycopg.Connection
) -> None:
    organization = bare_organization(owner, "pro")
    owner.execute(SET_UP_SCRIPT)
    user = tokens.add_member(organization, "A member", "member@example.org")
    assert tokens.deduct_tokens(organization, user, "generate_goal").remaining_balance == 17
    assert [w.balance for w in tokens.get_all_token_balances(organization)] == [50, 17, 100, 30, 50]
    openings = owner.execute(
        "select token_type, reason, balance_after from ai_token_events where kind = 'opening'"
        " order by token_type"
    ).fetchall()
    assert openings == [
        ("forecast", "opened on plan pro", 30),
        ("general", "opened on plan pro", 50),
        ("goal_generation", "adopted as found", 20),
        ("lead_generation", "adopted as found", 50),
        ("strategy_analysis", "opened on plan pro", 100),
    ]
    assert owner.execute("select count(*) from ai_token_findings").fetchone() == (0,)


def test_an_adopted_balance_is_kept_and_what_was_wrong_is_found(
    tokens: Tokens, noon: datetime, owner: psycopg.Connection, token_clock: TestClock
) -> None:
    organization = bare_organization(owner, "pro")
    owner.execute(
        "insert into ai_tokens (organization_id, token_type, balance, total_allocated, total_used,"
        " refresh_date) values (%s, 'goal_generation', 9999, 10005, 6, %s)",
        (organization, noon + 10 * DAY),
    )
    owner.execute(
        "insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used,"
        " tokens_deducted, remaining_balance, created_at)"
        " values (%s, %s, 'goal_generation', 'generate_goal', 3, 17, %s)",
        (organization, uuid4(), noon - DAY),
    )
    wallet = tokens.get_token_balance(organization, GOAL)
    assert (wallet.balance, wallet.total_used, wallet.total_allocated) == (9999, 6, 10005)
    found = owner.execute("select id, kind from ai_token_findings order by kind").fetchall()
    assert [kind for _, kind in found] == [
        "emergency_balance",
        "log_of_deleted_users",
        "used_differs_from_log",
    ]
    tokens.settle_finding(organization, found[0][0], actor="support", reason="kept as a gift")
    settled = owner.execute(
        "select kind, settled_by, settlement from ai_token_findings where settled_at is not null"
    ).fetchall()
    assert settled == [("emergency_balance", "support", "kept as a gift")]
    # Beyond the allowance it is the customer's own and stays: 20 - 6 lapse, 20 come.
    token_clock.set(noon + 10 * DAY)
    assert figures(tokens, (organization, uuid4())) == (9999 - 14 + 20, 0, 0)
