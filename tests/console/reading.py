"""Reads what a page drew: its figures, tables and charts; and the same by plain SQL."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]  # ships no types
from streamlit.testing.v1 import AppTest

from tokenlib.testing import TestDatabase


def plain(database: TestDatabase, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """The operators' own SQL, as the owner."""
    with database.connect() as owner:
        return owner.execute(statement, values).fetchall()


def parameter(app: AppTest, name: str) -> str:
    """A parameter of the address; empty when it is not there."""
    value = app.query_params.get(name, "")
    return value if isinstance(value, str) else value[0]


def table(app: AppTest, column: str) -> pd.DataFrame:
    """The first table that has this column."""
    found: pd.DataFrame = next(
        frame.value for frame in app.dataframe if column in frame.value.columns
    )
    return found


def figures(app: AppTest) -> dict[str, str]:
    """The metrics by label."""
    return {metric.label: metric.value for metric in app.metric}


def whole(text: str) -> int:
    """A figure as it is written: 1,820."""
    return int(text.replace(",", ""))


def chart(app: AppTest) -> pd.DataFrame:
    """The rows behind the first chart."""
    (data,) = app.get("vega_lite_chart")[0].proto.datasets
    frame: pd.DataFrame = pa.ipc.open_stream(io.BytesIO(data.data.data)).read_pandas()
    return frame
