"""The raw rows of the usage log: paged, opened, taken away as a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pandas as pd
import streamlit as st

from tokenlib.console import cards, links, narrowing, tables
from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.console.narrowing import Narrowed
from tokenlib.reports import Reports, neutralised
from tokenlib.reports.series import UsageRow

ROWS = 25
MOST_EXPORTED = 250_000
"""Rows that a file holds at most, the latest ones."""

_AT_ONCE = 10_000
_CLICK = "charge_organization"


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the log, as it stands in the URL."""

    created_at: datetime
    organization_id: UUID
    id: UUID

    @classmethod
    def read(cls, text: str) -> Place | None:
        """The place that `str` wrote; None for anything else."""
        try:
            moment, organization, charge = text.split("_")
            place = cls(datetime.fromisoformat(moment), UUID(organization), UUID(charge))
        except ValueError:
            return None
        return place if place.created_at.tzinfo else None

    def __str__(self) -> str:
        return f"{self.created_at.astimezone(UTC).isoformat()}_{self.organization_id}_{self.id}"


@dataclass(frozen=True, slots=True)
class Asked:
    """Which charges: those of a time, narrowed down."""

    since: datetime
    until: datetime
    narrowed: Narrowed

    def rows(self, reports: Reports, limit: int, before: Place | None = None) -> list[UsageRow]:
        """The charges, the latest first."""
        return reports.usage_rows(
            self.since,
            self.until,
            limit,
            before,
            organization_id=self.narrowed.organization_id,
            user_id=self.narrowed.user_id,
            feature=self.narrowed.feature,
            plan=self.narrowed.plan,
        )


def draw(reports: Reports, asked: Asked, context: Context) -> None:
    """One page of the charges, and the way to the older ones. The page is in the URL."""
    place = Place.read(st.query_params.get(narrowing.PLACE, ""))
    rows = asked.rows(reports, ROWS + 1, place)
    if not rows:
        cards.empty("No charge here. Choose a longer time, or take a filter away.")
        return
    shown = rows[:ROWS]
    table(shown, context, _CLICK)
    with st.container(horizontal=True, vertical_alignment="center"):
        if place is not None:
            st.button(
                "Latest",
                key="charges_latest",
                icon=":material/first_page:",
                on_click=narrowing.clear,
            )
        if len(rows) > ROWS:
            st.button(
                "Older",
                key="charges_older",
                icon=":material/chevron_right:",
                on_click=_turn,
                args=(shown[-1],),
            )
        _files(reports, asked)


def table(rows: list[UsageRow], context: Context, click: str, when: tables.Column = None) -> None:
    """Charges as a table; an organization's name opens it."""
    columns = {
        "created_at": when or tables.seconds("When", context.zone),
        "organization": links.column(click),
        "feature": "Feature",
        "tokens": tables.number("Tokens"),
        "became": st.column_config.TextColumn(
            "Note",
            help="Refunded: given back since. Waived: the switch let it through for nothing.",
        ),
        "user": "Person",
        "remaining_balance": tables.number("Left after it"),
    }
    data = tables.frame(rows, [name for name in columns if name != "became"], context)
    data["became"] = [became(row) for row in rows]
    tables.show(
        data[list(columns)], columns, "Charges of the usage log, the latest first, in tokens"
    )
    links.follow(click, [row.organization_id for row in rows])


def became(row: UsageRow) -> str:
    """What is special about a charge, in words."""
    words = [f"{fmt.number(row.waived)} waived"] if row.waived else []
    return ", ".join(words + ["refunded"] * row.refunded).capitalize()


def every(reports: Reports, asked: Asked) -> Iterator[UsageRow]:
    """All of them, page by page, up to what a file may hold."""
    place, left = None, MOST_EXPORTED
    while left:
        rows = asked.rows(reports, min(_AT_ONCE, left), place)
        yield from rows
        if len(rows) < _AT_ONCE:
            return
        left -= len(rows)
        place = _place(rows[-1])


def as_csv(reports: Reports, asked: Asked) -> bytes:
    """The charges as CSV, with the times in UTC; no cell is a formula to a spreadsheet."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for row in every(reports, asked):
        writer.writerow([neutralised(cell) for cell in _cells(row)])
    return text.getvalue().encode("utf-8-sig")


def as_parquet(reports: Reports, asked: Asked) -> bytes:
    """The charges as Parquet, with typed columns."""
    frame = pd.DataFrame([_cells(row) for row in every(reports, asked)], columns=_COLUMNS)
    frame["created_at"] = pd.to_datetime(frame["created_at"], utc=True)
    return frame.to_parquet(index=False)


_COLUMNS = [field.name for field in fields(UsageRow)]


def _cells(row: UsageRow) -> list[object]:
    cells: list[object] = []
    for name in _COLUMNS:
        value = getattr(row, name)
        match value:
            case UUID():
                value = str(value)
            case datetime():
                value = value.astimezone(UTC).isoformat(timespec="microseconds")
            case dict():
                value = json.dumps(value, ensure_ascii=False, sort_keys=True)
        cells.append(value)
    return cells


def _files(reports: Reports, asked: Asked) -> None:
    last = asked.until - timedelta(microseconds=1)  # midnight belongs to the day after
    days = "-to-".join(dict.fromkeys(f"{one:%Y-%m-%d}" for one in (asked.since, last)))
    for label, ending, make, mime in (
        ("CSV", "csv", as_csv, "text/csv"),
        ("Parquet", "parquet", as_parquet, "application/vnd.apache.parquet"),
    ):
        st.download_button(
            label,
            data=lambda make=make: make(reports, asked),  # type: ignore[misc]
            file_name=f"charges-{days}.{ending}",
            mime=mime,
            key=f"charges_{ending}",
            icon=":material/download:",
            type="tertiary",
            on_click="ignore",
            help=f"Every charge of this list, up to {fmt.number(MOST_EXPORTED)}. Times are in UTC.",
        )


def _turn(row: UsageRow) -> None:
    st.query_params[narrowing.PLACE] = str(_place(row))


def _place(row: UsageRow) -> Place:
    return Place(row.created_at, row.organization_id, row.id)
