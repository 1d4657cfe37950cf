"""Cards that several pages draw: wallets, an organization's head, figures, an empty state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console import tables
from tokenlib.console.format import Context, Wallet
from tokenlib.reports.explain import GrantRow
from tokenlib.reports.organizations import OrganizationRow

STATUS = {
    "active": ("Active", ":material/check_circle:", "green"),
    "limited": ("Payment failed", ":material/credit_card_off:", "red"),
    "expired": ("Payment failed, grace over", ":material/credit_card_off:", "red"),
    "suspended": ("Paused", ":material/pause_circle:", "orange"),
}
"""What each state of an organization is called, its icon and its color."""

_ALLOWANCES = 5


def organization(row: OrganizationRow) -> None:
    """The head of an organization: name, plan, state."""
    word, icon, color = STATUS.get(row.status, (row.status, ":material/help:", "gray"))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"#### {fmt.plain(row.name)}", width="content")
        st.badge((row.plan or "No plan").capitalize(), icon=":material/sell:", color="blue")
        st.badge(word, icon=icon, color=color)  # type: ignore[arg-type]
        if row.mode is not None:
            mode = row.mode.replace("_", " ")
            st.badge(f"Switch: {mode}", icon=":material/warning:", color="orange")


def fresh(context: Context) -> None:
    """As of when the page speaks, and a button that asks again."""
    with st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    ):
        st.caption(f"As of {context.time(context.now)} ({context.zone})", width="content")
        st.button("Refresh", key="refresh", icon=":material/refresh:", type="tertiary")


def wallets(rows: Iterable[Wallet], context: Context, grants: Sequence[GrantRow] = ()) -> None:
    """A card for each wallet, as many beside each other as fit; `grants` adds what is extra."""
    shown = [row for row in rows if row.token_type != fmt.PACKS or row.total_allocated]
    # Five beside each other on a desk, two on a phone; with packs they are two rows of three.
    with st.grid(5 if len(shown) == _ALLOWANCES else 3, min_column_width=150):
        for row in shown:
            with st.container(border=True, height="stretch", gap="xsmall"):
                own = [grant for grant in grants if grant.token_type == row.token_type]
                wallet(row, context.token_type(row.token_type), context, own)


def wallet(row: Wallet, title: str, context: Context, grants: Sequence[GrantRow] = ()) -> None:
    """What is left of a wallet, what it buys, what of it is extra, and when it refreshes."""
    standing = fmt.standing(row)
    st.markdown(f"**{fmt.plain(title)}**")
    word = "Low, under 20 %" if standing is fmt.LOW else standing.word
    st.badge(word, icon=standing.icon, color=standing.color)
    if standing is fmt.ABSENT:
        st.caption("0 of 0. Another plan includes it.")
        return
    if standing is fmt.UNLIMITED:
        st.markdown(f"### Unlimited\n{fmt.count(row.total_used, 'token')} used in this period")
    else:
        st.markdown(f"### {fmt.balance(row)}")
        st.progress(min(row.balance / row.total_allocated, 1.0))
    lines = fmt.uses(row, context.catalog)
    if standing is not fmt.UNLIMITED:
        held = f", {fmt.number(row.reserved)} held" if row.reserved else ""
        lines.append(f"{fmt.number(row.total_used)} used{held} in this period")
    lines += [extra(grant, context) for grant in grants if grant.kind != "allowance"]
    if row.token_type != fmt.PACKS:
        lines.append(refresh(row, context))
    st.caption("  \n".join(lines))


def extra(grant: GrantRow, context: Context) -> str:
    """A grant beyond the allowance: what is left of it, and until when."""
    kind = tables.word(grant.kind)
    if grant.arrived_at is None:
        coming = context.date(grant.effective_at)
        return f"{kind} of {fmt.number(grant.amount)} comes on {coming}"
    until = f", until {context.date(grant.expires_at)}" if grant.expires_at else ""
    return f"{kind}: {fmt.number(grant.remaining)} of {fmt.number(grant.amount)} left{until}"


def refresh(row: Wallet, context: Context) -> str:
    """When new tokens come, or that they are due and come with the next use."""
    if row.refresh_date <= context.now:
        return ":material/update: Refresh is due: new tokens come with the next use"
    return f"Refresh {context.days(row.refresh_date)}, {context.day(row.refresh_date)}"


def figure(label: str, now: int, before: int, note: str) -> None:
    """A figure beside the one of the time before."""
    change: str | int = 0 if now == before else "new"
    if before and now != before:
        change = fmt.change((now - before) / before)
    st.metric(
        label,
        now,
        change,
        delta_color="off",
        delta_arrow="off" if change == "new" else "auto",
        delta_description="vs. before",
        format="localized",
        help=note,
        border=True,
        height="stretch",
    )


def empty(text: str, icon: str = ":material/inbox:") -> None:
    """Nothing to show, and what to do about it."""
    with st.container(border=True, horizontal_alignment="center"):
        st.markdown(f"{icon} {text}", width="content")
