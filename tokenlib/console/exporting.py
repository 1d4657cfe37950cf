"""Rows as a CSV file that a spreadsheet opens as data."""

from __future__ import annotations

import pandas as pd

from tokenlib.reports import neutralised


def csv(data: pd.DataFrame) -> bytes:
    """UTF-8 with a byte order mark, as spreadsheets expect; no cell of text starts a formula."""
    safe = data.apply(lambda column: column.map(neutralised))
    text: str = safe.to_csv(index=False)
    return text.encode("utf-8-sig")
