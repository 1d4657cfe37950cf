"""What an organization's people should know before they start, in plain words with the way out."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.reports.organizations import OrganizationRow
from tokenlib.reports.overview import RunOut
from tokenlib.reports.wallets import WalletRow


def state(row: OrganizationRow) -> None:
    """Why AI is off for the organization, if it is."""
    if row.status in ("limited", "expired"):
        st.error(
            "The last payment failed. Balances are kept, and AI is back as soon as the payment goes"
            " through.",
            title="AI is off",
            icon=":material/credit_card_off:",
        )
    elif row.status == "suspended":
        st.error(
            "An operator paused AI for this organization. Balances are kept. Contact support to"
            " resume it.",
            title="AI is paused",
            icon=":material/pause_circle:",
        )


def draw(row: OrganizationRow, wallets: Sequence[WalletRow], context: Context) -> None:
    """Why AI is off, and which token types run low."""
    state(row)
    low = [wallet for wallet in wallets if fmt.standing(wallet) is fmt.LOW]
    # Packs pay where a wallet cannot; an empty pack is no reason to worry a member.
    lines = [
        f"{fmt.plain(context.token_type(wallet.token_type))}: {fmt.balance(wallet)} left"
        f"{'' if wallet.refresh_due else f', new tokens {context.days(wallet.refresh_date)}'}"
        for wallet in low
        if wallet.token_type != fmt.PACKS
    ]
    if lines:
        st.warning(
            "  \n".join([*lines, "To go on before that: upgrade the plan, or buy a pack."]),
            title="Running low",
            icon=":material/warning:",
        )


def outlook(found: Sequence[RunOut], wallets: Sequence[WalletRow], context: Context) -> None:
    """Which wallet ends before its refresh at the present pace, and whether the figures add up."""
    ends = [
        f"{fmt.plain(context.token_type(row.token_type))} "
        + ("is empty" if row.balance <= 0 else f"runs out {context.days(row.run_out_at)}")
        + (f", its refresh is {context.days(row.refresh_date)}" if _refreshes(row) else "")
        for row in found
    ]
    pace = "; ".join(ends) or "nothing runs out before its refresh"
    open_sums = [
        fmt.plain(context.token_type(row.token_type))
        for row in wallets
        if row.balance + row.reserved + row.total_used != row.total_allocated
    ]
    sums = "Left, held and used add up to what was given, in every wallet."
    if open_sums:
        sums = f":red[The figures of {', '.join(open_sums)} do not add up. Tell support.]"
    st.caption(f"At the pace of the last 7 days: {pace}.  \n{sums}")


def _refreshes(row: RunOut) -> bool:
    return row.token_type != fmt.PACKS
