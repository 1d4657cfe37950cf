"""Rows of the reports as tables. A column is a field of the row and how it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.reports.refusals import RefusalRow
from tokenlib.reports.usage import FeatureUsage
from tokenlib.reports.wallets import EntryRow

Column = Any
"""A column's configuration, as streamlit.column_config makes it."""

Row = TypeVar("Row")

WORDS = {
    "feature_not_in_plan": "Not in the plan",
    "insufficient_tokens": "Not enough tokens",
    "user_paused": "Person paused",
    "rate_limited": "Too many requests",
    "failed_attempt": "Request not valid",
    "balance_above_allocated": "More balance than allocated",
}
"""Rules, entries and findings that are called otherwise than their name says."""

MOST_ROWS = 12
"""Rows that a table shows before it scrolls."""


def frame(rows: Sequence[Any], names: Sequence[str], context: Context) -> pd.DataFrame:
    """These fields of the rows, in words where the field holds a name; also when there are none."""
    lines = [{name: _value(row, name, context) for name in names} for row in rows]
    return pd.DataFrame(lines, columns=list(names))


def draw(
    rows: Sequence[Any], columns: Mapping[str, Any], context: Context, description: str
) -> None:
    """A table of `columns`, each a field and its label or column configuration."""
    show(frame(rows, list(columns), context), columns, description)


def show(
    data: Any, columns: Mapping[str, Any], description: str, most_rows: int = MOST_ROWS
) -> None:
    """The same for rows that are a DataFrame already, or one with a style.

    Buttons in a table answer a pointer only. So a row can be chosen, by its box or Shift+Space, and
    its buttons stand below the table, too. `clicked` has the row of either.
    """
    frame = data if isinstance(data, pd.DataFrame) else data.data
    keys = {name: column.key for name, column in columns.items() if hasattr(column, "key")}
    options: dict[str, Any] = {"alt": description}
    if keys:
        options = {
            "alt": f"{description}. Shift+Space chooses a row; its buttons stand below the table.",
            "key": f"{next(iter(keys.values()))}_rows",
            "on_select": "rerun",
            "selection_mode": "single-row",
        }
    event = st.dataframe(
        data,
        hide_index=True,
        column_config=dict(columns),
        placeholder="—",
        height="content" if len(frame) <= most_rows else 35 * (most_rows + 1) + 3,
        **options,
    )
    for place in event.selection.rows if keys else ():
        if 0 <= place < len(frame):
            _below(frame.iloc[place], place, {name: columns[name] for name in keys})


def clicked(key: str, rows: Sequence[Row]) -> Row | None:
    """The row whose button in the column with this key was pressed, in the table or below it."""
    click = st.session_state.get(key)
    for place, row in enumerate(rows):
        if click["row"] == place if click else st.session_state.get(_button(key, place)):
            return row
    return None


def _below(row: pd.Series, place: int, columns: Mapping[str, Any]) -> None:
    with st.container(horizontal=True):
        for name, column in columns.items():
            label = row[name] or None
            if not isinstance(label, str):  # none in this row
                continue
            if column.config["type_config"]["button_type"] == "tertiary":  # a value, not an action
                label = f"{column.config['label']}: {label}"
            st.button(fmt.plain(label), key=_button(column.key, place))


def _button(key: str, place: int) -> str:
    return f"{key}_below_{place}"


def number(label: str, *, note: str | None = None) -> Column:
    """Whole numbers, written the reader's way."""
    return st.column_config.NumberColumn(label, format="localized", help=note)


def share(label: str) -> Column:
    """A part of the whole, from 0 to 1, as a bar with its percentage."""
    return st.column_config.ProgressColumn(label, min_value=0, max_value=1, format="percent")


def time(label: str, zone: tzinfo) -> Column:
    """A moment in the reader's time zone."""
    return st.column_config.DatetimeColumn(label, format="D MMM YYYY, HH:mm", timezone=str(zone))


def seconds(label: str, zone: tzinfo) -> Column:
    """The same to the second, for what happens many times a minute."""
    return st.column_config.DatetimeColumn(
        label, format="D MMM YYYY, HH:mm:ss", timezone=str(zone), width=160
    )


def duration(label: str) -> Column:
    """A length of time: 3 days."""
    return st.column_config.NumberColumn(label, format="duration")


def milliseconds(label: str) -> Column:
    """Milliseconds, written the reader's way."""
    return st.column_config.NumberColumn(f"{label}, ms", format="localized")


def action(key: str, label: str = "Action") -> Column:
    """A button in each row that allows it. Beside the first column, also where the rest scrolls."""
    return st.column_config.ButtonColumn(label, pinned=True, key=key)


def word(name: str) -> str:
    """What a rule, an entry or a finding is called."""
    return WORDS.get(name, name.replace("_", " ").capitalize())


def usage(rows: Sequence[FeatureUsage], context: Context) -> None:
    """Uses and tokens by feature: gross, refunds, net."""
    columns = {
        "feature": "Feature",
        "uses": number("Uses"),
        "tokens": number("Tokens", note="Gross: what was deducted."),
        "refunded": number("Refunded"),
        "net": number("Net", note="Tokens less refunds."),
    }
    draw(rows, columns, context, "Uses and tokens by feature")


def refused(rows: Sequence[RefusalRow], context: Context) -> None:
    """Why requests were refused, the latest first."""
    columns = {
        "last_at": time("When", context.zone),
        "user": "Person",
        "feature": "Feature",
        "rule": "Why",
        "needed": number("Needed"),
        "available": number("Available"),
        "count": number("Times"),
    }
    draw(rows, columns, context, "Refused requests, the latest first")


def ledger(rows: Sequence[EntryRow], context: Context) -> None:
    """What moved a balance, the latest first."""
    columns = {
        "created_at": time("When", context.zone),
        "token_type": "Token type",
        "kind": "Entry",
        "feature": "Feature",
        "balance_change": number("Change"),
        "balance_after": number("Balance after"),
    }
    draw(rows, columns, context, "Entries of the books, the latest first")


def _value(row: Any, name: str, context: Context) -> Any:
    value = getattr(row, name)
    match name:
        case "plan" | "wallet_plan":
            return (value or "none").capitalize()
        case "token_type":
            return context.token_type(value)
        case "feature":
            return value and context.feature(value)
        case "kind" if value == "charge" and row.refunded:
            return "Charge, refunded"
        case "kind" if value == "charge" and row.waived:
            return "Charge, waived"
        case "rule" | "kind" | "action":
            return word(value)
    return round(value, 3) if isinstance(value, float) else value
