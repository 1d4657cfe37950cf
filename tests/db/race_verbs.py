"""The verbs of the race tests: how each is called, and what the model says to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from tests.db.books_model import PERIOD, Account, Hold, Part, Wallet
from tokenlib import Reservation, Tokens, Usage, batches
from tokenlib.db import Database, statements
from tokenlib.retry import Retry

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WHY = {"actor": "an operator", "reason": "a drill"}
PLANS = {"starter": 0, "pro": 50, "enterprise": 500}  # of `general`
# Nothing is asked again: a deadlock or a lock that is not granted is a failure here.
ONE_ATTEMPT = Retry(deadline=30, again=False)

Answer = tuple[Any, ...]


@dataclass(frozen=True)
class Scene:
    """One organization on pro: 10 of `general` charged, 8 held, a gift of 6 and a pack of 20."""

    organization: UUID
    user: UUID
    usage: Usage
    held: Reservation
    start: datetime

    @property
    def key(self) -> str:
        return f"key {self.organization}"

    @property
    def gift_ends(self) -> datetime:
        return self.start + HOUR / 2

    @property
    def hold_ends(self) -> datetime:
        return self.start + HOUR


class Seat:
    """Where a call is made from: a gate of its own, and the hand on the clock."""

    def __init__(self, url: str, owner: str) -> None:
        self.tokens = Tokens(Database(url, pool_size=1, retry=ONE_ATTEMPT))
        self.owner = psycopg.connect(owner, autocommit=True)

    def leave(self) -> None:
        self.tokens.close()
        self.owner.close()

    def clock(self, moment: datetime) -> None:
        self.owner.execute(
            "update tokenlib.test_clock set stopped_at = greatest(stopped_at, %s)", (moment,)
        )


class Model:
    """The same scene in plain Python."""

    def __init__(self, start: datetime) -> None:
        self.account = Account(
            {
                "general": Wallet(50, start),
                "shared": Wallet(0, start, has_allowance=False),
            },
            start,
        )
        self.own, self.shared = self.account.wallets.values()
        self.plan, self.start = "pro", start
        self.changes: Counter[Answer] = Counter()
        self.refunded = False
        self.hold_is, self.charged_hold = "held", (0, 0)
        self.own.grant(Part(6, start, start, start + HOUR / 2))
        self.shared.grant(Part(20, start, start))
        self.own.charge(10)
        self.held = Hold(8, start + HOUR)
        self.own.hold(self.held)

    def clock(self, moment: datetime) -> None:
        self.account.move(max(self.account.now, moment))
        if self.hold_is == "held" and self.held not in self.own.holds:
            self.hold_is = "expired"

    def change(self, action: str, before: object, after: object) -> None:
        self.changes[(action, str(before), str(after))] += 1


# The verbs: what is called, and what the model says to it ----------------------------------------


def deduct(seat: Seat, scene: Scene, _place: int) -> Answer:
    usage = seat.tokens.deduct_tokens(scene.organization, scene.user, "generate_insight", 17)
    return (
        usage.token_type,
        usage.tokens_deducted,
        usage.tokens_waived,
        usage.remaining_balance,
    )


def deduct_in_company(seat: Seat, scene: Scene, place: int) -> Answer:
    """As one of a crew, which waits for its locks or does not; alone if it is not charged so."""
    asked = seat.tokens.charge_request(scene.organization, scene.user, "generate_insight", 17)
    params = batches.lists([asked], batches.new_ids(1), wait=bool(place % 2))
    rows = seat.tokens.database.tuples(statements("gate")["deduct_many"], params, 30)
    if not rows or rows[0][1]:
        return deduct(seat, scene, place)
    [(_, _, token_type, tokens, balance, _)] = rows
    return token_type, tokens, 0, balance


def model_deduct(model: Model, _place: int) -> Answer:
    verdict = model.account.ask("general", 17)
    if verdict.rule:
        return ("refused", verdict.rule)
    verdict.payer.charge(verdict.tokens, verdict.waived)
    token_type = "general" if verdict.payer is model.own else "shared"
    return token_type, verdict.tokens, verdict.waived, verdict.payer.balance


def reserve(seat: Seat, scene: Scene, _place: int) -> Answer:
    held = seat.tokens.reserve(scene.organization, scene.user, "generate_insight", 13, hold_for=DAY)
    return held.token_type, held.tokens, held.remaining_balance


def model_reserve(model: Model, _place: int) -> Answer:
    verdict = model.account.ask("general", 13)
    if verdict.rule:
        return ("refused", verdict.rule)
    verdict.payer.hold(Hold(verdict.tokens, model.account.now + DAY, verdict.waived))
    token_type = "general" if verdict.payer is model.own else "shared"
    return token_type, verdict.tokens, verdict.payer.balance


def deduct_hold(seat: Seat, scene: Scene, place: int) -> Answer:
    usage = seat.tokens.deduct(scene.held, 5 + place % 2)
    return usage.tokens_deducted, usage.remaining_balance


def model_deduct_hold(model: Model, place: int) -> Answer:
    if model.hold_is == "held":
        tokens = 5 + place % 2
        model.own.charge_hold(model.held, tokens)
        model.hold_is, model.charged_hold = "deducted", (tokens, model.own.balance)
    if model.hold_is != "deducted":
        return ("over", model.hold_is)
    return model.charged_hold  # a replay has the first answer


def release(seat: Seat, scene: Scene, _place: int) -> Answer:
    seat.tokens.release(scene.held)
    return ()


def model_release(model: Model, _place: int) -> Answer:
    if model.hold_is == "held":
        model.own.release(model.held)
        model.hold_is = "released"
    return () if model.hold_is == "released" else ("over", model.hold_is)


def pass_moment(seat: Seat, scene: Scene, moment: datetime) -> Answer:
    seat.clock(moment)
    seat.tokens.get_token_balance(scene.organization, "general")
    return ()


def expire(seat: Seat, scene: Scene, _place: int) -> Answer:
    return pass_moment(seat, scene, scene.hold_ends)


def model_expire(model: Model, _place: int) -> Answer:
    model.clock(model.start + HOUR)
    return ()


def grant_expiry(seat: Seat, scene: Scene, _place: int) -> Answer:
    return pass_moment(seat, scene, scene.gift_ends)


def model_grant_expiry(model: Model, _place: int) -> Answer:
    model.clock(model.start + HOUR / 2)
    return ()


def refund(seat: Seat, scene: Scene, _place: int) -> Answer:
    return (seat.tokens.refund(scene.usage, "nonsense").remaining_balance,)


def model_refund(model: Model, _place: int) -> Answer:
    if model.refunded:
        return ("AlreadyRefunded",)
    model.refunded = True
    model.own.refund(10, model.start)
    return (model.own.balance,)


def refresh(seat: Seat, scene: Scene, place: int) -> Answer:
    """By its own verb, and by looking at all wallets, which locks one after the other."""
    seat.clock(scene.start + PERIOD)
    if place % 2:
        seat.tokens.get_all_token_balances(scene.organization)
    else:
        seat.tokens.refresh_tokens(scene.organization)
    return ()


def model_refresh(model: Model, _place: int) -> Answer:
    model.clock(model.start + PERIOD)
    return ()


def grant(seat: Seat, scene: Scene, place: int) -> Answer:
    token_type = ("general", "shared")[place % 2]
    return (seat.tokens.upgrade_tokens(scene.organization, token_type, 9).balance,)


def model_grant(model: Model, place: int) -> Answer:
    wallet = (model.own, model.shared)[place % 2]
    wallet.grant(Part(9, model.account.now, model.account.now))
    return (wallet.balance,)


def change_plan(seat: Seat, scene: Scene, place: int) -> Answer:
    plan = ("starter", "enterprise", "pro")[place % 3]
    seat.tokens.change_plan(scene.organization, plan, **WHY)
    return ()


def model_change_plan(model: Model, place: int) -> Answer:
    plan = ("starter", "enterprise", "pro")[place % 3]
    if plan != model.plan:
        model.change("change_plan", {"plan": model.plan}, {"plan": plan})
        model.own.change_plan(PLANS[plan])
        model.plan = plan
    return ()


def pause(seat: Seat, scene: Scene, place: int) -> Answer:
    """The user, or the organization; paused and resumed."""
    if place % 2:
        status = ("suspended", "active")[place // 2]
        seat.tokens.set_status(scene.organization, status, **WHY)  # type: ignore[arg-type]
    else:
        seat.tokens.pause_user(scene.organization, scene.user, place == 0, **WHY)
    return ()


def model_pause(model: Model, place: int) -> Answer:
    account = model.account
    if place % 2:
        status = ("suspended", "active")[place // 2]
        model.change("set_status", {"status": account.status}, {"status": status})
        account.status = status
    else:
        model.change("pause_user", {"paused": account.paused}, {"paused": place == 0})
        account.paused = place == 0
    return ()


MODES = ("off", "log_only", "enforce", "off")


def switch(seat: Seat, scene: Scene, place: int) -> Answer:
    seat.tokens.set_mode(MODES[place], scene.organization, until=None, **WHY)  # type: ignore[arg-type]
    return ()


def model_switch(model: Model, place: int) -> Answer:
    model.change("set_mode", {"mode": model.account.mode}, {"mode": MODES[place]})
    model.account.mode = MODES[place]
    return ()


Call = Callable[[Seat, Scene, int], Answer]
Said = Callable[[Model, int], Answer]
VERBS: dict[str, tuple[Call, Said]] = {
    "deduct": (deduct, model_deduct),
    "deduct in company": (deduct_in_company, model_deduct),
    "reserve": (reserve, model_reserve),
    "deduct a hold": (deduct_hold, model_deduct_hold),
    "release": (release, model_release),
    "hold expiry": (expire, model_expire),
    "refund": (refund, model_refund),
    "refresh": (refresh, model_refresh),
    "grant": (grant, model_grant),
    "grant expiry": (grant_expiry, model_grant_expiry),
    "plan change": (change_plan, model_change_plan),
    "pause": (pause, model_pause),
    "switch": (switch, model_switch),
}


# One key for two requests, each on a wallet of its own


def deduct_with_key(seat: Seat, scene: Scene, _place: int) -> Answer:
    request = (scene.organization, scene.user, "analyze_strategy")
    seat.tokens.deduct_tokens(*request, idempotency_key=scene.key)
    return ("ok",)


def reserve_with_key(seat: Seat, scene: Scene, _place: int) -> Answer:
    request = (scene.organization, scene.user, "generate_goal")
    seat.tokens.reserve(*request, idempotency_key=scene.key)
    return ("ok",)


def grant_with_key(seat: Seat, scene: Scene, _place: int) -> Answer:
    seat.tokens.grant(scene.organization, "forecast", 9, idempotency_key=scene.key)
    return ("ok",)


def refund_with_key(seat: Seat, scene: Scene, _place: int) -> Answer:
    seat.tokens.refund(scene.usage, "nonsense", idempotency_key=scene.key)
    return ("ok",)


KEYED: dict[str, Call] = {
    "deduct": deduct_with_key,
    "reserve": reserve_with_key,
    "grant": grant_with_key,
    "refund": refund_with_key,
}
