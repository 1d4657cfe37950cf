"""Every organization: find one, see what each has left, open it. Figures are the stored ones."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import streamlit as st

from tokenlib.console import balances, cards, session
from tokenlib.console import format as fmt
from tokenlib.reports.asking import MAX_ROWS
from tokenlib.reports.organizations import OrganizationSort

ROWS = 20
SORTS: dict[str, tuple[OrganizationSort, bool]] = {
    "Name": ("name", False),
    "Runs out first": ("run_out", False),
    "Lowest level": ("level", False),
    "Most used": ("total_used", True),
    "Fewest tokens left": ("balance", False),
    "Next refresh": ("refresh_date", False),
    "Latest use": ("last_used_at", True),
}
PAGE = "list_page"
YEAR = timedelta(days=365)

person = session.require(*session.STAFF)
reports = person.reports
context = session.context(reports)
cards.fresh(context)


def first_page() -> None:
    """Another list begins at its first page."""
    st.session_state[PAGE] = 1


with st.container(horizontal=True, vertical_alignment="bottom"):
    search = st.text_input(
        "Search",
        key="search",
        bind="query-params",
        placeholder="Name, member e-mail or id",
        type="search",
        live="300ms",
        on_change=first_page,
        width=250,
    )
    plan = st.selectbox(
        "Plan",
        context.catalog.plans,
        index=None,
        key="plan",
        bind="query-params",
        placeholder="Every plan",
        format_func=str.capitalize,
        on_change=first_page,
        width=140,
    )
    status = st.selectbox(
        "State",
        list(cards.STATUS),
        index=None,
        key="status",
        bind="query-params",
        placeholder="Every state",
        format_func=lambda name: cards.STATUS[name][0],
        on_change=first_page,
        width=150,
    )
    level = st.selectbox(
        "Lowest balance",
        [*balances.LEVELS, *balances.NEAR],
        index=None,
        key="level",
        bind="query-params",
        placeholder="Every level",
        format_func=balances.filter_word,
        on_change=first_page,
        width=190,
    )
    order = st.selectbox(
        "Sort by", list(SORTS), key="sort", bind="query-params", on_change=first_page, width=170
    )

sort, descending = SORTS[order]
chosen = str(st.session_state.get(PAGE) or st.query_params.get(PAGE, "1"))
place = max(1, int(chosen)) if chosen.isdecimal() and len(chosen) < 6 else 1
with st.skeleton(height=35 * (ROWS + 1)), reports.together() as asked:
    ask = partial(
        asked.organizations,
        search,
        plan,
        status,
        level if level in balances.LEVELS else None,
        ROWS,
        near=balances.NEAR.get(level or ""),
        sort=sort,
        descending=descending,
    )
    found = ask(offset=(place - 1) * ROWS)
    if not found.rows and place > 1:
        found = ask()
    ids = [row.organization_id for row in found.rows]
    wallets = asked.wallets_of(ids)
    run_outs = asked.run_outs(YEAR, MAX_ROWS, ids).rows
if not found.rows:
    cards.empty("No organization matches. Clear the search or choose another filter.")
    st.stop()
balances.table(found.rows, wallets, run_outs, context)
with st.container(horizontal=True, horizontal_alignment="distribute"):
    st.caption(f"{fmt.count(found.total, 'organization')} · {balances.LEGEND}", width="content")
    if found.total > ROWS:
        st.pagination(-(-found.total // ROWS), key=PAGE, bind="query-params")
