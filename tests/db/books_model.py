"""The books in plain Python: what a wallet holds, by replaying its history event by event.

It knows no laziness and no skipped periods, so it says what the database must arrive at, whenever
that settles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

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

    def __post_init__(self) -> None:
        self.begin_period()

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
                self.end_hold(hold, hold.tokens)
            for part in [part for part in self.parts if part.expires == due]:
                self.change_of_grants()
                self.parts.remove(part)
            if self.start + PERIOD == due:
                self.change_of_grants()
                self.start, self.used = due, 0
                for part in self.parts:
                    part.used_before = part.used
                self.begin_period()
            for part in [part for part in self.scheduled if part.effective == due]:
                self.change_of_grants()
                self.scheduled.remove(part)
                self.parts.append(part)

    def next_due(self) -> datetime:
        return min(
            self.start + PERIOD,
            *(hold.expires for hold in self.holds),
            *(part.expires for part in self.parts),
            *(part.effective for part in self.scheduled),
            NEVER,
        )

    def grant(self, part: Part, now: datetime) -> None:
        if part.effective > now:
            self.scheduled.append(part)
        else:
            self.change_of_grants()
            self.parts.append(part)

    def top_up(self, needed: int) -> None:
        if self.allowance is None and self.balance < needed:
            block = max(BLOCK, needed - self.balance)
            part = next(part for part in self.parts if part.is_allowance)
            part.amount += block
            part.left += block

    def change_plan(self, allowance: int | None) -> None:
        """The new allowance less what this period has used of it."""
        self.change_of_grants()
        part = next(part for part in self.parts if part.is_allowance)
        part.amount = part.used + BLOCK if allowance is None else allowance
        part.left = max(0, part.amount - part.used)
        self.allowance = allowance

    def refund(self, tokens: int, charged: datetime, now: datetime) -> None:
        left = tokens
        if charged >= self.start:
            self.used -= tokens
            take = min(self.pending, left)
            self.pending -= take
            left -= take
            if left:
                self.change_of_grants()
            for part in reversed(self.in_burn_order()):
                held = sum(n for hold in self.holds for p, n in hold.drawn or () if p is part)
                take = min(part.used - part.used_before - held, left)
                if take > 0 and part.used <= part.amount:
                    part.used -= take
                    part.left += take
                    left -= take
        if left:
            self.grant(Part(left, now, now, now + PERIOD), now)
