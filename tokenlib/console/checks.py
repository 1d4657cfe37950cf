"""Whether the gate is well: each question of the health view, and what to do about its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from tokenlib.console import actions, links, tables
from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.reports import Reports

ASKED = "check"
"""The query parameter that says which check to show first; "books" for the verification."""

SETTLE = "settle"
RELEASE = "release"
LABELS = {SETTLE: "Settle", RELEASE: "Release"}


@dataclass(frozen=True, slots=True)
class Check:
    """One question, the rows that answer it, and what they mean. `grave`: the books are wrong."""

    title: str
    rows: Sequence[Any]
    meaning: str
    columns: Mapping[str, Any]
    grave: bool = False
    name: str = ""
    action: str = ""
    """What staff may do about a row: the dialog, and the button's label in `LABELS`."""

    @property
    def badge(self) -> tuple[str, str, str]:
        """Its answer as a word, an icon and a color."""
        if not self.rows:
            return "None", ":material/check_circle:", "green"
        if self.grave:
            return f"{fmt.number(len(self.rows))} found", ":material/error:", "red"
        return f"{fmt.number(len(self.rows))} found", ":material/info:", "yellow"


def ask(reports: Reports, context: Context) -> list[Check]:
    """Every question, the grave ones first, in one transaction."""
    with reports.together() as asked:
        return _checks(asked, context)


def _checks(reports: Reports, context: Context) -> list[Check]:
    wallet = {"name": "Organization", "token_type": "Token type"}
    return [
        Check(
            "Stuck tokens",
            reports.stuck_tokens(),
            "More balance than was ever allocated. Impossible in these books; adopted ones may have"
            " it. Run `tokenlib verify`, and settle what it finds.",
            {
                **wallet,
                "balance": tables.number("Balance"),
                "total_allocated": tables.number("Allocated"),
            },
            grave=True,
        ),
        Check(
            "Sums that do not close",
            reports.sums_that_do_not_close(),
            "Allocated is not balance plus held plus used. Run `tokenlib verify` before anything"
            " else.",
            {
                **wallet,
                "balance": tables.number("Balance"),
                "reserved": tables.number("Held"),
                "total_used": tables.number("Used"),
                "total_allocated": tables.number("Allocated"),
                "difference": tables.number("Difference"),
            },
            grave=True,
        ),
        Check(
            "Open findings",
            reports.findings(settled=False),
            "What adoption found in the old data. Settle each with an entry that says why.",
            {
                "organization": "Organization",
                "token_type": "Token type",
                "kind": "Finding",
                "detail": "Detail",
                "found_at": tables.time("Found", context.zone),
            },
            name="findings",
            action=SETTLE,
        ),
        Check(
            "Periods past their refresh date",
            reports.overdue_periods(),
            "They refresh at their next use, and within a minute while the console runs.",
            {
                **wallet,
                "refresh_date": tables.time("Was due", context.zone),
                "overdue": tables.duration("Overdue"),
            },
            name="overdue",
        ),
        Check(
            "Reservations past their expiry",
            reports.reservations(expired_only=True),
            "A caller died or took too long. The next use of the wallet gives the tokens back; a"
            " release does so now.",
            {
                "organization": "Organization",
                "user": "Person",
                "feature": "Feature",
                "tokens": tables.number("Held"),
                "expires_at": tables.time("Expired", context.zone),
                "age": tables.duration("Age"),
            },
            name="holds",
            action=RELEASE,
        ),
        Check(
            "Plans changed from outside",
            reports.plan_drift(),
            "The organization's plan differs from the one its wallets stand on. Their next use"
            " applies it.",
            {
                "name": "Organization",
                "plan": "Plan",
                "wallet_plan": "Wallets stand on",
                "wallets": tables.number("Wallets"),
            },
        ),
    ]


def overview(checks: Sequence[Check]) -> None:
    """Every question with its answer, at a glance."""
    with st.grid(3, min_column_width=250):
        for check in checks:
            word, icon, color = check.badge
            with st.container(
                border=True,
                horizontal=True,
                horizontal_alignment="distribute",
                vertical_alignment="center",
            ):
                st.markdown(check.title, width="content")
                st.badge(word, icon=icon, color=color)  # type: ignore[arg-type]


def details(checks: Sequence[Check], context: Context, admin: bool) -> None:
    """The rows of each question that found some, what they mean, and what can be done.

    The one that a link asked for comes first. An organization's name opens it. Findings are settled
    by admins.
    """
    asked = st.query_params.get(ASKED, "-")
    for place, check in sorted(enumerate(checks), key=lambda item: item[1].name != asked):
        if check.rows:
            with st.container(border=True):
                st.markdown(f"**{check.title}** · {fmt.number(len(check.rows))}")
                st.caption(check.meaning)
                _table(check, context, admin, f"check_{place}")


def _table(check: Check, context: Context, admin: bool, key: str) -> None:
    rows = check.rows
    name = next(iter(check.columns))
    data = tables.frame(rows, list(check.columns), context)
    columns = {**check.columns, name: links.column(key)}
    if check.action and (admin or check.action == RELEASE):
        data["action"] = LABELS[check.action]
        columns["action"] = tables.action(f"{key}_action")
    tables.show(data, columns, check.title)
    links.follow(key, [row.organization_id for row in rows])
    if (row := tables.clicked(f"{key}_action", rows)) is not None:
        actions.ask(check.action, row.organization_id, row.id)
