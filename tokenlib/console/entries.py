"""The ledger of an organization: filters in the URL, page by page, and as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import pandas as pd
import streamlit as st

from tokenlib.console import actions, address, exporting, tables
from tokenlib.console import format as fmt
from tokenlib.console.actions import Desk
from tokenlib.domain import plain
from tokenlib.reports.asking import MAX_ROWS
from tokenlib.reports.wallets import EntryRow

ROWS = 50
CLICK = "ledger_action"
WIDTH = 148
"""Of a filter: six beside each other on a desk, two on a phone."""
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


class Place(NamedTuple):
    """An entry's place in the ledger, as it stands in the URL."""

    created_at: datetime
    token_type: str
    log_position: int
    event_position: int
    id: UUID

    @classmethod
    def of(cls, row: EntryRow) -> Place:
        """The place of an entry."""
        return cls(row.created_at, row.token_type, row.log_position, row.event_position, row.id)


def draw(desk: Desk) -> None:
    """The filters, one page of entries, the way to older ones, and the export."""
    people = names(desk)
    ask = partial(desk.person.reports.ledger, desk.organization_id, **_filters(desk, people))
    parts = address.place(address.moment, address.word, address.position, address.position, UUID)
    place = Place(*parts) if parts else None
    rows = ask(limit=ROWS + 1, before=place)
    if rows:
        _table(desk, rows[:ROWS], people)
    else:
        st.caption("No entry matches. Clear a filter.")
    with st.container(horizontal=True, vertical_alignment="center"):
        address.pages("ledger", place, Place.of(rows[ROWS - 1]) if len(rows) > ROWS else None)
        if rows:
            st.download_button(
                "Export CSV",
                data=lambda: exporting.csv(frame(ask(limit=MAX_ROWS), people)),
                file_name=f"ledger-{desk.organization_id}.csv",
                mime="text/csv",
                icon=":material/download:",
                on_click="ignore",
                help=f"What the filters leave, up to {fmt.number(MAX_ROWS)} entries, times in UTC.",
            )


def names(desk: Desk) -> dict[UUID, str]:
    """Who can stand behind an entry here: people of the organization, staff, former staff."""
    with desk.person.reports.together() as reports:
        members = {row.user_id: row.user for row in reports.members(desk.organization_id)}
        staff = {row.user_id: f"{row.full_name} ({row.role})" for row in reports.staff()}
        left = {one: f"{name} (was staff)" for one, name in reports.former_staff().items()}
    return {**members, **{one: name for one, name in (staff | left).items() if one not in members}}


def who(row: EntryRow, people: Mapping[UUID, str]) -> str | None:
    """Who caused an entry, by name where the id is known."""
    try:
        return people.get(UUID(row.actor or ""), row.actor)
    except ValueError:
        return "System" if row.actor == "system" else row.actor


def _filters(desk: Desk, people: Mapping[UUID, str]) -> dict[str, Any]:
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
            on_change=address.first_page,
            width=WIDTH,
        )
        kind = st.selectbox(
            "Entry",
            KINDS,
            index=None,
            key="entry",
            bind="query-params",
            placeholder="Every entry",
            format_func=tables.word,
            on_change=address.first_page,
            width=WIDTH,
        )
        feature = st.selectbox(
            "AI feature",
            list(context.catalog.features),
            index=None,
            key="feature_used",
            bind="query-params",
            placeholder="Every feature",
            format_func=context.feature,
            on_change=address.first_page,
            width=WIDTH,
        )
        person = address.choice("Person", people, "person", placeholder="Everybody", width=WIDTH)
        since, until = (
            st.date_input(
                label,
                value=None,
                key=key,
                bind="query-params",
                format="DD/MM/YYYY",
                on_change=address.first_page,
                width=WIDTH,
                help="In your time zone, this day included.",
            )
            for label, key in (("From", "from"), ("Up to", "up_to"))
        )
    return {
        "token_type": token_type,
        "kind": kind,
        "feature": feature,
        "user_id": person,
        "since": since and _midnight(since, desk),
        "until": until and _midnight(until + timedelta(days=1), desk),
    }


def _midnight(day: date, desk: Desk) -> datetime:
    return datetime.combine(day, time(), desk.context.zone)


def _table(desk: Desk, rows: Sequence[EntryRow], people: Mapping[UUID, str]) -> None:
    data = tables.frame(rows, _FIELDS, desk.context)
    data["actor"] = [who(row, people) for row in rows]
    data["waived"] = [row.waived or None for row in rows]
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
    for name in ("reserved_change", "waived"):  # most ledgers have neither
        if not data[name].any():
            del columns[name]
    data = data[list(columns)]
    if desk.admin:
        data["action"] = [
            "Refund" if row.kind == "charge" and row.used_change and not row.refunded else None
            for row in rows
        ]
        columns["action"] = tables.action(CLICK)
    tables.show(data, columns, "Entries of the books, the latest first")
    if (row := tables.clicked(CLICK, rows)) is not None:
        actions.ask("refund", desk.organization_id, row.id)


def frame(rows: Sequence[EntryRow], people: Mapping[UUID, str]) -> pd.DataFrame:
    """The entries as a file has them: as stored, times in UTC, with the name of who caused each."""
    lines = [
        {
            "id": str(row.id),
            **{name: plain(getattr(row, name)) for name in _FIELDS},
            "actor_name": who(row, people),
        }
        for row in rows
    ]
    return pd.DataFrame(lines)
