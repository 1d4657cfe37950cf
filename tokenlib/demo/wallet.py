"""A wallet of the history: the figures and entries that the gate's own functions would have left.

The same arithmetic as `sql/functions`, in memory: opening, charge, refund, top-up, grant, refresh;
numbers, balance after, grants drawn in burn order, and both hash chains. `tokens.verify` recomputes
all of it in the database, so a difference between the two is found at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

from tokenlib.demo.chance import draw_id
from tokenlib.demo.moments import readable, text

Value = str | int | None
Values = tuple[Value, ...]
Document = Mapping[str, str | int | None]

_VERSION = 1


@dataclass(slots=True)
class Grant:
    """A row of ai_token_grants."""

    id: str
    kind: str
    source: str
    amount: int
    remaining: int
    effective_at: int
    arrived_at: int
    expires_at: int
    used: int = 0
    used_before: int = 0
    closed_at: int | None = None


@dataclass(slots=True)
class Wallet:
    """One wallet while its history is played. Times are microseconds and never run backwards."""

    organization_id: str
    token_type: str
    plan: str
    allowance: int | None  # None: unlimited
    period: int
    block: int  # by how much an unlimited wallet is topped up
    random: Random
    log: Callable[[Values], object]  # takes each charge; kept nowhere, since there are many
    id: str = ""
    balance: int = 0
    used: int = 0
    pending: int = 0
    opened_at: int = 0
    refresh_at: int = 0
    last_entry_at: int = 0
    last_used_at: int | None = None
    log_number: int = 0
    event_number: int = 0
    log_hash: bytes = b""
    event_hash: bytes = b""
    grants: list[Grant] = field(default_factory=list)
    events: list[Values] = field(default_factory=list)

    def open(self, at: int) -> None:
        """The first entry, with the plan's allowance; `shared` has none."""
        self.id = draw_id(self.random)
        self.opened_at = at
        self.refresh_at = at + self.period
        subject = None
        if self.token_type != "shared":
            subject = self._allow(at, self._given())
        self._event(
            "opening",
            at,
            balance=self._given(),
            subject=subject,
            reason=f"opened on plan {self.plan}",
            data={"plan": self.plan, **self._terms()},
        )

    def charge(
        self, at: int, user: str, feature: str, cost: int, metadata: Document | None = None
    ) -> str:
        """Charge a feature and return the entry's id; the caller knows that the balance pays."""
        at = max(at, self.last_entry_at)
        self.balance -= cost
        self.used += cost
        self.pending += cost
        self.log_number += 1
        self.last_entry_at = self.last_used_at = at
        entry = draw_id(self.random)
        document = None if metadata is None else stored(metadata)
        digest = None if document is None else sha256(document.encode()).hexdigest()
        # Written out: this line runs for every charge, and json.dumps takes five times as long.
        hashed = (
            f'[{_VERSION}, "{entry}", "{self.organization_id}", "{self.token_type}",'
            f' {self.log_number}, "{user}", "{feature}", 1, {cost}, 0, {self.balance}, null, 0, 0,'
            f" null, null, {json.dumps(digest)}, {at}]"
        )
        self.log_hash = sha256(self.log_hash + hashed.encode()).digest()
        self.log(
            (
                entry,
                self.organization_id,
                user,
                self.token_type,
                feature,
                cost,
                self.balance,
                document,
                text(at),
                self.log_number,
                1,
                0,
                0,
                0,
                _bytes(digest),
                _VERSION,
                _bytes(self.log_hash.hex()),
            )
        )
        return entry

    def refund(
        self, at: int, usage: str, user: str, feature: str, cost: int, actor: str, reason: str
    ) -> None:
        """Give back the charge just made, whose tokens still wait to be drawn."""
        self.pending -= cost
        data: Document = {"feature": feature, "user_id": user}
        self._event(
            "refund",
            at,
            balance=cost,
            used=-cost,
            actor=actor,
            reason=reason,
            subject=usage,
            data=data,
        )

    def top_up(self, at: int, missing: int) -> None:
        """Another block for an unlimited wallet."""
        block = max(self.block, missing)
        for grant in self.grants:
            if grant.kind == "allowance" and grant.closed_at is None:
                grant.amount += block
                grant.remaining += block
        self._event("top_up", at, balance=block, reason="unlimited allowance")

    def buy(self, at: int, source: str, tokens: int, expires_at: int, actor: str) -> None:
        """Add a purchase."""
        self.draw()
        at = max(at, self.last_entry_at)
        grant = Grant(draw_id(self.random), "purchase", source, tokens, tokens, at, at, expires_at)
        self.grants.append(grant)
        data: Document = {"kind": "purchase", "amount": tokens, "source": source}
        data = {**data, "expires_at": readable(expires_at)}
        self._event("grant", at, balance=tokens, actor=actor, subject=grant.id, data=data)

    def refresh(self, at: int) -> None:
        """End the period that was due before `at`, and begin the next."""
        self.draw()
        at = max(at, self.last_entry_at)
        due = self.refresh_at
        periods = (at - due) // self.period + 1
        lapsed = 0
        for grant in self.grants:
            if grant.kind == "allowance" and grant.closed_at is None:
                lapsed += grant.remaining
                grant.remaining, grant.closed_at = 0, at
            elif grant.closed_at is None:
                grant.used_before = grant.used
        self.refresh_at += periods * self.period
        if self.token_type != "shared":
            self._allow(at, self._given())
        granted = self._given()
        self._event(
            "refresh",
            at,
            balance=granted - lapsed,
            used=-self.used,
            effective=due,
            data={"lapsed": lapsed, "granted": granted, "periods": periods, **self._terms()},
        )

    def draw(self) -> None:
        """Burn what waits: soonest to expire, then oldest."""
        for grant in sorted(self.grants, key=lambda g: (g.expires_at, g.arrived_at, g.id)):
            if grant.closed_at is None and self.pending:
                taken = min(grant.remaining, self.pending)
                grant.used += taken
                grant.remaining -= taken
                self.pending -= taken

    def row(self) -> Values:
        """The wallet's row, in the order of `stage_wallets`."""
        expiries = [g.expires_at for g in self.grants if g.closed_at is None]
        entry, due = text(self.last_entry_at), min(self.refresh_at, *expiries)
        return (
            self.id,
            self.organization_id,
            self.token_type,
            self.balance,
            self.balance + self.used,
            self.used,
            text(self.refresh_at),
            None if self.last_used_at is None else text(self.last_used_at),
            text(self.opened_at),
            entry,
            text(self.refresh_at - self.period),
            self.plan,
            self.allowance,
            self.pending,
            text(due),
            self.log_number,
            _bytes(self.log_hash.hex()),
            self.event_number,
            _bytes(self.event_hash.hex()),
            entry,
        )

    def grant_rows(self) -> list[Values]:
        """Its grants, in the order of `stage_grants`."""
        return [
            (
                g.id,
                self.organization_id,
                self.token_type,
                g.kind,
                g.source,
                g.amount,
                g.used,
                g.used_before,
                g.remaining,
                text(g.arrived_at),
                text(g.effective_at),
                text(g.arrived_at),
                text(g.expires_at),
                None if g.closed_at is None else text(g.closed_at),
            )
            for g in self.grants
        ]

    def _terms(self) -> Document:
        return {
            "allowance": self.allowance,
            "period_start": readable(self.refresh_at - self.period),
            "refresh_date": readable(self.refresh_at),
        }

    def _given(self) -> int:
        return self.block if self.allowance is None else self.allowance

    def _allow(self, at: int, tokens: int) -> str:
        grant = Grant(
            draw_id(self.random),
            "allowance",
            f"plan {self.plan}",
            tokens,
            tokens,
            self.refresh_at - self.period,
            at,
            self.refresh_at,
        )
        self.grants.append(grant)
        return grant.id

    def _event(
        self,
        kind: str,
        at: int,
        *,
        balance: int = 0,
        used: int = 0,
        actor: str = "system",
        reason: str | None = None,
        subject: str | None = None,
        effective: int | None = None,
        data: Document | None = None,
    ) -> None:
        at = max(at, self.last_entry_at)
        effective = at if effective is None else effective
        self.balance += balance
        self.used += used
        self.event_number += 1
        self.last_entry_at = at
        entry = draw_id(self.random)
        ordered = _ordered(data or {})
        hashed = (
            _VERSION,
            entry,
            self.organization_id,
            self.token_type,
            self.event_number,
            self.log_number,
            kind,
            balance,
            0,
            used,
            self.balance,
            effective,
            at,
            actor,
            reason,
            subject,
            None,
            None,
            ordered,
        )
        self.event_hash = sha256(self.event_hash + json.dumps(hashed).encode()).digest()
        self.events.append(
            (
                entry,
                self.organization_id,
                self.token_type,
                self.event_number,
                self.log_number,
                kind,
                balance,
                0,
                used,
                self.balance,
                text(effective),
                text(at),
                actor,
                reason,
                subject,
                json.dumps(ordered),
                _VERSION,
                _bytes(self.event_hash.hex()),
            )
        )


def stored(document: Document) -> str:
    """A document as jsonb prints it. Keys and texts are ASCII without controls."""
    return json.dumps(_ordered(document))


def _ordered(document: Document) -> dict[str, str | int | None]:
    # jsonb keeps keys by length, then by bytes.
    return {key: document[key] for key in sorted(document, key=lambda k: (len(k), k))}


def _bytes(digits: str | None) -> str | None:
    """Hexadecimal digits as the database reads bytes."""
    return None if digits is None else f"\\x{digits}"
