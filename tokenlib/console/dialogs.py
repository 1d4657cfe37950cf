"""The dialogs of staff actions on an organization. The database decides what each person may do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, time, timedelta
from typing import Literal, cast
from uuid import UUID

import streamlit as st

from tokenlib.console import acting, actions, cards, numbers, session
from tokenlib.console import format as fmt
from tokenlib.console.actions import Desk
from tokenlib.domain import OrganizationStatus
from tokenlib.errors import ReservationOver

Kind = Literal["gift", "purchase", "adjustment"]
KINDS: Mapping[Kind, str] = {
    "gift": "Gift",
    "purchase": "Purchase",
    "adjustment": "Adjustment",
}
_DISMISSED = actions.close


def draw(desk: Desk) -> None:
    """Open the dialog that was asked for, if any."""
    asked = actions.asked(desk)
    if asked is None:
        return
    match asked.action, asked.subject:
        case "grant", None:
            grant(desk)
        case "plan", None:
            change_plan(desk)
        case "status", None:
            set_status(desk)
        case "user", UUID() as user:
            pause_user(desk, user)
        case "refund", UUID() as usage:
            refund(desk, usage)
        case "release", UUID() as hold:
            release(desk, hold)
        case _:
            actions.close()


@st.dialog("Grant tokens", icon=":material/add_circle:", on_dismiss=_DISMISSED)
def grant(desk: Desk) -> None:
    """Add tokens: a gift at once from support, up to the day's limit; anything from an admin."""
    context, tokens = desk.context, session.tokens()
    token_type = st.selectbox(
        "Token type",
        context.catalog.token_types,
        key="grant_type",
        format_func=context.token_type,
        help="Purchased packs pay for every feature.",
    )
    amount = numbers.whole("Tokens", 1, 1_000_000, 10, "grant_amount")
    kind: Kind = "gift"
    if desk.admin:
        kind = st.segmented_control(
            "Kind",
            list(KINDS),
            default="gift",
            required=True,
            key="grant_kind",
            format_func=lambda name: KINDS[cast(Kind, name)],
        )
    expires = _expiry(desk)
    if amount is None:
        return
    if actions.preview(
        lambda: tokens.preview_grant(
            desk.person.user_id,
            desk.organization_id,
            token_type,
            amount,
            kind=kind,
            expires_at=expires,
        ),
        context,
    ):
        request = (desk.organization_id, token_type, amount, kind, expires)

        def act(reason: str) -> None:
            tokens.staff_grant(
                desk.person.user_id,
                desk.organization_id,
                token_type,
                amount,
                kind=kind,
                source=f"console: {KINDS[kind].lower()}",
                expires_at=expires,
                reason=reason,
                idempotency_key=acting.key_for("grant", request),
            )
            acting.done("grant")

        actions.confirm(
            desk,
            f"Grant {fmt.count(amount, 'token')}",
            act,
            f"{fmt.count(amount, 'token')} granted: {context.token_type(token_type)}.",
        )


@st.dialog("Change plan", icon=":material/swap_horiz:", on_dismiss=_DISMISSED)
def change_plan(desk: Desk) -> None:
    """Move to another plan."""
    plans = [plan for plan in desk.context.catalog.plans if plan != desk.organization.plan]
    plan = st.segmented_control(
        f"From {(desk.organization.plan or 'no plan').capitalize()} to",
        plans,
        default=plans[-1],
        required=True,
        key="plan_to",
        format_func=str.capitalize,
    )
    st.caption("The new allowance less what this period has used. Purchases stay; nothing refills.")
    tokens = session.tokens()
    if actions.preview(
        lambda: tokens.preview_plan_change(desk.person.user_id, desk.organization_id, plan),
        desk.context,
    ):
        actions.confirm(
            desk,
            f"Change to {plan.capitalize()}",
            lambda reason: tokens.staff_change_plan(
                desk.person.user_id, desk.organization_id, plan, reason=reason
            ),
            f"Plan changed to {plan.capitalize()}.",
        )


