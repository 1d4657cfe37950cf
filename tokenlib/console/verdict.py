"""Could this person do this now? The gate's own verdict, without a charge."""

from __future__ import annotations

from uuid import UUID

import streamlit as st

from tokenlib.console import address, session, tables
from tokenlib.console import format as fmt
from tokenlib.console.actions import Desk
from tokenlib.domain import Verdict


def draw(desk: Desk) -> tuple[str, Verdict] | None:
    """Choose person, feature and size; see the verdict. Returns the feature and what was said.

    None where there is nobody to ask for.
    """
    context = desk.context
    st.markdown("**Could this person do this now?**")
    members = {row.user_id: row.user for row in desk.person.reports.members(desk.organization_id)}
    if not members:
        st.caption("Nobody belongs to this organization.")
        return None
    with st.grid(2, min_column_width=150):
        user = address.choice("Person", members, "who")
        feature = st.selectbox(
            "AI feature",
            list(context.catalog.features),
            key="what",
            bind="query-params",
            format_func=context.feature,
        )
        units = int(st.number_input("Units", 1, 1_000_000, 1, key="units", bind="query-params"))
        limits = st.toggle(
            "Members' limits",
            value=True,
            key="with_limits",
            bind="query-params",
            help="The abuse limits of the console and of member tokens; library callers have none.",
        )
    if user is None:
        return None
    return feature, answer(desk, user, feature, units, limits)


def answer(desk: Desk, user: UUID, feature: str, units: int, limits: bool) -> Verdict:
    """Ask the gate and draw what it says."""
    found = session.tokens().can_use(desk.organization_id, user, feature, units, limits=limits)
    numbers = f"Needs {fmt.count(found.needed, 'token')}; {fmt.number(found.available)} available."
    if found.allowed:
        said = numbers if found.needed <= found.available else _paid(desk, feature, found)
        st.success(said, title="Yes, it would run", icon=":material/check_circle:")
        return found
    said = numbers if found.rule == "insufficient_tokens" else fmt.plain(found.message)
    st.warning(
        said,
        title=f"No: {tables.word(found.rule or 'refused').lower()}",
        icon=":material/block:",
    )
    return found


def _paid(desk: Desk, feature: str, found: Verdict) -> str:
    """What pays where the feature's own wallet does not reach."""
    context = desk.context
    own = context.catalog.features[feature].token_type
    needed = f"Needs {fmt.count(found.needed, 'token')}"
    left = f"{fmt.plain(context.token_type(own))} has {fmt.number(found.available)}"
    if found.token_type != own:
        return f"{needed}. {left}, so the purchased packs pay."
    rows = desk.person.reports.wallets(desk.organization_id)
    if any(row.token_type == own and row.unlimited for row in rows):
        return f"{needed}. {fmt.plain(context.token_type(own))} is unlimited here."
    return f"{needed}. {left}, and the emergency switch lets it through."
