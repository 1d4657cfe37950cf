"""Connections outside the pool: the owner's, and which server they may be used on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.rows import DictRow, dict_row

from tokenlib.db import statements, translate

Owner = psycopg.Connection[DictRow]


@contextmanager
def connected(url: str | sa.URL, *, options: str = "") -> Iterator[Owner]:
    """A connection in autocommit, in UTC; driver errors become ours."""
    plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(
            plain,
            autocommit=True,
            row_factory=dict_row,
            options=f"-c timezone=UTC {options}",
            application_name="tokenlib demo",
        ) as connection:
            yield connection
    except psycopg.Error as error:
        raise translate(error) from error


@contextmanager
def only_one(url: str, *, options: str = "") -> Iterator[Owner]:
    """The owner's connection, while nobody else loads or resets this database."""
    with connected(url, options=options) as connection:
        connection.execute(statements("load", "demo")["lock"])
        yield connection


def bundled(url: str | sa.URL) -> bool:
    """Whether this is the bundled server, by its socket in a data folder of ours."""
    host = sa.make_url(url).query.get("host")
    return isinstance(host, str) and (Path(host).parent / "pgdata").is_dir()


def first(connection: Owner, statement: str, params: dict[str, Any] | None = None) -> DictRow:
    """The one row of a question that always has one."""
    row = connection.execute(statement, params).fetchone()
    if row is None:
        raise psycopg.DataError("a question had no answer")
    return row
