"""The quests of an organization, with their steps and rewards."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from tokenlib.console import cards, quests
from tokenlib.console import format as fmt
from tokenlib.console.acting import Member
from tokenlib.console.format import Context
from tokenlib.features.quests import Difficulty, QuestStep
from tokenlib.reports.organizations import QuestRow
from tokenlib.tokens import Tokens

_COLORS: dict[Difficulty, Literal["green", "orange", "red"]] = {
    "easy": "green",
    "medium": "orange",
    "hard": "red",
}


def draw(tokens: Tokens, member: Member, context: Context) -> None:
    """Every quest of the organization, the newest first and open."""
    rows = member.reports.quests(member.organization_id)
    st.markdown("#### Quests")
    if not rows:
        cards.empty("No quest yet. Generate the first one: it takes a second.", ":material/flag:")
    for place, row in enumerate(rows):
        box = st.expander(
            f"{fmt.plain(row.title)} · {fmt.plain(row.quarter)} · {row.progress} %",
            expanded=place == 0,
            key=f"quest_{row.id}",
            on_change="rerun",
        )
        if box.open:
            with box:
                _quest(tokens, member, row, context)


def _quest(tokens: Tokens, member: Member, row: QuestRow, context: Context) -> None:
    st.markdown(fmt.plain(row.description))
    claimed = set(row.metadata.get(quests.CLAIMED, ()))
    steps = quests.steps(row.metadata)
    earned = sum(step.reward for step in steps if step.key in claimed)
    st.progress(
        row.progress,
        text=f"{fmt.number(earned)} of {fmt.number(sum(step.reward for step in steps))} points",
    )
    for step in steps:
        _step(tokens, member, row, step, step.key in claimed)
    st.caption(f"Generated on {context.time(row.created_at)}")


def _step(tokens: Tokens, member: Member, row: QuestRow, step: QuestStep, done: bool) -> None:
    with st.container(border=True, gap="small"):
        with st.container(
            horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
        ):
            st.markdown(f"**{fmt.plain(step.title)}**", width="content")
            st.badge(step.difficulty.capitalize(), color=_COLORS[step.difficulty])
        st.markdown(fmt.plain(step.objective))
        st.caption(fmt.plain(f"{step.metric}: {step.target_text}"))
        st.markdown("\n".join(f"- {fmt.plain(item)}" for item in step.action_items))
        if done:
            st.badge(f"{step.reward} points claimed", icon=":material/trophy:", color="green")
        elif st.button(
            f"Claim {step.reward} points",
            key=f"claim_{row.id}_{step.key}",
            icon=":material/redeem:",
            type="tertiary",
        ):
            quests.claim(tokens, member, row, step.key)
            st.rerun()
