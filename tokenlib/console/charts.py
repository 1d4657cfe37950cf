"""Charts that several pages draw, in colors that read on light and on dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console.shapes import OTHER

HEIGHT = 320
COLORS = (
    "#3566DB",
    "#12A08F",
    "#C97A10",
    "#9A5BD6",
    "#D14C86",
    "#5B8E2D",
    "#2E9BD6",
    "#A8602E",
    "#C8444B",
)
"""Of what stands side by side; the theme has the same, in light and dark."""
REST = "#7C899B"
"""Of everything else."""
BAR = 26
"""Pixels for each bar of a ranking."""
PICK = "bar"
"""The name of the selection in a chart of bars."""
LIGHT_TEXT, DARK_TEXT = "#4A5568", "#C4CEDB"
"""Of axes and legends on light and on dark: Streamlit's own has 3.7 to 1 on light, too little."""


def stacked(
    frame: pd.DataFrame,
    labels: Sequence[str],
    groups: Sequence[str],
    description: str,
    key: str | None = None,
    on_pick: Callable[[str, str], None] | None = None,
    *,
    fixed: Sequence[str] = (),
) -> None:
    """Stacked bars of `value` tokens at each `label` in time, one color for each `group`.

    A group has the color of its place in `fixed`, whatever else is drawn; the others have the next.
    Every one of `labels` has its place, also without a row. `note` says what is special about a
    bar, and `strength` how strongly it is drawn. A click calls `on_pick` with the bar's `start` and
    `key`, both empty for a click beside the bars.
    """
    bars = (
        alt.Chart(frame)
        .mark_bar(cursor="pointer" if key else "default")
        .encode(
            x=alt.X(
                "label:O",
                title=None,
                sort=list(labels),
                scale=alt.Scale(domain=list(labels)),
                axis=alt.Axis(labelAngle=0, labelOverlap="greedy", labelSeparation=10),
            ),
            y=alt.Y("value:Q", title="Tokens", axis=alt.Axis(format="~s", tickMinStep=1)),
            color=alt.Color(
                "group:N",
                title=None,
                sort=list(groups),
                scale=alt.Scale(domain=list(groups), range=colors(groups, fixed)),
                legend=alt.Legend(
                    orient="bottom",
                    columns=alt.ExprRef("width < 420 ? 2 : width < 800 ? 3 : 6"),
                    labelLimit=150,
                    offset=4,
                    padding=0,
                ),
            ),
            order=alt.Order("place:Q"),
            opacity=alt.Opacity("strength:Q", scale=None, legend=None),
            tooltip=[
                alt.Tooltip("label:O", title="When"),
                alt.Tooltip("group:N", title="What"),
                alt.Tooltip("value:Q", title="Tokens", format=","),
                alt.Tooltip("uses:Q", title="Uses", format=","),
                alt.Tooltip("note:N", title="Only"),
            ],
        )
        .properties(height=HEIGHT)
    )
    if key is None or on_pick is None:
        st.altair_chart(readable(bars), alt=description)
        return

    def clicked() -> None:
        picked = st.session_state[key]["selection"].get(PICK)
        on_pick(picked[0]["start"], picked[0]["key"]) if picked else on_pick("", "")

    pick = alt.selection_point(name=PICK, fields=["start", "key"], toggle=False)
    st.altair_chart(readable(bars.add_params(pick)), key=key, on_select=clicked, alt=description)


def per_day(
    frame: pd.DataFrame, days: Sequence[date], features: Sequence[str], description: str
) -> None:
    """The same for rows with `day`, `feature`, `uses` and `tokens`, in the catalog's order."""
    places = {feature: place for place, feature in enumerate(features)}
    data = frame.assign(
        # As words: a browser would read a date as midnight in some time zone and might shift it.
        label=[_label(day) for day in frame["day"]],
        group=frame["feature"],
        value=frame["tokens"],
        place=[places.get(feature, len(places)) for feature in frame["feature"]],
        strength=1.0,
        note="",
    )
    stacked(
        data.drop(columns="day"),
        [_label(day) for day in days],
        features,
        description,
        fixed=features,
    )


def ranking(frame: pd.DataFrame, name: str, description: str) -> None:
    """Horizontal bars of `tokens`, in the order of the rows; `name` is the column to label by."""
    bars = alt.Chart(frame).encode(
        y=alt.Y(f"{name}:N", sort=None, title=None, axis=alt.Axis(labelLimit=170)),
        x=alt.X("tokens:Q", title=None, axis=alt.Axis(format="~s", tickMinStep=1, tickCount=6)),
        tooltip=[
            alt.Tooltip(f"{name}:N", title=name.capitalize()),
            alt.Tooltip("tokens:Q", title="Tokens", format=","),
        ],
    )
    drawn = bars.mark_bar().properties(height=len(frame) * BAR + 40)
    st.altair_chart(readable(drawn), alt=description)


def readable(chart: alt.TopLevelMixin) -> Any:
    """The chart with text of enough contrast.

    Asked of the background while it is drawn, so that it follows when the theme changes.
    """
    decimal, group, grouping = fmt.signs()
    number = {"decimal": decimal, "thousands": group, "grouping": grouping, "currency": ["", ""]}
    text = alt.ExprRef(f"luminance(background) > 0.5 ? '{LIGHT_TEXT}' : '{DARK_TEXT}'")
    told = chart.configure(locale={"number": number})
    return told.configure_axis(labelColor=text, titleColor=text).configure_legend(labelColor=text)


def colors(groups: Sequence[str], fixed: Sequence[str] = ()) -> list[str]:
    """A color for each group: that of its place in `fixed`, else in the groups; gray for Other."""
    places = [*fixed, *(group for group in groups if group not in fixed)]
    return [
        REST if group == OTHER else COLORS[places.index(group) % len(COLORS)] for group in groups
    ]


def _label(day: date) -> str:
    return f"{day.day} {day:%b}"
