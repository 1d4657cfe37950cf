"""A balance as a story: what the period began with, what moved it, what is held, what remains.

It is told as of now, or of any moment in the past.
"""

from __future__ import annotations

from datetime import datetime

import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console import tables
from tokenlib.console.actions import Desk
from tokenlib.console.format import Context
from tokenlib.reports.explain import Story, StoryLine

_WORDS = {
    "charge": "Used for {detail}",
    "refund": "Given back for {detail}",
    "grant": "Added: {detail}",
    "grant_expired": "Expired: {detail}",
    "plan_change": "Plan changed",
    "top_up": "Topped up, no limit",
    "hold_lapsed": "Held while their grant expired",
}
_BEGAN = {"refresh": "The period began", "opening": "The wallet was opened"}


def draw(desk: Desk) -> None:
    """Choose a token type and a moment, and read the story."""
    context, reports = desk.context, desk.person.reports
    rows = reports.wallets(desk.organization_id)
    if not rows:
        st.caption("No wallet yet, so there is nothing to tell.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        token_type = st.selectbox(
            "Token type",
            [row.token_type for row in rows],
            key="story",
            bind="query-params",
            format_func=context.token_type,
            width=220,
        )
        chosen = st.datetime_input(
            "As it stood at",
            value=None,
            key="at",
            bind="query-params",
            max_value=context.now.astimezone(context.zone).replace(tzinfo=None),
            format="DD/MM/YYYY",
            width=240,
            help=f"Any moment in the past, in {context.zone}. Empty: now.",
        )
    at = None if chosen is None else _moment(chosen, context)
    told = reports.explain(desk.organization_id, token_type, at)
    if told is None:
        st.info(
            "At that moment this wallet was not open yet. Choose a later one.",
            icon=":material/history:",
        )
        return
    tell(told, context)


def tell(story: Story, context: Context) -> None:
    """The story as a table that adds up, and one sentence of what comes next."""
    lines = [_opening(story, context), *(_line(line, context) for line in story.lines)]
    if story.held:
        lines.append(
            (f"Held by {fmt.count(story.holds, 'request')} that run", fmt.signed(-story.held))
        )
    verb = "stood" if story.at < context.now else "stands"
    lines.append((f"**The balance {verb} at**", f"**{fmt.number(story.balance)}**"))
    st.table(
        dict(_unique(lines)),
        border="horizontal",
        width="content",
        alt=f"How the balance of {context.token_type(story.token_type)} came to be",
    )
    st.caption("  \n".join(_ending(story, context)))


def _opening(story: Story, context: Context) -> tuple[str, str]:
    began = _BEGAN[story.opened_by]
    return f"{began} on {context.time(story.opened_at)} with", fmt.number(story.opening)


def _line(line: StoryLine, context: Context) -> tuple[str, str]:
    detail = line.detail or ""
    if line.kind in ("charge", "refund"):
        detail = context.feature(detail)
    elif line.kind in ("grant", "grant_expired"):
        detail = tables.word(detail).lower()
    words = _WORDS.get(line.kind, tables.word(line.kind)).format(detail=fmt.plain(detail))
    times = f" ({fmt.number(line.count)} times)" if line.count > 1 else ""
    waived = f", {fmt.number(line.waived)} waived by the switch" if line.waived else ""
    return f"{words}{times}{waived}", fmt.signed(line.tokens)


def _ending(story: Story, context: Context) -> list[str]:
    words = [
        f"Used in this period: {fmt.count(story.used, 'token')} of {fmt.number(story.allocated)}."
    ]
    if story.unlimited:
        words = [f"No limit. Used in this period: {fmt.count(story.used, 'token')}."]
    if story.token_type == fmt.PACKS:
        words.append("Packs do not refresh: they stay until they are used or expire.")
    elif story.refresh_due:
        words.append("The period has ended: new tokens come with the next use.")
    else:
        words.append(f"New tokens come on {context.time(story.refresh_date)}.")
    if not story.closes:
        words.append(":red[:material/error: The sums do not close. Verify the books on Health.]")
    return words


def _unique(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Lines with different first words: the table is a mapping."""
    seen: dict[str, int] = {}
    found = []
    for what, tokens in lines:
        seen[what] = seen.get(what, 0) + 1
        found.append((what if seen[what] == 1 else f"{what} [{seen[what]}]", tokens))
    return found


def _moment(chosen: datetime, context: Context) -> datetime:
    return chosen.replace(tzinfo=context.zone)
