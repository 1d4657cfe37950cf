"""The books in plain Python: what a wallet holds, by replaying its history event by event.

It knows no laziness and no skipped periods, so it says what the database must arrive at, whenever
that settles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

PERIOD = timedelta(days=30)
NEVER = datetime.max.replace(tzinfo=UTC)
BLOCK = 10  # by which an unlimited wallet is topped up


@dataclass(eq=False)
class Part:
    """A grant: part of what a wallet may spend."""

    amount: int
    created: datetime
    effective: datetime
    expires: datetime = NEVER
    is_allowance: bool = False
    used: int = 0
    used_before: int = 0
    left: int = 0

    def __post_init__(self) -> None:
        self.left = self.amount


@dataclass(eq=False)
class Hold:
    tokens: int
    expires: datetime
    waived: int = 0
    drawn: list[tuple[Part, int]] | None = None


@dataclass(eq=False)
class Wallet:
    """What a wallet holds at `now`. Call `at` first; it lets everything happen that is due."""

    allowance: int | None
    start: datetime
    has_allowance: bool = True
    parts: list[Part] = field(default_factory=list)
    scheduled: list[Part] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    used: int = 0
    pending: int = 0  # charged since the set of grants last changed
    # Charges: log, tokens, waived. Events: kind, when, changes of balance, of reserved and of used.
    entries: Counter[tuple[Any, ...]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.now = self.start
        with self.entry("opening", self.start):
            self.begin_period()

    @property
    def figures(self) -> tuple[int, int, int]:
        return self.balance, self.reserved, self.used

    @contextmanager
    def entry(self, kind: str, effective: datetime) -> Iterator[None]:
        """What happens inside is one entry of the books."""
        before = self.figures
        yield
        changes = (now - then for now, then in zip(self.figures, before, strict=True))
        self.entries[(kind, effective, *changes)] += 1

    @property
    def reserved(self) -> int:
        return sum(hold.tokens for hold in self.holds)

    @property
    def balance(self) -> int:
        undrawn = sum(hold.tokens for hold in self.holds if hold.drawn is None)
        return sum(part.left for part in self.parts) - self.pending - undrawn

    def begin_period(self) -> None:
        if self.has_allowance:
            amount = BLOCK if self.allowance is None else self.allowance
            end = self.start + PERIOD
            self.parts.append(Part(amount, self.start, self.start, end, is_allowance=True))

    def in_burn_order(self) -> list[Part]:
        return sorted(
            self.parts,
            key=lambda part: (part.expires, part.effective, not part.is_allowance, part.created),
        )

    def draw(self, tokens: int) -> list[tuple[Part, int]]:
        drawn = []
        for part in self.in_burn_order():
            take = min(part.left, tokens)
            if take:
                part.left -= take
                part.used += take
                tokens -= take
                drawn.append((part, take))
        assert tokens == 0
        return drawn

    def change_of_grants(self) -> None:
        """Charges first, then whoever holds: what is released counts as never taken."""
        self.draw(self.pending)
        self.pending = 0
        for hold in self.holds:
            if hold.drawn is None:
                hold.drawn = self.draw(hold.tokens)

    def end_hold(self, hold: Hold, back: int) -> None:
        """`back` of the hold's tokens return to where they came from, if that still runs."""
        self.holds.remove(hold)
        if hold.drawn is None:
            self.pending += hold.tokens - back
            return
        for part, tokens in reversed(hold.drawn):
            take = min(tokens, back)
            back -= take
            part.used -= take
            part.used_before = min(part.used_before, part.used)
            if part in self.parts:
                part.left = max(part.left, min(part.left + take, part.amount - part.used))

    def at(self, now: datetime) -> None:
        """Let everything happen that is due at `now`, in the order of its times."""
        while (due := self.next_due()) <= now:
            for hold in [hold for hold in self.holds if hold.expires == due]:
                with self.entry("hold_expired", due):
                    self.end_hold(hold, hold.tokens)
            for part in [part for part in self.parts if part.expires == due]:
                if not part.is_allowance:
                    self.change_of_grants()
                    with self.entry("grant_expired", due):
                        self.parts.remove(part)
            if self.start + PERIOD == due:
                self.change_of_grants()
                with self.entry("refresh", due):
                    self.start, self.used = due, 0
                    self.parts = [part for part in self.parts if not part.is_allowance]
                    for part in self.parts:
                        part.used_before = part.used
                    self.begin_period()
            for part in [part for part in self.scheduled if part.effective == due]:
                self.change_of_grants()
                with self.entry("grant", due):
                    self.scheduled.remove(part)
                    self.parts.append(part)
        self.now = now

    def next_due(self) -> datetime:
        return min(
            self.start + PERIOD,
            *(hold.expires for hold in self.holds),
            *(part.expires for part in self.parts),
            *(part.effective for part in self.scheduled),
            NEVER,
        )

    def charge(self, tokens: int, waived: int = 0) -> None:
        self.pending += tokens
        self.used += tokens
        self.entries["log", tokens, waived] += 1

    def hold(self, hold: Hold) -> None:
        with self.entry("reserve", self.now):
            self.holds.append(hold)

    def charge_hold(self, hold: Hold, tokens: int, waived: int = 0) -> None:
        self.end_hold(hold, hold.tokens - tokens)
        self.used += tokens
        self.entries["log", tokens, waived] += 1

    def release(self, hold: Hold) -> None:
        with self.entry("release", self.now):
            self.end_hold(hold, hold.tokens)

    def grant(self, part: Part) -> None:
        if part.effective > self.now:
            with self.entry("grant_scheduled", part.effective):
                self.scheduled.append(part)
        else:
            self.change_of_grants()
            with self.entry("grant", self.now):
                self.parts.append(part)

    def top_up(self, needed: int) -> None:
        if self.allowance is None and self.balance < needed:
            block = max(BLOCK, needed - self.balance)
            part = next(part for part in self.parts if part.is_allowance)
            with self.entry("top_up", self.now):
                part.amount += block
                part.left += block

    def change_plan(self, allowance: int | None) -> None:
        """The new allowance less what this period has used of it."""
        self.change_of_grants()
        part = next(part for part in self.parts if part.is_allowance)
        with self.entry("plan_change", self.now):
            part.amount = part.used + BLOCK if allowance is None else allowance
            part.left = max(0, part.amount - part.used)
            self.allowance = allowance

    def refund(self, tokens: int, charged: datetime) -> None:
        with self.entry("refund", self.now):
            left = tokens
            if charged >= self.start:
                self.used -= tokens
                left = self._give_to_what_was_burnt_last(tokens)
            if left:
                self.change_of_grants()
                self.parts.append(Part(left, self.now, self.now, self.now + PERIOD))

    def _give_to_what_was_burnt_last(self, tokens: int) -> int:
        """What found no room."""
        take = min(self.pending, tokens)
        self.pending -= take
        left = tokens - take
        if left:
            self.change_of_grants()
        for part in reversed(self.in_burn_order()):
            held = sum(n for hold in self.holds for p, n in hold.drawn or () if p is part)
            take = min(part.used - part.used_before - held, left)
            if take > 0 and part.used <= part.amount:
                part.used -= take
                part.left += take
                left -= take
        return left


