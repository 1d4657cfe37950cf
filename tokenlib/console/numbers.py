"""Numbers that people type, and what is said of those that are too small or too large."""

from __future__ import annotations

import streamlit as st

from tokenlib.console import format as fmt


def whole(label: str, least: int, most: int, value: int, key: str) -> int | None:
    """Let somebody choose a whole number. None, and it says so, for one beyond the bounds.

    Bounds that the browser knows would keep such a number there: the page would go on with the one
    before it, and do what nobody reads in the field.
    """
    chosen = st.number_input(label, value=value, step=1, key=key)
    if least <= chosen <= most:
        return chosen
    st.error(f"{label}: from {fmt.number(least)} to {fmt.number(most)}.", icon=":material/error:")
    return None
