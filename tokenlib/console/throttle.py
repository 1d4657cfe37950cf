"""Slowing an organization down or pausing a person, from a list of spenders."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal
from typing import Any

import pandas as pd
import streamlit as st

from tokenlib.console import actions, dialogs, office, session, tables
from tokenlib.console import format as fmt
from tokenlib.console.actions import Desk
from tokenlib.console.format import Context
from tokenlib.console.session import Person
from tokenlib.domain import Limits
from tokenlib.reports.settings import ChangeRow

ACTION = "throttle"
NAMES = {
    "requests_per_minute": "Requests a minute",
    "seconds_between_requests": "Seconds between requests",
    "tokens_per_request": "Tokens a request",
    "output_units_per_request": "Output units a request",
    "alert_tokens_per_hour": "Alert at tokens an hour",
    "failed_attempts": "Failed attempts until blocked",
}
ASKED = (
    "requests_per_minute",
    "seconds_between_requests",
    "tokens_per_request",
    "output_units_per_request",
    "failed_attempts",
)
"""The limits that slow people down or stop them; the others stay as they are."""

_SHOWN = 5


def draw(person: Person, context: Context) -> None:
    """Open the dialog that was asked for on this page, if any."""
    asked = st.session_state.get(actions.OPEN)
    if not isinstance(asked, actions.Asked) or asked.action not in (ACTION, "user"):
        return
    organization_id = asked.organization_id
    row = person.reports.organization(organization_id) if organization_id else None
    if row is None:
        actions.close()
        return
    desk = Desk(person, row, context)
    if asked.action == ACTION:
        throttle(desk)
    else:
        dialogs.draw(desk)


def done(person: Person, context: Context) -> None:
    """What this person just did, with its entry."""
    last = st.session_state.get(actions.DONE)
    if not isinstance(last, actions.Done):
        return
    st.success(fmt.plain(last.sentence), title="Done", icon=":material/check_circle:")
    rows = [
        row
        for row in person.reports.changes(
            last.organization_id, actor=str(person.user_id), limit=_SHOWN
        )
        if row.created_at >= last.since
    ]
    if rows:
        columns = {
            "created_at": tables.time("When", context.zone),
            "organization": "Organization",
            "action": "Action",
            "actor_name": "By",
            "reason": "Reason",
            "changed": "Afterwards",
        }
        data = tables.frame(rows, [name for name in columns if name != "changed"], context)
        data["changed"] = [_changed(row) for row in rows]
        tables.show(data, columns, "The entry of what was just done")


@st.dialog("Throttle", icon=":material/speed:", on_dismiss=actions.close)
def throttle(desk: Desk) -> None:
    """Limits of an organization's own, in place of those of everyone."""
    known = {row.organization_id: row.limits for row in desk.person.reports.limits()}
    everyone = known.get(None, Limits(None, None, None, None, None, None))
    own = known.get(desk.organization_id)
    present = own or everyone
    st.markdown(
        f"Each person of **{fmt.plain(desk.organization.name)}** is held to these limits, in the"
        " console and with member tokens in the API. Nothing else changes."
    )
    lift = own is not None and st.toggle(
        "Back to the limits of everyone", key="throttle_lift", help="Takes its own limits away."
    )
    new = everyone if lift else _chosen(present)
    lines = [
        (label, _said(getattr(present, name)), _said(getattr(new, name)))
        for name, label in NAMES.items()
    ]
    tables.show(
        pd.DataFrame(lines, columns=["limit", "now", "then"]),
        {"limit": "Limit", "now": "Now", "then": "Afterwards"},
        "The limits of the organization before and after",
    )
    actions.confirm(
        desk,
        "Take its limits away" if lift else "Throttle",
        lambda reason: session.tokens().staff_set_limits(
            desk.person.user_id, desk.organization_id, None if lift else new, reason=reason
        ),
        f"{desk.organization.name} {'is held to the limits of everyone' if lift else 'throttled'}.",
    )


def _chosen(present: Limits) -> Limits:
    values = {field.name: getattr(present, field.name) for field in fields(Limits)}
    with st.grid(2, min_column_width=150):
        for name in ASKED:
            now = None if values[name] is None else int(values[name])
            value = office.limit(NAMES[name], now, f"throttle_{name}", most=1_000_000)
            values[name] = value if name != "seconds_between_requests" else value and Decimal(value)
    return Limits(**values)


def _said(value: Any) -> str:
    return "no limit" if value is None else fmt.number(value)


def _changed(row: ChangeRow) -> str:
    after = row.after or {}
    if "paused" in after:
        return "AI paused" if after["paused"] else "AI resumed"
    before = row.before or {}
    return ", ".join(
        f"{label.lower()} {_said(after[name])}"
        for name, label in NAMES.items()
        if name in after and after[name] != before.get(name)
    )
