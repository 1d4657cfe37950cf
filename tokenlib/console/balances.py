"""The list of organizations: what each has left of each token type, what it buys, until when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal
from uuid import UUID

import pandas as pd
import streamlit as st

from tokenlib.console import cards, links, tables
from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.domain import uses_left
from tokenlib.reports.organizations import OrganizationRow
from tokenlib.reports.overview import RunOut
from tokenlib.reports.wallets import WalletRow

# Transparent, so that they suit light and dark; the mark in the cell says the same.
_BACKGROUND = {
    "green": "rgba(34, 160, 100, 0.16)",
    "yellow": "rgba(226, 165, 30, 0.22)",
    "red": "rgba(220, 60, 70, 0.22)",
    "gray": "rgba(128, 128, 128, 0.10)",
    "blue": "rgba(60, 110, 220, 0.14)",
}
DUE = "↻"
LEGEND = (
    f"{' · '.join(f'{standing.mark} {standing.word.lower()}' for standing in fmt.STANDINGS)}"
    f" · {DUE} refresh due, new tokens come with the next use"
)
LEVELS = {"red": fmt.LOW, "yellow": fmt.HALF, "green": fmt.PLENTY, "none": fmt.ABSENT}
"""The lowest balance of an organization, as its filter and its column call it."""
NEAR: dict[str, Literal[80, 100]] = {"used80": 80, "used100": 100}
"""What the same filter asks of single wallets: near their limit, and at it."""
OPEN = "organizations_open"


def table(
    organizations: Sequence[OrganizationRow],
    wallets: Mapping[UUID, Sequence[WalletRow]],
    run_outs: Sequence[RunOut],
    context: Context,
) -> None:
    """A row for each organization and a column for each token type. A name opens its page."""
    first: dict[UUID, RunOut] = {}
    for one in run_outs:  # the earliest come first
        first.setdefault(one.organization_id, one)
    held = {(one, row.token_type): row for one, rows in wallets.items() for row in rows}
    types = [
        name
        for name in context.catalog.token_types
        if name != fmt.PACKS or any(kind == name for _, kind in held)
    ]
    cells = [[held.get((row.organization_id, name)) for name in types] for row in organizations]
    titles = [context.token_type(name) for name in types]
    data = pd.DataFrame(
        [
            [
                row.name,
                f"{LEVELS[row.level].mark} {LEVELS[row.level].word}",
                _runs_out(first.get(row.organization_id), context),
                _refresh(row, context),
                (row.plan or "none").capitalize(),
                cards.STATUS.get(row.status, (row.status,))[0],
                *(_cell(wallet, context) for wallet in line),
            ]
            for row, line in zip(organizations, cells, strict=True)
        ],
        columns=["Organization", "Lowest", "Runs out", "Refresh", "Plan", "State", *titles],
    )
    plain = len(data.columns) - 2 - len(titles)
    colors = pd.DataFrame(  # made in one go: cell by cell takes longer than the question
        [
            ["", _fill(LEVELS[row.level]), *[""] * plain, *map(_color, line)]
            for row, line in zip(organizations, cells, strict=True)
        ],
        columns=data.columns,
    )
    tables.show(
        data.style.apply(lambda _: colors, axis=None),
        {
            "Organization": links.column(OPEN),
            "Lowest": st.column_config.Column(width=130),  # fixed, or what is long is cut
            "Runs out": st.column_config.Column(
                width=180, help="The first of its wallets, at the pace of the last 7 days."
            ),
        },
        "Balances of each organization by token type. A name opens the organization",
        most_rows=len(data),
    )
    links.follow(OPEN, [row.organization_id for row in organizations])


def filter_word(name: str) -> str:
    """What a choice of the filter is called."""
    return f"A wallet at {NEAR[name]} % used" if name in NEAR else LEVELS[name].word


def _cell(wallet: WalletRow | None, context: Context) -> str:
    if wallet is None:
        return ""
    standing = fmt.standing(wallet)
    if standing is fmt.ABSENT:
        return standing.mark
    due = f" {DUE}" if wallet.refresh_due else ""
    if standing is fmt.UNLIMITED:
        return f"{standing.mark} unlimited{due}"
    buys = _buys(wallet, context)
    return f"{standing.mark} {fmt.of(wallet)}{due}{buys}"


def _buys(wallet: WalletRow, context: Context) -> str:
    """What the balance still buys: from its dearest feature to its cheapest."""
    features = [
        feature
        for feature in context.catalog.features.values()
        if feature.token_type == wallet.token_type
    ]
    if not features:
        return ""
    costs = [feature.cost for feature in features]
    least, most = (uses_left(wallet.balance, cost) for cost in (max(costs), min(costs)))
    uses = fmt.number(least) if least == most else f"{fmt.number(least)} to {fmt.number(most)}"
    if any(feature.unit_size for feature in features):
        uses = f"up to {fmt.number(most)}"  # a long answer costs more
    return f" · {uses} {'use' if least == most == 1 else 'uses'}"


def _refresh(row: OrganizationRow, context: Context) -> str:
    if row.refresh_date is None or row.level == "none":
        return ""
    return "due" if row.refresh_due else context.days(row.refresh_date)


def _runs_out(first: RunOut | None, context: Context) -> str:
    """When the first wallet ends before its refresh, at the pace of the last 7 days."""
    if first is None:
        return ""
    if first.balance == 0:
        return f"now: {context.token_type(first.token_type)}"
    return f"{context.day(first.run_out_at)}: {context.token_type(first.token_type)}"


def _color(wallet: WalletRow | None) -> str:
    return "" if wallet is None else _fill(fmt.standing(wallet))


def _fill(standing: fmt.Standing) -> str:
    return f"background-color: {_BACKGROUND[standing.color]}"
