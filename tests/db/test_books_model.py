"""The books against their model, over random histories with a stopped clock."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
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
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.db.books_model import NEVER, PERIOD, Account, Hold, Part, Verdict, Wallet
from tokenlib import (
    NothingToRefund,
    Refused,
    Reservation,
    ReservationOver,
    Tokens,
    Usage,
)
from tokenlib.domain import Mode, OrganizationStatus

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
WHY = {"actor": "an operator", "reason": "a drill"}

# Every wallet as it stands, without a touch that would settle it.
AS_IT_STANDS = """
select token_type, balance, reserved, total_used, total_allocated, period_start, refresh_date,
    due_at <= %(now)s as stale
from ai_tokens where organization_id = %(id)s and token_type = any(%(types)s)
"""
ENTRIES = """
select token_type, 'log', null, tokens_deducted, tokens_waived, null, 1, null
from ai_token_usage_log where organization_id = %(id)s
union all
select token_type, kind, effective_at, balance_change, reserved_change, used_change,
    coalesce((data ->> 'periods')::int, 1), actor
from ai_token_events where organization_id = %(id)s
"""


class Books(RuleBasedStateMachine):
    """Random verbs on one organization, on the database and on the model."""

    tokens: Tokens
    owner: psycopg.Connection

    usages = Bundle("usages")
    holds = Bundle("holds")

    @initialize(plan=st.sampled_from(sorted(ALLOWANCES)))
    def begin(self, plan: str) -> None:
        self.stop_clock(START)
        self.tokens.set_mode("enforce", until=None, **WHY)
        self.organization = self.tokens.create_organization("Model", plan)
        self.user = self.tokens.add_member(self.organization, "A member", "member@example.org")
        self.plan = plan
        self.account = Account(
            {
                token_type: Wallet(allowance, START)
                for token_type, allowance in ALLOWANCES[plan].items()
            },
            START,
        )
        self.wallets = self.account.wallets
        self.held: dict[UUID, tuple[Wallet, Hold, str]] = {}  # its key
        self.charges: dict[UUID, tuple[datetime, str, int]] = {}  # when, key, units asked
        for life in (HOUR, 2 * DAY, None):
            self.grant("goal_generation", 4, "gift", None, life)
        self.grant("shared", 9, "purchase", None, None)

    def stop_clock(self, moment: datetime) -> None:
        self.owner.execute("update tokenlib.test_clock set stopped_at = %s", (moment,))

    def move(self, moment: datetime) -> None:
        self.stop_clock(moment)
        self.account.move(moment)

    def tick(self) -> datetime:
        """Every verb comes a second after the one before it."""
        self.move(self.account.now + SECOND)
        return self.account.now

    def ask(self, feature: str, units: int) -> Verdict:
        token_type, cost = COSTS[feature]
        return self.account.ask(token_type, cost * units)

    # Time

    @rule(step=st.sampled_from(STEPS))
    def wait(self, step: timedelta) -> None:
        self.move(self.account.now + step)

    @rule(early=st.integers(0, 2))
    def wait_for_what_is_due_next(self, early: int) -> None:
        """The next verb comes just after a boundary, exactly at it, or just before."""
        due = min(wallet.next_due() for wallet in self.wallets.values())
        self.move(max(self.account.now, due - early * SECOND))

    # Verbs

    @rule(target=usages, feature=FEATURES, units=st.integers(1, 3))
    def deduct_little(self, feature: str, units: int) -> object:
        return self.deduct(feature, units)

    @rule(target=usages, feature=FEATURES, units=st.integers(1, 9))
    def deduct(self, feature: str, units: int) -> object:
        now = self.tick()
        verdict = self.ask(feature, units)
        request = (self.organization, self.user, feature, units)
        if verdict.rule is not None:
            with pytest.raises(Refused) as refused:
                self.tokens.deduct_tokens(*request, idempotency_key=str(now))
            assert refused.value.rule == verdict.rule
            return multiple()
        usage = self.tokens.deduct_tokens(*request, idempotency_key=str(now))
        verdict.payer.charge(verdict.tokens, verdict.waived)
        assert self.wallets[usage.token_type] is verdict.payer
        assert (usage.tokens_deducted, usage.tokens_waived) == (verdict.tokens, verdict.waived)
        assert usage.remaining_balance == verdict.payer.balance
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
        verdict = self.ask(feature, units)
        request = (self.organization, self.user, feature, units)
        if verdict.rule is not None:
            with pytest.raises(Refused) as refused:
                self.tokens.reserve(*request, idempotency_key=str(now))
            assert refused.value.rule == verdict.rule
            return multiple()
        reservation = self.tokens.reserve(*request, idempotency_key=str(now), hold_for=life)
        hold = Hold(verdict.tokens, now + life, verdict.waived)
        verdict.payer.hold(hold)
        self.held[reservation.id] = verdict.payer, hold, str(now)
        assert self.wallets[reservation.token_type] is verdict.payer
        assert reservation.tokens == verdict.tokens
        assert reservation.remaining_balance == verdict.payer.balance
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
        cost = COSTS[reservation.feature][1] * units
        tokens, waived = (0, cost) if hold.waived else (cost, 0)
        wallet.charge_hold(hold, tokens, waived)
        assert (usage.tokens_deducted, usage.tokens_waived) == (tokens, waived)
        assert usage.remaining_balance == wallet.balance
        self.charges[usage.id] = now, key, reservation.units
        return usage

    @rule(reservation=consumes(holds))
    def release(self, reservation: Reservation) -> None:
        self.tick()
        wallet, hold, _ = self.held[reservation.id]
        if hold in wallet.holds:
            self.tokens.release(reservation)
            wallet.release(hold)
        else:
            with pytest.raises(ReservationOver):
                self.tokens.release(reservation)

    @rule(usage=consumes(usages))
    def refund(self, usage: Usage) -> None:
        self.tick()
        charged, _, _ = self.charges[usage.id]
        if usage.tokens_waived:
            with pytest.raises(NothingToRefund):
                self.tokens.refund(usage, "drill")
            return
        back = self.tokens.refund(usage, "drill")
        self.wallets[usage.token_type].refund(usage.tokens_deducted, charged)
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
        kind=st.sampled_from(["purchase", "gift", "adjustment"]),
        ahead=st.sampled_from([None, None, HOUR / 12, DAY, 10 * DAY]),
        life=st.sampled_from([None, HOUR / 6, 2 * DAY, 12 * DAY, 50 * DAY]),
    )
    def grant(
        self,
        token_type: str,
        amount: int,
        kind: Literal["purchase", "gift", "adjustment"],
        ahead: timedelta | None,
        life: timedelta | None,
    ) -> None:
        now = self.tick()
        effective = now + ahead if ahead else now
        expires = effective + life if life else None
        request = (self.organization, token_type, amount)
        self.tokens.grant(*request, kind=kind, effective_at=effective, expires_at=expires)
        if token_type not in self.wallets:
            self.wallets[token_type] = Wallet(0, now, has_allowance=False)
        self.wallets[token_type].grant(Part(amount, now, effective, expires or NEVER))

    # What lets or refuses

    @rule(status=st.sampled_from(["active"] * 3 + ["limited", "expired", "suspended"]))
    def set_status(self, status: OrganizationStatus) -> None:
        self.tick()
        self.tokens.set_status(self.organization, status, **WHY)
        self.account.status = status

    @rule(paused=st.sampled_from([False, False, True]))
    def pause_user(self, paused: bool) -> None:
        self.tick()
        self.tokens.pause_user(self.organization, self.user, paused, **WHY)
        self.account.paused = paused

    @rule(
        mode=st.sampled_from(["log_only", "log_only", "off", "enforce"]),
        everyone=st.booleans(),
        life=st.sampled_from([HOUR / 12, DAY, None]),
    )
    def switch(self, mode: Mode, everyone: bool, life: timedelta | None) -> None:
        until = self.tick() + life if life else None
        self.tokens.set_mode(mode, None if everyone else self.organization, until=until, **WHY)
        if everyone:
            self.account.mode_of_all, self.account.mode_of_all_until = mode, until or NEVER
        else:
            self.account.mode, self.account.mode_until = mode, until or NEVER

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
        assert found == {token_type: figures(w) for token_type, w in self.wallets.items()}

    @invariant()
    def every_figure_and_entry(self) -> None:
        """As they stand: a wallet that something waits for has a part of its entries, no other."""
        params = {
            "id": self.organization,
            "now": self.account.now,
            "types": list(self.wallets),
        }
        entries = {token_type: Counter[tuple[Any, ...]]() for token_type in self.wallets}
        for token_type, kind, at, *changes, periods, actor in self.owner.execute(ENTRIES, params):
            assert actor in ("system", "api", str(self.user), WHY["actor"], None)
            if token_type not in self.wallets:
                continue
            if kind == "log":
                entries[token_type][("log", *changes[:2])] += 1
                continue
            entries[token_type][(kind, at, *changes)] += 1
            for later in range(1, periods):  # idle periods are skipped in one step
                entries[token_type][(kind, at + later * PERIOD, 0, 0, 0)] += 1
        for token_type, *found, stale in self.owner.execute(AS_IT_STANDS, params):
            wallet = self.wallets[token_type]
            if stale:
                assert entries[token_type] <= wallet.entries
            else:
                assert entries[token_type] == wallet.entries
                assert tuple(found) == figures(wallet)
        refusals = self.owner.execute(
            "select rule, sum(count)::int from ai_token_refusals where organization_id = %s"
            " group by rule",
            (self.organization,),
        )
        assert dict(refusals.fetchall()) == dict(self.account.refusals)

    def teardown(self) -> None:
        if hasattr(self, "organization"):
            self.look(refresh=False)
            self.every_figure_and_entry()
            verified = self.tokens.verify(self.organization)
            assert verified.closed, verified.problems


def figures(wallet: Wallet) -> tuple[object, ...]:
    balance, reserved, used = wallet.figures
    allocated = balance + reserved + used
    return balance, reserved, used, allocated, wallet.start, wallet.start + PERIOD


@pytest.mark.timeout(600)  # room to shrink what it finds
@pytest.mark.parametrize("histories", [30, pytest.param(120, marks=pytest.mark.thorough)])
def test_the_books_follow_the_model(
    tokens: Tokens, owner: psycopg.Connection, histories: int
) -> None:
    class BooksHere(Books):
        pass

    BooksHere.tokens, BooksHere.owner = tokens, owner
    owner.execute(CATALOG)
    run_state_machine_as_test(
        BooksHere,
        settings=settings(
            max_examples=histories,
            stateful_step_count=50,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