@dataclass
class Verdict:
    """What a request came to: a refusal by its rule, or who pays what."""

    rule: str | None
    payer: Wallet
    tokens: int
    waived: int


@dataclass
class Account:
    """One organization with one member: its wallets, who is paused, and the switch."""

    wallets: dict[str, Wallet]
    now: datetime
    status: str = "active"
    paused: bool = False
    mode: str | None = None  # of the organization; None: nobody set one
    mode_until: datetime = NEVER
    mode_of_all: str = "enforce"
    mode_of_all_until: datetime = NEVER
    refusals: Counter[str] = field(default_factory=Counter)

    def move(self, now: datetime) -> None:
        self.now = now
        for wallet in self.wallets.values():
            wallet.at(now)

    def switch(self) -> str:
        if self.mode is not None and self.mode_until > self.now:
            return self.mode
        return self.mode_of_all if self.mode_of_all_until > self.now else "enforce"

    def ask(self, token_type: str, cost: int) -> Verdict:
        """May it, and who pays? A refusal is on the books also where the switch lets it through."""
        own, shared = self.wallets[token_type], self.wallets.get("shared")
        mode, payer, rule = self.switch(), own, None
        if mode != "off":
            if self.status in ("limited", "expired"):
                rule = "payment_failed"
            elif self.status == "suspended":
                rule = "organization_paused"
            elif self.paused:
                rule = "user_paused"
            elif own.allowance == 0:
                rule = "feature_not_in_plan"
            elif own.allowance is None:
                if mode == "enforce":
                    own.top_up(cost)
            elif own.balance < cost:
                if shared is not None and shared.balance >= cost:
                    payer = shared
                else:
                    rule = "insufficient_tokens"
        if rule is not None:
            self.refusals[rule] += 1
        if mode == "enforce":
            return Verdict(rule, payer, cost, 0)
        return Verdict(None, payer, 0, cost)
