"""What a piece of work does while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import streamlit as st

from tokenlib.console import session


@contextmanager
def steps(label: str) -> Iterator[Callable[[str], None]]:
    """A status that names each step as it begins, and closes when the work is over or failed.

    What the body raises goes on to the caller, who says what it means.
    """
    status = st.status(label)
    st.session_state[session.UNTIMED] = True

    def step(text: str) -> None:
        status.update(label=text)
        status.caption(text)

    try:
        yield step
    except BaseException:
        status.update(label="Stopped", state="error")
        raise
    status.update(label="Done", state="complete")
