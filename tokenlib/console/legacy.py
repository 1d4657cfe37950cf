"""The old system of the demo: its faults as they stood, as findings, and settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from tokenlib.console import tables
from tokenlib.console.format import Context
from tokenlib.demo.legacy import Fault
from tokenlib.reports.health import FindingRow


def draw(
    faults: Sequence[Fault],
    findings: Sequence[FindingRow],
    people: Mapping[str, str],
    context: Context,
) -> None:
    """The faults that the old monitoring queries find, and what became of them in the books.

    `people` are the names of staff by id.
    """
    with st.container(border=True):
        st.markdown("**The old system, before and after**")
        st.caption(
            "Four organizations as the old system left them, in a database of their own beside this"
            " one. Its tables let any figure stand."
        )
        tables.draw(
            faults,
            {
                "kind": "Fault",
                "organization": "Organization",
                "token_type": "Token type",
                "stored": tables.number("Stored"),
                "expected": tables.number("Should be"),
            },
            context,
            "Faults in the old database",
        )
        st.caption(
            "The same organizations in these books: the balance that the customer can use was kept,"
            " the sums close, and each fault is a finding until somebody settles it."
        )
        names = ["kind", "organization", "token_type", "settlement"]
        data = tables.frame(findings, names, context)
        data.insert(3, "state", ["Settled" if row.settled_at else "Open" for row in findings])
        by = [people.get(row.settled_by or "", row.settled_by) for row in findings]
        data.insert(4, "settled_by", by)
        tables.show(
            data,
            {
                "kind": "Finding",
                "organization": "Organization",
                "token_type": "Token type",
                "state": "State",
                "settled_by": "By",
                "settlement": "With",
            },
            "Findings of the adoption",
        )
