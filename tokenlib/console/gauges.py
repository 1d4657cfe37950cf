"""Small charts of measurements against their target. Colors come from the theme."""

from __future__ import annotations

import altair as alt
import pandas as pd
import streamlit as st

from tokenlib.console import charts

HEIGHT = 120


def latency(frame: pd.DataFrame, target: float, description: str) -> None:
    """A line of `milliseconds` by `place`, the latest last, and a dashed line at the target."""
    measured = (
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(
            x=alt.X("place:O", title=None, axis=None),
            y=alt.Y("milliseconds:Q", title="ms", scale=alt.Scale(zero=True)),
            tooltip=[
                alt.Tooltip("when:N", title="When"),
                alt.Tooltip("milliseconds:Q", title="Milliseconds", format=".1f"),
                alt.Tooltip("verdict:N", title="Verdict"),
            ],
        )
    )
    promised = (
        alt.Chart(pd.DataFrame({"target": [target]}))
        .mark_rule(strokeDash=[4, 4])
        .encode(y="target:Q", tooltip=alt.Tooltip("target:Q", title="Target, ms"))
    )
    drawn = (measured + promised).properties(height=HEIGHT)
    st.altair_chart(charts.readable(drawn), alt=description)