@st.dialog("Pause or resume", icon=":material/pause_circle:", on_dismiss=_DISMISSED)
def set_status(desk: Desk) -> None:
    """Switch AI off for an organization, or on again."""
    row = desk.organization
    others = [status for status in cards.STATUS if status != row.status]
    status = st.segmented_control(
        "State",
        others,
        default="suspended" if row.status == "active" else "active",
        required=True,
        key="status_to",
        format_func=lambda name: cards.STATUS[name][0],
    )
    people = fmt.people(row.members)
    with st.container(border=True, gap="small"):
        st.markdown("**What it changes**")
        if status == "active":
            st.markdown(f"AI features run again for {people}.")
        else:
            st.markdown(f"AI features stop at once for {people}.")
        st.caption(
            f"No balance changes: {fmt.count(row.balance, 'token')} left,"
            f" {fmt.number(row.reserved)} held."
        )
    actions.confirm(
        desk,
        f"Set to {cards.STATUS[status][0].lower()}",
        lambda reason: session.tokens().staff_set_status(
            desk.person.user_id,
            desk.organization_id,
            cast(OrganizationStatus, status),
            reason=reason,
        ),
        f"State set to {cards.STATUS[status][0].lower()}.",
    )


@st.dialog("Pause or resume a person", icon=":material/person_off:", on_dismiss=_DISMISSED)
def pause_user(desk: Desk, user: UUID) -> None:
    """Switch AI off for one person, or on again."""
    member = next(
        (row for row in desk.person.reports.members(desk.organization_id) if row.user_id == user),
        None,
    )
    if member is None:
        st.info("This person is no longer a member.", icon=":material/person_off:")
        return
    pause = member.paused_at is None
    with st.container(border=True, gap="small"):
        st.markdown("**What it changes**")
        effect = "stop at once" if pause else "run again"
        st.markdown(f"AI features {effect} for {fmt.plain(member.user)} alone.")
        st.caption("No balance changes, and colleagues go on.")
    actions.confirm(
        desk,
        "Pause" if pause else "Resume",
        lambda reason: session.tokens().staff_pause_user(
            desk.person.user_id, desk.organization_id, user, pause, reason=reason
        ),
        f"{member.user} {'paused' if pause else 'resumed'}.",
    )


@st.dialog("Refund a charge", icon=":material/undo:", on_dismiss=_DISMISSED)
def refund(desk: Desk, usage: UUID) -> None:
    """Give back one charge."""
    tokens = session.tokens()
    if actions.preview(
        lambda: tokens.preview_refund(desk.person.user_id, usage, desk.organization_id),
        desk.context,
    ):
        actions.confirm(
            desk,
            "Refund",
            lambda reason: tokens.staff_refund(
                desk.person.user_id, usage, desk.organization_id, reason=reason
            ),
            "Charge given back.",
        )


@st.dialog("Release a hold", icon=":material/lock_open:", on_dismiss=_DISMISSED)
def release(desk: Desk, hold: UUID) -> None:
    """End an open hold and give its tokens back."""
    rows = desk.person.reports.reservations(organization_id=desk.organization_id)
    found = next((row for row in rows if row.id == hold), None)
    if found is None:
        st.info("This hold is over already.", icon=":material/lock_open:")
        return
    context = desk.context
    with st.container(border=True, gap="small"):
        st.markdown("**What it changes**")
        st.markdown(
            f"{fmt.count(found.tokens, 'token')} held for {context.feature(found.feature)} by"
            f" {fmt.plain(found.user)} go back to {context.token_type(found.token_type)}."
        )
        if found.expired:
            st.caption("It is past its expiry: the books note that, and not your reason.")
        else:
            st.caption("A request that still runs can then no longer be charged.")

    def act(reason: str) -> None:
        try:
            session.tokens().staff_release(
                desk.person.user_id, hold, desk.organization_id, reason=reason
            )
        except ReservationOver as over:
            if over.state != "expired":
                raise  # an expired hold has given its tokens back by being touched

    actions.confirm(
        desk,
        "Release",
        act,
        f"{fmt.count(found.tokens, 'token')} released.",
    )


def _expiry(desk: Desk) -> datetime | None:
    """The end of the day that the person chose, in their time zone; None: they stay."""
    zone = desk.context.zone
    today = desk.context.now.astimezone(zone).date()
    day = st.date_input(
        "Expires at the end of",
        value=None,
        min_value=today,
        max_value=today + timedelta(days=3650),
        key="grant_expires",
        format="DD/MM/YYYY",
        help="Empty: they stay until they are used. A refresh and a plan change keep them.",
    )
    return None if day is None else datetime.combine(day, time.max, zone).replace(microsecond=0)
