"""What happened today: made with the real verbs, on the facade that everybody uses.

Only what lies outside the books is done in SQL: the plan that a billing system edits.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID

from tokenlib.db import statements
from tokenlib.demo.cast import PERSONAS, SCENARIOS
from tokenlib.demo.owner import Owner
from tokenlib.demo.people import Organization
from tokenlib.errors import AlreadyRefunded, InProgress, Refused
from tokenlib.tokens import Tokens

_ADMIN = str(PERSONAS["admin"].user_id)
_SUPPORT = str(PERSONAS["support"].user_id)
_YEAR = timedelta(days=365)
_GIFT_LIFE = timedelta(hours=36)
_SETTLED = {
    "used_differs_from_log": "Compared with the invoices: the balance stays, the log is right",
    "log_of_deleted_users": "The users left the company; their rows stay for the totals",
}


def make(connection: Owner, tokens: Tokens, known: list[Organization], now: datetime) -> None:
    """Make every situation of today. Repeating it after an interruption does no harm."""
    by_name = {o.role.situation: o for o in known if o.role.situation}
    _grants(tokens, by_name, now)
    _refunds(connection, tokens, by_name["refunds"].id)
    _refusals(tokens, by_name)
    _switch(tokens, by_name["was_suspended"], now)
    _settle(connection, tokens)
    _holds(tokens, by_name)
    connection.execute(
        statements("situations", "demo")["edit_plan"],
        {"organization_id": by_name["plan_changed_outside"].id, "plan": "enterprise"},
    )


def _grants(tokens: Tokens, by_name: dict[str, Organization], now: datetime) -> None:
    tokens.grant(
        by_name["pack"].id,
        "shared",
        500,
        kind="purchase",
        source="pack_500",
        expires_at=now + _YEAR,
        actor="billing",
        idempotency_key="demo pack",
    )
    tokens.grant(
        by_name["gift"].id,
        "goal_generation",
        10,
        kind="gift",
        source="trial of the new quests",
        expires_at=now + _GIFT_LIFE,
        actor=_SUPPORT,
        reason="Ten tokens to try the new quests",
        idempotency_key="demo gift",
    )


def _holds(tokens: Tokens, by_name: dict[str, Organization]) -> None:
    """A hold that lives for a day, and one whose caller never came back."""
    live, expired = by_name["live_hold"], by_name["expired_hold"]
    with suppress(InProgress):
        tokens.reserve(
            live.id,
            live.members[0].id,
            "analyze_strategy",
            idempotency_key="demo live hold",
            hold_for=timedelta(days=1),
        )
    tokens.reserve(
        expired.id, expired.members[0].id, "generate_leads", hold_for=timedelta(milliseconds=1)
    )


def _refunds(connection: Owner, tokens: Tokens, organization: UUID) -> None:
    """One charge of this period and one of an earlier period."""
    for current in (True, False):
        rows = connection.execute(
            statements("situations", "demo")["usage_to_refund"],
            {"organization_id": organization, "current": current},
        )
        for row in rows.fetchall():
            with suppress(AlreadyRefunded):
                tokens.refund(
                    row["id"],
                    "The strategy was built on last year's figures",
                    organization=organization,
                    actor=_ADMIN,
                )


def _refusals(tokens: Tokens, by_name: dict[str, Organization]) -> None:
    """One fresh refusal of each kind; the older ones come with the history."""
    for name in ("starter", "empty", "paused", "payment_failed"):
        scenario = SCENARIOS[name]
        with suppress(Refused):
            tokens.deduct_tokens(scenario.organization_id, scenario.colleague_id, "generate_goal")
    burst = by_name["burst"]
    with suppress(Refused):
        tokens.deduct_tokens(burst.id, burst.members[0].id, "generate_insight")
    heavy = by_name["heavy"]
    with suppress(Refused):
        tokens.deduct_tokens(heavy.id, heavy.members[0].id, "generate_leads", units=3, limits=True)


def _switch(tokens: Tokens, organization: Organization, now: datetime) -> None:
    """A charge that the switch let through; the switch is back as it was."""
    tokens.set_mode(
        "log_only",
        organization.id,
        until=now + timedelta(hours=1),
        actor=_ADMIN,
        reason="While their suspension is looked into",
    )
    tokens.deduct_tokens(
        organization.id,
        organization.members[0].id,
        "analyze_strategy",
        idempotency_key="demo switch",
    )
    # Over at once, and in an hour what holds for everyone holds for them too.
    tokens.set_mode(
        "enforce",
        organization.id,
        until=now + timedelta(hours=1),
        actor=_ADMIN,
        reason="Looked into",
    )


def _settle(connection: Owner, tokens: Tokens) -> None:
    """Two kinds of findings are settled, the others wait for somebody."""
    rows = connection.execute(statements("situations", "demo")["open_findings"]).fetchall()
    for row in rows:
        if row["kind"] in _SETTLED:
            tokens.settle_finding(
                row["organization_id"], row["id"], actor=_ADMIN, reason=_SETTLED[row["kind"]]
            )
