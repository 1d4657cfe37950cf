"""Holds: reserve, then deduct at most what is held, or give it back; and `spend` around a call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import (
    AlreadySpent,
    FeatureNotInPlan,
    IdempotencyConflict,
    InProgress,
    InsufficientTokens,
    InvalidInput,
    Reservation,
    ReservationOver,
    Tokens,
    UnknownOrganization,
    UnknownReservation,
)
from tokenlib.testing import TestClock

Person = tuple[UUID, UUID]
Join = Callable[[str], Person]
Figures = tuple[int, int, int]

pytestmark = pytest.mark.usefixtures("books_close")

LIFE = timedelta(minutes=10)
KEY = "one-request"


def figures(tokens: Tokens, person: Person, token_type: str = "goal_generation") -> Figures:
    """Balance, reserved, used."""
    wallet = tokens.get_token_balance(person[0], token_type)
    assert wallet.total_allocated == wallet.balance + wallet.reserved + wallet.total_used
    return wallet.balance, wallet.reserved, wallet.total_used


def test_a_hold_leaves_the_balance_until_it_is_deducted(
    tokens: Tokens, noon: datetime, pro: Person
) -> None:
    held = tokens.reserve(*pro, "generate_goal", units=2)
    assert (held.tokens, held.remaining_balance, held.expires_at) == (6, 14, noon + LIFE)
    assert figures(tokens, pro) == (14, 6, 0)
    usage = tokens.deduct(held)
    assert (usage.tokens_deducted, usage.remaining_balance) == (6, 14)
    assert figures(tokens, pro) == (14, 0, 6)


def test_less_than_what_is_held_can_be_deducted_and_the_rest_comes_back(
    tokens: Tokens, pro: Person
) -> None:
    held = tokens.reserve(*pro, "generate_goal", units=5, metadata={"asked": 5})
    usage = tokens.deduct(held, units=2, metadata={"used": 2})
    assert (usage.tokens_deducted, usage.remaining_balance) == (6, 14)
    assert figures(tokens, pro) == (14, 0, 6)


@pytest.mark.one_node
def test_more_than_what_is_held_cannot_be_deducted(tokens: Tokens, pro: Person) -> None:
    held = tokens.reserve(*pro, "generate_goal", units=2)
    with pytest.raises(InvalidInput, match="at most the 2 that are held") as refused:
        tokens.deduct(held, units=3)
    assert refused.value.field == "units"
    assert figures(tokens, pro) == (14, 6, 0)


def test_deducting_twice_gives_the_first_answer(tokens: Tokens, pro: Person) -> None:
    held = tokens.reserve(*pro, "generate_goal", units=2)
    first = tokens.deduct(held, units=1)
    again = tokens.deduct(held)
    assert (again.id, again.tokens_deducted, again.replayed) == (first.id, 3, True)
    assert figures(tokens, pro) == (17, 0, 3)


def test_a_release_gives_everything_back_and_may_be_repeated(tokens: Tokens, pro: Person) -> None:
    held = tokens.reserve(*pro, "generate_goal", units=2)
    tokens.release(held, "model failed")
    tokens.release(held)
    assert figures(tokens, pro) == (20, 0, 0)
    with pytest.raises(ReservationOver) as over:
        tokens.deduct(held)
    assert over.value.state == "released"


def test_a_deducted_hold_cannot_be_released(tokens: Tokens, pro: Person) -> None:
    held = tokens.reserve(*pro, "generate_goal")
    tokens.deduct(held)
    with pytest.raises(ReservationOver) as over:
        tokens.release(held)
    assert over.value.state == "deducted"
    assert figures(tokens, pro) == (17, 0, 3)


@pytest.mark.parametrize("late", [timedelta(0), timedelta(hours=1)])
def test_an_expired_hold_cannot_be_deducted_though_nobody_touched_it(
    tokens: Tokens,
    noon: datetime,
    pro: Person,
    token_clock: TestClock,
    owner: psycopg.Connection,
    late: timedelta,
) -> None:
    held = tokens.reserve(*pro, "generate_goal")
    token_clock.advance(LIFE + late)
    states = owner.execute("select state from ai_token_reservations").fetchall()
    assert states == [("held",)]
    for verb in (tokens.deduct, tokens.release):
        with pytest.raises(ReservationOver) as over:
            verb(held)
        assert over.value.state == "expired"
    assert figures(tokens, pro) == (20, 0, 0)
    effective = owner.execute(
        "select effective_at, created_at from ai_token_events where kind = 'hold_expired'"
    ).fetchall()
    assert effective == [(noon + LIFE, noon + LIFE + late)]


def test_a_hold_counts_until_the_last_microsecond(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    held = tokens.reserve(*pro, "generate_goal")
    token_clock.advance(LIFE - timedelta(microseconds=1))
    assert tokens.deduct(held).tokens_deducted == 3


@pytest.mark.one_node
def test_a_call_happens_at_one_moment(
    tokens: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    """The clock moves while a call runs: what it decided and what it wrote bear the same time."""
    held = tokens.reserve(*pro, "generate_goal", hold_for=timedelta(hours=1))
    owner.execute("create sequence tokenlib.ticks")
    owner.execute("grant usage on sequence tokenlib.ticks to tokenlib_service")
    # The first look at the clock is just before the end of the hold, the second after it.
    owner.execute(
        f"""create or replace function tokenlib.clock() returns timestamptz
        language sql volatile set search_path = pg_catalog, pg_temp as $$
        select timestamptz '{held.expires_at}' + (2 * nextval('tokenlib.ticks') - 3)
            * interval '1 second' $$"""
    )
    usage = tokens.deduct(held)
    assert usage.created_at == held.expires_at - timedelta(seconds=1)


def test_the_life_of_a_hold_can_be_chosen(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    held = tokens.reserve(*pro, "generate_goal", hold_for=timedelta(seconds=30))
    assert held.expires_at == noon + timedelta(seconds=30)
    token_clock.advance(timedelta(seconds=30))
    assert figures(tokens, pro) == (20, 0, 0)


@pytest.mark.parametrize("end", ["released", "expired"])
def test_a_hold_that_is_over_leaves_its_key_free(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock, end: str
) -> None:
    held = tokens.reserve(*pro, "generate_goal", idempotency_key=KEY)
    with pytest.raises(InProgress) as busy:
        tokens.reserve(*pro, "generate_goal", idempotency_key=KEY)
    assert (busy.value.reservation_id, busy.value.expires_at) == (held.id, noon + LIFE)
    if end == "released":
        tokens.release(held)
    else:
        token_clock.advance(LIFE)
    again = tokens.reserve(*pro, "generate_goal", idempotency_key=KEY)
    assert again.id != held.id
    tokens.deduct(again)
    assert figures(tokens, pro) == (17, 0, 3)


def test_an_expired_hold_on_another_wallet_leaves_its_key_free(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    tokens.reserve(*pro, "generate_goal", idempotency_key=KEY)
    with pytest.raises(IdempotencyConflict):
        tokens.reserve(*pro, "generate_insight", idempotency_key=KEY)
    token_clock.advance(LIFE)
    held = tokens.reserve(*pro, "generate_insight", idempotency_key=KEY)
    assert tokens.deduct(held).token_type == "general"
    assert figures(tokens, pro) == (20, 0, 0)


def test_an_expired_hold_on_a_pack_leaves_its_key_free(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    tokens.upgrade_tokens(pro[0], "shared", 500)
    held = tokens.reserve(*pro, "generate_goal", 50, idempotency_key=KEY)
    assert held.token_type == "shared"
    token_clock.advance(LIFE)
    usage = tokens.deduct_tokens(*pro, "generate_goal", 50, idempotency_key=KEY)
    assert (usage.replayed, usage.remaining_balance) == (False, 350)


def test_an_expired_hold_leaves_its_key_free_for_a_grant(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    tokens.reserve(*pro, "generate_goal", idempotency_key=KEY)
    token_clock.advance(LIFE)
    assert not tokens.grant(pro[0], "general", 5, idempotency_key=KEY).replayed


def test_a_hold_that_is_not_there(tokens: Tokens, noon: datetime, pro: Person) -> None:
    nothing = Reservation(uuid4(), *pro, "generate_goal", "goal_generation", 1, 3, 17, noon)
    for verb in (tokens.deduct, tokens.release):
        with pytest.raises(UnknownReservation):
            verb(nothing)
    assert figures(tokens, pro) == (20, 0, 0)


def test_what_an_organization_left_behind_when_its_product_deleted_it(
    tokens: Tokens, pro: Person, join: Join, owner: psycopg.Connection
) -> None:
    usage = tokens.deduct_tokens(*pro, "generate_goal")
    held = tokens.reserve(*pro, "generate_goal")
    owner.execute("delete from user_profiles where organization_id = %s", (pro[0],))
    owner.execute("delete from organizations where id = %s", (pro[0],))
    verbs: list[Callable[[], object]] = [
        lambda: tokens.deduct(held),
        lambda: tokens.release(held),
        lambda: tokens.refund(usage, "nonsense"),
        lambda: tokens.deduct_tokens(*pro, "generate_goal"),
        lambda: tokens.get_all_token_balances(pro[0]),
    ]
    for verb in verbs:
        with pytest.raises(UnknownOrganization):
            verb()
    assert tokens.refresh_tokens() == 0


def test_a_hold_over_a_refresh_is_charged_in_the_new_period(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    token_clock.advance(timedelta(days=30) - timedelta(minutes=1))
    kept = tokens.reserve(*pro, "generate_goal", units=2)
    lost = tokens.reserve(*pro, "generate_goal", units=1)
    token_clock.advance(timedelta(minutes=2))
    assert figures(tokens, pro) == (20, 9, 0)
    tokens.deduct(kept, units=1)
    # What comes back belonged to the allowance that has ended.
    assert figures(tokens, pro) == (20, 3, 3)
    tokens.release(lost)
    assert figures(tokens, pro) == (20, 0, 3)


def test_spend_charges_after_its_body(tokens: Tokens, pro: Person) -> None:
    with tokens.spend(*pro, "generate_goal", metadata={"n": 1}, idempotency_key=KEY) as held:
        assert figures(tokens, pro) == (17, 3, 0)
        assert held.tokens == 3
    assert figures(tokens, pro) == (17, 0, 3)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_in_the_body_charges_nothing(
    tokens: Tokens, pro: Person, owner: psycopg.Connection, error: type[BaseException]
) -> None:
    with pytest.raises(error), tokens.spend(*pro, "generate_goal"):
        raise error
    assert figures(tokens, pro) == (20, 0, 0)
    reason = owner.execute("select reason from ai_token_events where kind = 'release'").fetchall()
    assert reason == [(error.__name__,)]


def test_a_body_that_outlives_its_hold_charges_nothing(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    with pytest.raises(ReservationOver), tokens.spend(*pro, "generate_goal"):
        token_clock.advance(LIFE)
    assert figures(tokens, pro) == (20, 0, 0)


def test_a_body_may_deduct_or_release_itself(tokens: Tokens, pro: Person) -> None:
    with tokens.spend(*pro, "generate_goal", units=3) as held:
        tokens.deduct(held, units=1)
    assert figures(tokens, pro) == (17, 0, 3)
    with tokens.spend(*pro, "generate_goal", units=3) as held:
        tokens.release(held)
    assert figures(tokens, pro) == (17, 0, 3)


def test_spend_on_a_key_that_is_charged_stops_before_its_body(tokens: Tokens, pro: Person) -> None:
    first = tokens.deduct_tokens(*pro, "generate_goal", idempotency_key=KEY)
    ran = []
    with (
        pytest.raises(AlreadySpent) as spent,
        tokens.spend(*pro, "generate_goal", idempotency_key=KEY),
    ):
        ran.append(1)
    assert not ran
    assert (spent.value.usage.id, spent.value.usage.remaining_balance) == (first.id, 17)
    assert figures(tokens, pro) == (17, 0, 3)


def test_spend_on_a_key_that_is_held_stops_before_its_body(tokens: Tokens, pro: Person) -> None:
    ran = []
    with tokens.spend(*pro, "generate_goal", idempotency_key=KEY):
        with (
            pytest.raises(InProgress),
            tokens.spend(*pro, "generate_goal", idempotency_key=KEY),
        ):
            ran.append(1)
        with pytest.raises(IdempotencyConflict):
            tokens.deduct_tokens(*pro, "generate_goal", 2, idempotency_key=KEY)
    assert not ran
    assert tokens.deduct_tokens(*pro, "generate_goal", idempotency_key=KEY).replayed
    assert figures(tokens, pro) == (17, 0, 3)


def test_spend_that_is_refused_runs_no_body(tokens: Tokens, join: Join, pro: Person) -> None:
    ran = []
    with pytest.raises(InsufficientTokens), tokens.spend(*pro, "generate_goal", units=7):
        ran.append(1)
    starter = join("starter")
    with pytest.raises(FeatureNotInPlan), tokens.spend(*starter, "generate_goal"):
        ran.append(1)
    assert not ran
    assert figures(tokens, pro) == (20, 0, 0)
