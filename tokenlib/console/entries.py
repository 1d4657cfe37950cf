"""The ledger of an organization: filters in the URL, page by page, and as a file."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from tokenlib.console import actions, exporting, tables
from tokenlib.console.actions import Desk
from tokenlib.domain import plain
from tokenlib.reports.asking import MAX_ROWS
from tokenlib.reports.wallets import EntryRow

ROWS = 50
CLICK = "ledger_action"
BEFORE = "ledger_before"
KINDS = (
    "charge",
    "grant",
    "grant_scheduled",
    "grant_expired",
    "refresh",
    "plan_change",
    "refund",
    "reserve",
    "release",
    "hold_expired",
    "top_up",
    "opening",
    "finding_settled",
)
_FIELDS = [
    "created_at",
    "token_type",
    "kind",
    "feature",
    "actor",
    "balance_change",
    "reserved_change",
    "used_change",
    "balance_after",
    "waived",
    "reason",
]


def draw(desk: Desk) -> None:
    """The filters, one page of entries, the way to older ones, and the export."""
    people = {row.user_id: row.user for row in desk.person.reports.members(desk.organization_id)}
    ask = partial(desk.person.reports.ledger, desk.organization_id, **_filters(desk))
    owner, before = st.session_state.get(BEFORE, (None, []))
    if owner != desk.organization_id:
        before = []
    st.session_state[BEFORE] = (desk.organization_id, before)
    rows = ask(limit=ROWS + 1, before=before[-1] if before else None)
    if not rows:
        st.caption("No entry matches. Clear a filter.")
        return
    names = {str(user): name for user, name in people.items()}
    _table(desk, rows[:ROWS], names)
    with st.container(horizontal=True, vertical_alignment="center"):
        if before and st.button("Newer", icon=":material/arrow_back:", key="ledger_newer"):
            before.pop()
            st.rerun()
        if len(rows) > ROWS and st.button(
            "Older", icon=":material/arrow_forward:", key="ledger_older"
        ):
            before.append(rows[ROWS - 1])
            st.rerun()
        st.download_button(
            "Export CSV",
            data=lambda: exporting.csv(_frame(ask(limit=MAX_ROWS), names)),
            file_name=f"ledger-{desk.organization_id}.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
            help=f"What the filters leave, up to {MAX_ROWS:,} entries, times in UTC.",
        )


def _filters(desk: Desk) -> dict[str, Any]:
    context = desk.context
    with st.container(horizontal=True, vertical_alignment="bottom"):
        token_type = st.selectbox(
            "Token type",
            context.catalog.token_types,
            index=None,
            key="token_type",
            bind="query-params",
            placeholder="Every type",
            format_func=context.token_type,
            on_change=_first,
            width=180,
        )
        kind = st.selectbox(
            "Entry",
            KINDS,
            index=None,
            key="entry",
            bind="query-params",
            placeholder="Every entry",
            format_func=tables.word,
            on_change=_first,
            width=170,
        )
        feature = st.selectbox(
            "AI feature",
            list(context.catalog.features),
            index=None,
            key="feature_used",
            bind="query-params",
            placeholder="Every feature",
            format_func=context.feature,
            on_change=_first,
            width=180,
        )
        until = st.date_input(
            "Up to",
            value=None,
            key="up_to",
            bind="query-params",
            format="DD/MM/YYYY",
            on_change=_first,
            width=150,
            help="The end of this day, in your time zone.",
        )
    end = until and datetime.combine(until + timedelta(days=1), time(), context.zone)
    return {"token_type": token_type, "kind": kind, "feature": feature, "until": end}


def _first() -> None:
    st.session_state.pop(BEFORE, None)


def _table(desk: Desk, rows: list[EntryRow], names: dict[str, str]) -> None:
    data = tables.frame(rows, _FIELDS, desk.context)
    data["actor"] = [names.get(row.actor or "", row.actor) for row in rows]
    columns: dict[str, Any] = {
        "created_at": tables.time("When", desk.context.zone),
        "token_type": "Token type",
        "kind": "Entry",
        "feature": "Feature",
        "actor": "Who",
        "balance_change": tables.number("Change"),
        "reserved_change": tables.number("Held"),
        "used_change": tables.number("Used"),
        "balance_after": tables.number("Balance after"),
        "waived": tables.number("Waived", note="Let through by the switch, without a charge."),
        "reason": "Reason",
    }
    if desk.admin:
        data["action"] = [
            "Refund" if row.kind == "charge" and row.used_change else None for row in rows
        ]
        columns["action"] = st.column_config.ButtonColumn("Action", key=CLICK)
    tables.show(data, columns, "Entries of the books, the latest first")
    click = st.session_state.get(CLICK)
    if click is not None and 0 <= click["row"] < len(rows):
        actions.ask("refund", desk.organization_id, rows[click["row"]].id)


def _frame(rows: list[EntryRow], names: dict[str, str]) -> pd.DataFrame:
    lines = [
        {
            "id": str(row.id),
            **{name: plain(getattr(row, name)) for name in _FIELDS},
            "actor_name": names.get(row.actor or ""),
        }
        for row in rows
    ]
    return pd.DataFrame(lines)
