"""Who may: payment states, pauses, the switch, abuse limits, and books that nobody edits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TypedDict
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import (
    FeatureNotInPlan,
    InsufficientTokens,
    InvalidInput,
    NotAMember,
    OrganizationPaused,
    PaymentFailed,
    RateLimited,
    Refused,
    TokenlibError,
    Tokens,
    UnknownFeature,
    UnknownOrganization,
    UserPaused,
)
from tokenlib.db import Database
from tokenlib.domain import Mode, OrganizationStatus
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase

Person = tuple[UUID, UUID]
Join = Callable[[str], Person]

pytestmark = pytest.mark.usefixtures("books_close")


class Who(TypedDict):
    actor: str
    reason: str


WHO: Who = {"actor": "an operator", "reason": "a drill"}


def figures(tokens: Tokens, person: Person) -> tuple[int, int]:
    """Balance, used."""
    wallet = tokens.get_token_balance(person[0], "goal_generation")
    return wallet.balance, wallet.total_used


# Payment states and pauses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("limited", PaymentFailed),
        ("expired", PaymentFailed),
        ("suspended", OrganizationPaused),
    ],
)
def test_a_status_stops_ai_and_keeps_the_balance(
    tokens: Tokens,
    pro: Person,
    owner: psycopg.Connection,
    status: OrganizationStatus,
    error: type[Refused],
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal")
    tokens.set_status(pro[0], status, **WHO)
    for verb in (tokens.deduct_tokens, tokens.reserve):
        with pytest.raises(error) as refused:
            verb(*pro, "generate_goal")
        assert type(refused.value) is error
    assert tokens.can_use(*pro, "generate_goal").rule == error.rule
    assert figures(tokens, pro) == (17, 3)
    assert owner.execute("select rule, count from ai_token_refusals").fetchall() == [
        (error.rule, 2)
    ]
    tokens.set_status(pro[0], "active", **WHO)
    assert tokens.deduct_tokens(*pro, "generate_goal").remaining_balance == 14
    changes = owner.execute(
        "select action, actor, reason, before, after from ai_token_changes order by created_at"
    ).fetchall()
    assert changes == [
        ("set_status", *WHO.values(), {"status": "active"}, {"status": status}),
        ("set_status", *WHO.values(), {"status": status}, {"status": "active"}),
    ]


def test_one_user_can_be_paused_alone(tokens: Tokens, pro: Person) -> None:
    colleague = tokens.add_member(pro[0], "A colleague", "colleague@example.org")
    tokens.pause_user(*pro, **WHO)
    with pytest.raises(UserPaused) as refused:
        tokens.deduct_tokens(*pro, "generate_goal")
    assert refused.value.user_id == pro[1]
    tokens.deduct_tokens(pro[0], colleague, "generate_goal")
    tokens.pause_user(*pro, False, **WHO)
    assert tokens.deduct_tokens(*pro, "generate_goal").remaining_balance == 14
    with pytest.raises(NotAMember):
        tokens.pause_user(pro[0], uuid4(), **WHO)


def test_a_hold_from_before_a_pause_can_still_be_settled(tokens: Tokens, pro: Person) -> None:
    held = tokens.reserve(*pro, "generate_goal")
    tokens.set_status(pro[0], "limited", **WHO)
    assert tokens.deduct(held).remaining_balance == 17


# The switch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["everyone", "organization", "environment"])
@pytest.mark.parametrize("mode", ["log_only", "off"])
def test_the_switch_lets_charges_through_and_touches_no_balance(
    tokens: Tokens,
    token_database: TestDatabase,
    join: Join,
    pro: Person,
    owner: psycopg.Connection,
    mode: Mode,
    scope: str,
) -> None:
    starter = join("starter")
    with Tokens(
        Database(token_database.url()), mode if scope == "environment" else None
    ) as switched:
        if scope == "everyone":
            tokens.set_mode(mode, **WHO)
        elif scope == "organization":
            tokens.set_mode(mode, pro[0], **WHO)
            tokens.set_mode(mode, starter[0], **WHO)
        for person in (pro, starter):
            usage = switched.deduct_tokens(*person, "generate_goal", 9)
            assert (usage.tokens_deducted, usage.tokens_waived) == (0, 27)
            with switched.spend(*person, "generate_goal", 9) as held:
                assert held.tokens == 0
            assert switched.can_use(*person, "generate_goal").allowed
    assert figures(tokens, pro) == (20, 0)
    assert figures(tokens, starter) == (0, 0)
    log = owner.execute("select tokens_deducted, tokens_waived from ai_token_usage_log").fetchall()
    assert log == [(0, 27)] * 4
    # log_only records what the rules would have said; off asks no rule.
    rules = owner.execute("select rule, count, data ->> 'mode' from ai_token_refusals order by 1")
    assert rules.fetchall() == (
        [("feature_not_in_plan", 2, mode), ("insufficient_tokens", 2, mode)]
        if mode == "log_only"
        else []
    )


def test_the_organization_s_switch_wins_over_everyone_s_and_the_environment_over_both(
    tokens: Tokens, token_database: TestDatabase, pro: Person
) -> None:
    tokens.set_mode("off", **WHO)
    tokens.set_mode("enforce", pro[0], **WHO)
    assert tokens.deduct_tokens(*pro, "generate_goal").tokens_deducted == 3
    tokens.set_mode("off", pro[0], **WHO)
    with Tokens(Database(token_database.url()), "enforce") as strict:
        assert strict.deduct_tokens(*pro, "generate_goal").tokens_deducted == 3
    assert figures(tokens, pro) == (14, 6)


def test_the_switch_goes_back_by_itself(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock, owner: psycopg.Connection
) -> None:
    hour = timedelta(hours=1)
    tokens.set_mode("off", until=noon + hour, **WHO)
    tokens.set_mode("log_only", pro[0], until=noon + hour / 2, **WHO)
    waived = []
    for moment in (noon, noon + hour / 2, noon + hour):
        token_clock.set(moment)
        waived.append(tokens.deduct_tokens(*pro, "generate_goal").tokens_waived)
    assert waived == [3, 3, 0]
    changes = owner.execute(
        "select organization_id, actor, reason, after ->> 'mode' from ai_token_changes"
        " order by after ->> 'mode'"
    ).fetchall()
    assert changes == [(pro[0], *WHO.values(), "log_only"), (None, *WHO.values(), "off")]


def test_a_hold_that_was_waived_stays_waived(tokens: Tokens, pro: Person) -> None:
    tokens.set_mode("off", pro[0], **WHO)
    held = tokens.reserve(*pro, "generate_goal", 4)
    tokens.set_mode("enforce", pro[0], **WHO)
    usage = tokens.deduct(held, 1)
    assert (usage.tokens_deducted, usage.tokens_waived) == (0, 3)
    assert figures(tokens, pro) == (20, 0)


def test_no_switch_lets_a_stranger_through(tokens: Tokens, join: Join, pro: Person) -> None:
    tokens.set_mode("off", **WHO)
    with pytest.raises(NotAMember):
        tokens.deduct_tokens(pro[0], join("pro")[1], "generate_goal")


@pytest.mark.one_node
def test_the_operators_verbs_check_what_they_are_given(tokens: Tokens, pro: Person) -> None:
    with pytest.raises(InvalidInput, match="mode must be enforce, log_only or off"):
        tokens.set_mode("open", **WHO)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="reason must not be empty"):
        tokens.set_mode("off", actor="an operator", reason=" ")
    with pytest.raises(InvalidInput, match="status must be active"):
        tokens.set_status(pro[0], "broke", **WHO)  # type: ignore[arg-type]
    with pytest.raises(UnknownOrganization):
        tokens.set_status(uuid4(), "limited", **WHO)
    with pytest.raises(UnknownOrganization):
        tokens.set_mode("off", uuid4(), **WHO)
    assert tokens.deduct_tokens(*pro, "generate_goal").tokens_deducted == 3


# Abuse limits ------------------------------------------------------------------------------------


@pytest.fixture
def apart(noon: datetime, token_clock: TestClock) -> Callable[[float], None]:
    """Moves the clock by so many seconds."""
    return lambda seconds: token_clock.advance(timedelta(seconds=seconds))


def test_limits_are_off_unless_asked_for(tokens: Tokens, noon: datetime, join: Join) -> None:
    person = join("enterprise")
    for _ in range(35):
        tokens.deduct_tokens(*person, "generate_insight")
    assert tokens.deduct_tokens(*person, "generate_goal", 5).tokens_deducted == 15


def test_three_seconds_between_requests(
    tokens: Tokens, apart: Callable[[float], None], pro: Person
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal", limits=True)
    apart(2.5)
    for verb in (tokens.deduct_tokens, tokens.reserve):
        with pytest.raises(RateLimited) as refused:
            verb(*pro, "generate_goal", limits=True)
        assert refused.value.limit == "seconds_between_requests"
        assert refused.value.retry_after == 0.5
        assert "Try again in 1 s." in str(refused.value)
    verdict = tokens.can_use(*pro, "generate_goal", limits=True)
    assert (verdict.rule, verdict.retry_after) == ("rate_limited", 0.5)
    apart(0.5)
    with tokens.spend(*pro, "generate_goal", limits=True):
        pass
    # A colleague has limits of their own.
    colleague = tokens.add_member(pro[0], "A colleague", "colleague@example.org")
    tokens.deduct_tokens(pro[0], colleague, "generate_goal", limits=True)


def test_thirty_requests_a_minute(
    tokens: Tokens,
    apart: Callable[[float], None],
    join: Join,
    owner: psycopg.Connection,
) -> None:
    owner.execute("update ai_token_limits set seconds_between_requests = null")
    person = join("enterprise")
    for number in range(30):
        if number % 2:
            tokens.deduct_tokens(*person, "generate_insight", limits=True)
        else:  # a hold and its charge are one request
            with tokens.spend(*person, "generate_insight", limits=True):
                pass
        apart(1)
    with pytest.raises(RateLimited) as refused:
        tokens.deduct_tokens(*person, "generate_insight", limits=True)
    assert (refused.value.limit, refused.value.allowed) == ("requests_per_minute", 30)
    assert refused.value.retry_after == 30
    apart(30)
    tokens.deduct_tokens(*person, "generate_insight", limits=True)
    with pytest.raises(RateLimited):
        tokens.deduct_tokens(*person, "generate_insight", limits=True)


def test_ten_tokens_a_request(tokens: Tokens, apart: Callable[[float], None], join: Join) -> None:
    person = join("enterprise")
    assert tokens.deduct_tokens(*person, "generate_leads", 2, limits=True).tokens_deducted == 10
    apart(3)
    with pytest.raises(RateLimited) as refused:
        tokens.deduct_tokens(*person, "generate_goal", 4, limits=True)
    assert (refused.value.limit, refused.value.allowed) == ("tokens_per_request", 10)
    assert refused.value.retry_after is None


def test_two_thousand_output_units_a_request(
    tokens: Tokens, apart: Callable[[float], None], pro: Person, token_clock: TestClock
) -> None:
    """Known before the call, as the most that may come, or after it: refused either way."""
    large, most = {"output_units": 2_001}, {"output_units": 2_000}
    for verb in (tokens.deduct_tokens, tokens.reserve):
        with pytest.raises(RateLimited) as refused:
            verb(*pro, "generate_goal", metadata=large, limits=True)
        assert (refused.value.limit, refused.value.allowed) == ("output_units_per_request", 2_000)
        assert refused.value.retry_after is None
    # Asked before with the same units: the same answer.
    for units, rule in ((2_001, "rate_limited"), (2_000, None)):
        verdict = tokens.can_use(*pro, "generate_goal", output_units=units, limits=True)
        assert (verdict.allowed, verdict.rule) == (rule is None, rule)
        assert tokens.can_use(*pro, "generate_goal", output_units=units).allowed
    with (
        pytest.raises(RateLimited),
        tokens.spend(*pro, "generate_goal", metadata=most, limits=True) as held,
    ):
        tokens.deduct(held, metadata=large)
    assert figures(tokens, pro) == (20, 0)
    apart(3)
    with tokens.spend(*pro, "generate_goal", limits=True) as held:
        with pytest.raises(RateLimited):
            tokens.deduct(held, metadata=large)
        # The hold stays, for who charges what is allowed.
        assert tokens.deduct(held, metadata=most).tokens_deducted == 3
    now = token_clock.now()
    (row,) = Reports(tokens.database).refusals(
        now - timedelta(minutes=1), now + timedelta(minutes=1), pro[0]
    )
    assert (row.rule, row.count) == ("rate_limited", 4)
    assert (row.data["limit"], row.data["allowed"]) == ("output_units_per_request", 2_000)
    # Of who asks without limits, and of who is let through, none is refused.
    tokens.deduct_tokens(*pro, "generate_insight", metadata=large)
    with tokens.spend(*pro, "generate_insight") as held:
        tokens.deduct(held, metadata=large)
    tokens.set_mode("log_only", pro[0], **WHO)
    with tokens.spend(*pro, "generate_insight", limits=True) as held:
        assert tokens.deduct(held, metadata=large).tokens_waived == 1


def test_replays_and_refusals_do_not_count(
    tokens: Tokens, apart: Callable[[float], None], pro: Person
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal", idempotency_key="key", limits=True)
    assert tokens.deduct_tokens(*pro, "generate_goal", idempotency_key="key", limits=True).replayed
    apart(2)
    with pytest.raises(RateLimited):
        tokens.deduct_tokens(*pro, "generate_goal", limits=True)
    apart(1)
    tokens.deduct_tokens(*pro, "generate_goal", limits=True)


def test_an_organization_may_have_limits_of_its_own(
    tokens: Tokens, noon: datetime, join: Join, pro: Person, owner: psycopg.Connection
) -> None:
    owner.execute(
        "insert into ai_token_limits (organization_id, requests_per_minute,"
        " seconds_between_requests, tokens_per_request) values (%s, 2, null, null)",
        (pro[0],),
    )
    for _ in range(2):
        tokens.deduct_tokens(*pro, "generate_insight", 11, limits=True)
    with pytest.raises(RateLimited):
        tokens.deduct_tokens(*pro, "generate_insight", limits=True)
    with pytest.raises(RateLimited):
        tokens.deduct_tokens(*join("pro"), "generate_insight", 11, limits=True)


def test_the_first_rule_that_refuses_is_named(tokens: Tokens, noon: datetime, join: Join) -> None:
    starter = join("starter")
    tokens.pause_user(*starter, **WHO)
    with pytest.raises(UserPaused):
        tokens.deduct_tokens(*starter, "generate_goal", 20, limits=True)
    tokens.set_status(starter[0], "suspended", **WHO)
    with pytest.raises(OrganizationPaused):
        tokens.deduct_tokens(*starter, "generate_goal", 20, limits=True)
    tokens.set_status(starter[0], "active", **WHO)
    tokens.pause_user(*starter, False, **WHO)
    with pytest.raises(FeatureNotInPlan):
        tokens.deduct_tokens(*starter, "generate_goal", 20, limits=True)
    tokens.change_plan(starter[0], "pro")
    with pytest.raises(RateLimited):
        tokens.deduct_tokens(*starter, "generate_goal", 20, limits=True)
    with pytest.raises(InsufficientTokens):
        tokens.deduct_tokens(*starter, "generate_goal", 20)


# Books that nobody edits -------------------------------------------------------------------------


@pytest.mark.one_node
def test_the_old_emergency_fails_and_names_the_switch(
    pro: Person, owner: psycopg.Connection
) -> None:
    with pytest.raises(psycopg.Error) as refused:
        owner.execute("UPDATE ai_tokens SET balance = 9999")
    assert refused.value.sqlstate == "TK001"
    assert refused.value.diag.message_hint is not None
    assert "set_mode" in refused.value.diag.message_hint
    assert "TOKENLIB_SWITCH" in refused.value.diag.message_hint


@pytest.mark.one_node
@pytest.mark.parametrize("session", ["the owner's", "a superuser's", "a replica's"])
def test_entries_are_append_only_for_everybody(
    tokens: Tokens, token_database: TestDatabase, pro: Person, session: str
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal")
    tokens.set_status(pro[0], "active", **WHO)
    role = "tokenlib_owner" if session == "the owner's" else "postgres"
    with token_database.connect(role) as connection:
        if session == "a replica's":
            connection.execute("set session_replication_role = replica")
        for table in ("ai_token_usage_log", "ai_token_events", "ai_token_changes"):
            for statement in ("update {} set actor = actor", "delete from {}", "truncate {}"):
                if table == "ai_token_usage_log":
                    statement = statement.replace("actor", "metadata")
                with pytest.raises(psycopg.Error, match="append-only") as refused:
                    connection.execute(statement.format(table))
                assert refused.value.sqlstate == "TK002"


def test_five_failed_attempts_block_a_person_for_a_while(
    tokens: Tokens, token_clock: TestClock, noon: datetime, pro: Person, owner: psycopg.Connection
) -> None:
    other = tokens.create_organization("Another", "pro")
    colleague = tokens.add_member(pro[0], "A colleague", "colleague@example.org")
    attempts: list[tuple[Callable[[], object], type[TokenlibError]]] = [
        (lambda: tokens.deduct_tokens(*pro, "make_coffee", limits=True), UnknownFeature),
        (lambda: tokens.reserve(*pro, "make_tea", limits=True), UnknownFeature),
        (lambda: tokens.deduct_tokens(*pro, "generate_goal", 0, limits=True), InvalidInput),
        (lambda: tokens.deduct_tokens(other, pro[1], "generate_goal", limits=True), NotAMember),
        (lambda: tokens.failed_attempt(pro[1], "no JSON"), TokenlibError),
    ]
    for number, (attempt, error) in enumerate(attempts):
        # Four are none too many, and neither are an empty wallet and what has no limits.
        token_clock.set(noon + timedelta(minutes=number))
        assert tokens.can_use(*pro, "generate_insight", limits=True).allowed
        with pytest.raises(InsufficientTokens):
            tokens.deduct_tokens(*pro, "forecast_revenue", 30, limits=False)
        with pytest.raises(InvalidInput):
            tokens.deduct_tokens(*pro, "generate_goal", 0)
        with suppress(error):
            attempt()
    for call in (tokens.deduct_tokens, tokens.reserve):
        with pytest.raises(RateLimited) as refused:
            call(*pro, "generate_insight", limits=True)
        assert (refused.value.limit, refused.value.allowed) == ("failed_attempts", 5)
        assert refused.value.retry_after == 360  # when the first of the five is 10 minutes old
    assert not tokens.can_use(*pro, "generate_insight", limits=True).allowed
    # Nobody else is blocked, nor is what the product does itself.
    tokens.deduct_tokens(pro[0], colleague, "generate_insight", limits=True)
    tokens.deduct_tokens(*pro, "generate_insight")
    rows = owner.execute(
        "select feature, data ->> 'problem', count from ai_token_refusals"
        " where rule = 'failed_attempt' and organization_id = %s and user_id = %s order by last_at",
        pro,
    ).fetchall()
    assert rows == [
        ("make_coffee", "unknown feature", 1),
        ("make_tea", "unknown feature", 1),
        ("", "malformed units", 1),
        ("generate_goal", "another organization", 1),
        ("", "no JSON", 1),
    ]
    # Blocked, nothing more is counted: the block ends by itself.
    token_clock.set(noon + timedelta(minutes=9, seconds=59))
    tokens.failed_attempt(pro[1], "no JSON")
    with pytest.raises(RateLimited):
        tokens.deduct_tokens(*pro, "generate_insight", limits=True)
    token_clock.set(noon + timedelta(minutes=10))
    tokens.deduct_tokens(*pro, "generate_insight", limits=True)


def test_failed_attempts_are_a_setting_and_know_the_switch(
    tokens: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    off = "update ai_token_limits set failed_attempts = null, seconds_between_requests = null"
    owner.execute(off)
    for _ in range(6):
        tokens.failed_attempt(pro[1], "no JSON")
    assert owner.execute("select count(*) from ai_token_refusals").fetchone() == (0,)
    owner.execute(
        "insert into ai_token_limits (organization_id, failed_attempts, seconds_between_requests)"
        " values (%s, 2, null)",
        (pro[0],),
    )
    for _ in range(6):
        tokens.failed_attempt(pro[1], "no JSON")
    with pytest.raises(RateLimited):
        tokens.deduct_tokens(*pro, "generate_insight", limits=True)
    tokens.set_mode("log_only", actor="on call", reason="a launch")
    assert tokens.deduct_tokens(*pro, "generate_insight", limits=True).tokens_waived == 1
    # Of somebody whom nobody knows nothing is kept.
    tokens.failed_attempt(uuid4(), "no JSON")
    known = "select distinct user_id from ai_token_refusals"
    assert owner.execute(known).fetchall() == [(pro[1],)]
