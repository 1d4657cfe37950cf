"""The top of an organization's page: who it is, what staff may do, what was just done, balances."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import streamlit as st

from tokenlib.console import actions, cards, notices, tables
from tokenlib.console import format as fmt
from tokenlib.console.actions import Desk, Place
from tokenlib.console.format import Context
from tokenlib.reports.settings import ChangeRow

_ENTRIES = 20
_SUBJECTS = ("feature", "plan", "token_type", "email", "name")
"""What a change is about, where it did not change itself."""
_IDS = ("id", "user_id")


def head(desk: Desk) -> None:
    """Name, plan and state, and what the state means for its people."""
    row, context = desk.organization, desk.context
    cards.organization(row)
    used = (
        "never used" if row.last_used_at is None else f"last use {context.time(row.last_used_at)}"
    )
    people = fmt.people(row.members)
    st.caption(f"`{row.organization_id}` · {people} · {used}")
    notices.state(row)


def buttons(desk: Desk) -> None:
    """What this person may start. The database decides again when they confirm."""
    organization_id = desk.organization_id
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Grant tokens" if desk.admin else "Give goodwill tokens",
            key="ask_grant",
            icon=":material/add_circle:",
            type="primary",
            on_click=actions.ask,
            args=("grant", organization_id),
        )
        if not desk.admin:
            st.caption(f"{today(desk)} Plan, state and refunds are for admins.", width="content")
            return
        st.button(
            "Change plan",
            key="ask_plan",
            icon=":material/swap_horiz:",
            on_click=actions.ask,
            args=("plan", organization_id),
        )
        active = desk.organization.status == "active"
        st.button(
            "Pause" if active else "Resume",
            key="ask_status",
            icon=":material/pause_circle:" if active else ":material/play_circle:",
            on_click=actions.ask,
            args=("status", organization_id),
        )


def today(desk: Desk) -> str:
    """What this person may still give today; nothing for who has no limit."""
    row = next(
        (row for row in desk.person.reports.staff() if row.user_id == desk.person.user_id), None
    )
    if row is None or row.left_today is None:
        return ""
    return f"{fmt.number(row.left_today)} of {fmt.count(row.grants_per_day, 'token')} left today."


def done(place: Place) -> None:
    """What this person just did here, with its entry in the books."""
    last = st.session_state.get(actions.DONE)
    if not isinstance(last, actions.Done) or last.organization_id != place.organization_id:
        return
    st.success(fmt.plain(last.sentence), title="Done", icon=":material/check_circle:")
    rows = [
        row
        for row in place.person.reports.changes(
            place.organization_id, actor=str(place.person.user_id), limit=_ENTRIES
        )
        if row.created_at >= last.since
    ]
    if rows:
        data = tables.frame(rows, ["created_at", "action", "actor_name", "reason"], place.context)
        data["effect"] = [effect(row, place.context) for row in rows]
        tables.show(
            data,
            {
                "created_at": tables.time("When", place.context.zone),
                "action": "Entry",
                "effect": "What changed",
                "actor_name": "By",
                "reason": "Reason",
            },
            "The entry of what was just done, as it stands in the books",
        )


def effect(row: ChangeRow, context: Context) -> str:
    """Before and after of a change; of a wallet entry, the tokens and the balance after it."""
    before, after = row.before or {}, row.after or {}
    if "balance_after" in after:
        change = fmt.signed(after["balance_change"]) if after["balance_change"] else "unchanged"
        return (
            f"{context.token_type(after['token_type'])}: {change},"
            f" balance {fmt.number(after['balance_after'])}"
        )
    if row.after is None:
        return f"Taken away: {_list(before, context)}"
    if row.before is None:
        return _list(after, context)
    about = [str(after[name]) for name in _SUBJECTS if after.get(name, before) == before.get(name)]
    changed = [
        f"{_label(name)}: {_said(before.get(name), context)} → {_said(value, context)}"
        for name, value in after.items()
        if before.get(name) != value and name not in _IDS
    ]
    return " · ".join(part for part in (", ".join(about), ", ".join(changed)) if part)


def _list(values: Mapping[str, object], context: Context) -> str:
    return ", ".join(
        f"{_label(name)} {_said(value, context)}"
        for name, value in values.items()
        if name not in _IDS
    )


def _label(name: str) -> str:
    return name.replace("_", " ")


def _said(value: object, context: Context) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return fmt.number(value)
    try:
        return context.time(datetime.fromisoformat(str(value)))
    except ValueError:
        return str(value)


def balances(desk: Desk) -> None:
    """A card for each wallet."""
    rows = desk.person.reports.wallets(desk.organization_id)
    if rows:
        cards.wallets(rows, desk.context, desk.person.reports.grants(desk.organization_id))
    else:
        cards.empty(
            "No wallet yet. Its wallets are made at its first use, or by `tokenlib initialize`."
        )
