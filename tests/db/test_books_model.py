"""The books against their model, over random histories with a stopped clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.db.books_model import NEVER, PERIOD, Hold, Part, Wallet
from tokenlib import (
    InsufficientTokens,
    Reservation,
    ReservationOver,
    Tokens,
    Usage,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)

# A catalog in which little happens often: small allowances, small costs, small blocks.
CATALOG = """
update ai_token_allowances set allowance = 4 where plan = 'starter';
update ai_token_allowances set allowance = 12 where plan = 'pro';
update ai_token_allowances set allowance = 40 where plan = 'enterprise';
update ai_token_allowances set allowance = null where token_type = 'forecast';
update ai_token_features set token_type = 'goal_generation' where feature = 'generate_insight';
update ai_token_parameters set top_up_block = 10;
"""
ALLOWANCES: dict[str, dict[str, int | None]] = {
    "starter": {"goal_generation": 4, "forecast": None},
    "pro": {"goal_generation": 12, "forecast": None},
    "enterprise": {"goal_generation": 40, "forecast": None},
}
COSTS = {
    "generate_goal": ("goal_generation", 3),
    "generate_insight": ("goal_generation", 1),
    "forecast_revenue": ("forecast", 4),
}
# Most of it on one wallet, where it can meet.
FEATURES = st.sampled_from(["generate_goal", "generate_insight"] * 3 + ["forecast_revenue"])
TYPES = st.sampled_from(["goal_generation"] * 5 + ["forecast", "shared"])
STEPS = [HOUR / 12, HOUR, DAY, 2 * DAY, 10 * DAY, 2 * PERIOD]


class Books(RuleBasedStateMachine):
    """Random verbs on one organization, on the database and on the model."""

    tokens: Tokens
    owner: psycopg.Connection

    usages = Bundle("usages")
    holds = Bundle("holds")

    @initialize(plan=st.sampled_from(sorted(ALLOWANCES)))
    def begin(self, plan: str) -> None:
        self.stop_clock(START)
        self.organization = self.tokens.create_organization("Model", plan)
        self.user = self.tokens.add_member(self.organization, "A member", "member@example.org")
        self.plan = plan
        self.wallets = {
            token_type: Wallet(allowance, self.now)
            for token_type, allowance in ALLOWANCES[plan].items()
        }
        self.held: dict[UUID, tuple[Wallet, Hold, str]] = {}  # its key
        self.charges: dict[UUID, tuple[datetime, str, int]] = {}  # when, key, units asked
        for life in (HOUR, 2 * DAY, None):
            self.grant("goal_generation", 4, None, life)

    def stop_clock(self, moment: datetime) -> None:
        self.now = moment
        self.owner.execute("update tokenlib.test_clock set stopped_at = %s", (moment,))

    def move(self, moment: datetime) -> None:
        self.stop_clock(moment)
        for wallet in self.wallets.values():
            wallet.at(moment)

    def tick(self) -> datetime:
        """Every verb comes a second after the one before it."""
        self.move(self.now + SECOND)
        return self.now

    def payer(self, feature: str, units: int) -> Wallet | None:
        """The wallet that pays, if any does."""
        token_type, cost = COSTS[feature]
        own, shared = self.wallets[token_type], self.wallets.get("shared")
        own.top_up(cost * units)
        payers = (wallet for wallet in (own, shared) if wallet is not None)
        return next((wallet for wallet in payers if wallet.balance >= cost * units), None)

    # Time

    @rule(step=st.sampled_from(STEPS))
    def wait(self, step: timedelta) -> None:
        self.move(self.now + step)

    @rule(early=st.integers(0, 2))
    def wait_for_what_is_due_next(self, early: int) -> None:
        """The next verb comes just after a boundary, exactly at it, or just before."""
        due = min(wallet.next_due() for wallet in self.wallets.values())
        self.move(max(self.now, due - early * SECOND))

    # Verbs

    @rule(target=usages, feature=FEATURES, units=st.integers(1, 3))
    def deduct_little(self, feature: str, units: int) -> object:
        return self.deduct(feature, units)

    @rule(target=usages, feature=FEATURES, units=st.integers(1, 9))
    def deduct(self, feature: str, units: int) -> object:
        now = self.tick()
        payer = self.payer(feature, units)
        request = (self.organization, self.user, feature, units)
        if payer is None:
            with pytest.raises(InsufficientTokens):
                self.tokens.deduct_tokens(*request, idempotency_key=str(now))
            return multiple()
        usage = self.tokens.deduct_tokens(*request, idempotency_key=str(now))
        payer.pending += usage.tokens_deducted
        payer.used += usage.tokens_deducted
        assert usage.tokens_deducted == COSTS[feature][1] * units
        assert usage.remaining_balance == payer.balance
        self.charges[usage.id] = now, str(now), units
        return usage

    @rule(
        target=holds,
        feature=FEATURES,
        units=st.integers(1, 9),
        life=st.sampled_from([HOUR / 6, DAY]),
    )
    def reserve(self, feature: str, units: int, life: timedelta) -> object:
        now = self.tick()
        payer = self.payer(feature, units)
        request = (self.organization, self.user, feature, units)
        if payer is None:
            with pytest.raises(InsufficientTokens):
                self.tokens.reserve(*request, idempotency_key=str(now))
            return multiple()
        reservation = self.tokens.reserve(*request, idempotency_key=str(now), hold_for=life)
        hold = Hold(reservation.tokens, now + life)
        payer.holds.append(hold)
        self.held[reservation.id] = payer, hold, str(now)
        assert reservation.remaining_balance == payer.balance
        return reservation

    @rule(target=usages, reservation=consumes(holds), part=st.integers(1, 3))
    def deduct_hold(self, reservation: Reservation, part: int) -> object:
        now = self.tick()
        wallet, hold, key = self.held[reservation.id]
        units = max(1, reservation.units // part)
        if hold not in wallet.holds:
            with pytest.raises(ReservationOver):
                self.tokens.deduct(reservation, units)
            return multiple()
        usage = self.tokens.deduct(reservation, units)
        wallet.end_hold(hold, hold.tokens - usage.tokens_deducted)
        wallet.used += usage.tokens_deducted
        assert usage.tokens_deducted == COSTS[reservation.feature][1] * units
        assert usage.remaining_balance == wallet.balance
        self.charges[usage.id] = now, key, reservation.units
        return usage

    @rule(reservation=consumes(holds))
    def release(self, reservation: Reservation) -> None:
        self.tick()
        wallet, hold, _ = self.held[reservation.id]
        if hold in wallet.holds:
            self.tokens.release(reservation)
            wallet.end_hold(hold, hold.tokens)
        else:
            with pytest.raises(ReservationOver):
                self.tokens.release(reservation)

    @rule(usage=consumes(usages))
    def refund(self, usage: Usage) -> None:
        now = self.tick()
        charged, _, _ = self.charges[usage.id]
        back = self.tokens.refund(usage, "drill")
        self.wallets[usage.token_type].refund(usage.tokens_deducted, charged, now)
        assert back.remaining_balance == self.wallets[usage.token_type].balance

    @rule(usage=usages)
    def replay(self, usage: Usage) -> None:
        self.tick()
        _, key, units = self.charges[usage.id]
        request = (self.organization, self.user, usage.feature, units)
        again = self.tokens.deduct_tokens(*request, idempotency_key=key)
        assert again.replayed
        assert (again.id, again.remaining_balance) == (usage.id, usage.remaining_balance)

    @rule(
        token_type=TYPES,
        amount=st.integers(1, 12),
        ahead=st.sampled_from([None, None, HOUR / 12, DAY, 10 * DAY]),
        life=st.sampled_from([None, HOUR / 6, 2 * DAY, 12 * DAY, 50 * DAY]),
    )
    def grant(
        self, token_type: str, amount: int, ahead: timedelta | None, life: timedelta | None
    ) -> None:
        now = self.tick()
        effective = now + ahead if ahead else now
        expires = effective + life if life else None
        self.tokens.grant(
            self.organization, token_type, amount, effective_at=effective, expires_at=expires
        )
        if token_type not in self.wallets:
            self.wallets[token_type] = Wallet(0, now, has_allowance=False)
        self.wallets[token_type].grant(Part(amount, now, effective, expires or NEVER), now)

    @precondition(lambda self: self.charges)
    @rule(plan=st.sampled_from(sorted(ALLOWANCES)), outside=st.booleans())
    def change_plan(self, plan: str, outside: bool) -> None:
        self.tick()
        if outside:  # a billing webhook wrote it; it applies at the next touch, which is now
            self.owner.execute(
                "update organizations set plan = %s where id = %s", (plan, self.organization)
            )
            self.tokens.get_token_stats(self.organization)
        else:
            self.tokens.change_plan(self.organization, plan)
        if plan != self.plan:
            self.plan = plan
            for token_type, allowance in ALLOWANCES[plan].items():
                self.wallets[token_type].change_plan(allowance)

    @rule(refresh=st.booleans())
    def look(self, refresh: bool) -> None:
        """Looking settles what is due: hence a rule, and no invariant."""
        if refresh:
            self.tokens.refresh_tokens(self.organization)
        found = {
            wallet.token_type: (
                wallet.balance,
                wallet.reserved,
                wallet.total_used,
                wallet.total_allocated,
                wallet.period_start,
                wallet.refresh_date,
            )
            for wallet in self.tokens.get_all_token_balances(self.organization)
            if wallet.token_type in self.wallets
        }
        assert found == {
            token_type: (
                wallet.balance,
                wallet.reserved,
                wallet.used,
                wallet.balance + wallet.reserved + wallet.used,
                wallet.start,
                wallet.start + PERIOD,
            )
            for token_type, wallet in self.wallets.items()
        }

    def teardown(self) -> None:
        if hasattr(self, "organization"):
            self.look(refresh=False)
            verified = self.tokens.verify(self.organization)
            assert verified.closed, verified.problems


@pytest.mark.timeout(600)  # room to shrink what it finds
def test_the_books_follow_the_model(tokens: Tokens, owner: psycopg.Connection) -> None:
    class BooksHere(Books):
        pass

    BooksHere.tokens, BooksHere.owner = tokens, owner
    owner.execute(CATALOG)
    run_state_machine_as_test(
        BooksHere,
        settings=settings(
            max_examples=120,
            stateful_step_count=50,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
