"""What people did: every change of settings, state or balance, page by page, and as a file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple
from uuid import UUID

import pandas as pd
import streamlit as st

from tokenlib.console import address, desk, exporting, links, tables
from tokenlib.console import format as fmt
from tokenlib.console.office import Office
from tokenlib.reports.asking import MAX_ROWS
from tokenlib.reports.settings import ChangeRow

ROWS = 25
ACTIONS = (
    "set_cost",
    "set_unit_size",
    "set_allowance",
    "set_limits",
    "set_parameters",
    "set_mode",
    "set_staff",
    "create_key",
    "rotate_key",
    "revoke_key",
    "set_request_limit",
    "set_status",
    "change_plan",
    "pause_user",
    "grant",
    "grant_scheduled",
    "refund",
    "release",
    "finding_settled",
    "erase_metadata",
)
_CLICK = "trail_click"


class Place(NamedTuple):
    """A change's place among all, as it stands in the URL."""

    created_at: datetime
    id: UUID


def draw(here: Office) -> None:
    """The filters, one page of changes, the way to older ones, and the export."""
    people = {row.user_id: row.full_name for row in here.person.reports.staff()}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        action = st.selectbox(
            "What",
            ACTIONS,
            index=None,
            key="action_filter",
            bind="query-params",
            placeholder="Every change",
            format_func=tables.word,
            on_change=address.first_page,
            width=190,
        )
        actor = address.choice("Who", people, "actor", placeholder="Everybody", width=190)
    parts = address.place(address.moment, UUID)
    place = Place(*parts) if parts else None
    by = None if actor is None else str(actor)
    ask = partial(here.person.reports.changes, action=action, actor=by)
    rows = ask(limit=ROWS + 1, before=place)
    if not rows:
        st.caption("No change matches. Clear a filter.")
        address.pages("trail", place, None)
        return
    tables.show(
        frame(here, rows[:ROWS]),
        {
            "created_at": tables.time("When", here.context.zone),
            "actor_name": "By",
            "action": "What",
            "organization": links.column(_CLICK),
            "effect": st.column_config.TextColumn("What changed", width=300),
            "reason": st.column_config.TextColumn("Reason", width=230),
        },
        "Changes, the latest first",
    )
    links.follow(_CLICK, [row.organization_id for row in rows])
    with st.container(horizontal=True):
        last = rows[:ROWS][-1]
        more = Place(last.created_at, last.id) if len(rows) > ROWS else None
        address.pages("trail", place, more)
        st.download_button(
            "Export CSV",
            data=lambda: exporting.csv(frame(here, ask(limit=MAX_ROWS))),
            file_name="changes.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
            help=f"What the filters leave, up to {fmt.number(MAX_ROWS)} changes.",
        )


def frame(here: Office, rows: Sequence[ChangeRow]) -> pd.DataFrame:
    """The rows as a table."""
    names = ["created_at", "actor_name", "action", "organization"]
    data = tables.frame(rows, names, here.context)
    data["effect"] = [desk.effect(row, here.context) for row in rows]
    data["reason"] = [row.reason for row in rows]
    return data
