"""Verify the books from the console: a button, the last results, and what is wrong."""

from __future__ import annotations

from datetime import timedelta

import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console import session, tables
from tokenlib.console.format import Context
from tokenlib.reports import Reports

STALE = timedelta(days=1)
"""After this long nobody should lean on the last verification."""

_KEPT = 30


def draw(reports: Reports, context: Context) -> None:
    """Verify on request; say what the last verification found, and keep the ones before it."""
    with st.container(border=True):
        with st.container(
            horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
        ):
            st.markdown("**Are the books right?**", width="content")
            wanted = st.button(
                "Verify now",
                icon=":material/fact_check:",
                key="verify",
                help="Recomputes every wallet from its entries: sums, numbers, hashes, grants and"
                " holds.",
            )
        if wanted:
            _verify()
        _before(reports, context)


def _verify() -> None:
    bar = st.progress(0.0, "Reading every entry. Another click would end it unfinished.")
    st.session_state[session.UNTIMED] = True

    def show(done: int, total: int) -> None:
        bar.progress(
            done / total,
            f"{fmt.number(done)} of {fmt.number(total)} organizations. Another click would end it.",
        )

    result = session.tokens().verify(progress=show)
    bar.empty()
    read = f"{fmt.number(result.entries)} entries"
    if result.closed:
        st.success(
            f"Every sum closes, every chain holds, no key was charged twice: {read} in"
            f" {fmt.count(result.wallets, 'wallet')}.",
            icon=":material/verified:",
        )
    else:
        st.error(
            f"{fmt.count(len(result.problems), 'problem')} in {read}.", icon=":material/error:"
        )
        st.dataframe(result.problems, hide_index=True, alt="What is wrong in the books")


def _before(reports: Reports, context: Context) -> None:
    rows = reports.verifications(limit=_KEPT)
    if not rows:
        st.caption(":material/info: Never verified yet. Verify now, or run `tokenlib verify`.")
        return
    last = rows[0]
    found = "no problem" if last.problems == 0 else fmt.count(last.problems, "problem")
    icon = ":material/check_circle:" if last.problems == 0 else ":material/error:"
    stale = " That is more than a day ago." if context.now - last.at > STALE else ""
    st.markdown(
        f"{icon} Last: {context.time(last.at)}, {found} in"
        f" {fmt.number(last.entries)} entries.{stale}"
    )
    history = st.expander(
        f"History · {fmt.count(len(rows), 'verification')}", key="verifications", on_change="rerun"
    )
    if history.open:
        with history:
            tables.draw(
                rows,
                {
                    "at": tables.time("When", context.zone),
                    "wallets": tables.number("Wallets"),
                    "entries": tables.number("Entries"),
                    "problems": tables.number("Problems"),
                },
                context,
                "Verifications of everybody's books, the latest first",
            )
