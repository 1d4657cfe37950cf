"""A database for several tests: a copy of the template, on a Citus one on every node."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from tests import citus
from tokenlib.embedded import Embedded
from tokenlib.testing import TestDatabase


@contextmanager
def copied(server: Embedded) -> Iterator[TestDatabase]:
    """Fresh, migrated, and gone afterwards."""
    if os.environ.get("TOKENLIB_TEST_CITUS"):
        with citus.fresh(server) as database:
            yield database
        return
    database = TestDatabase(server, f"test_{uuid.uuid4().hex[:12]}")
    with TestDatabase(server, "postgres").connect("postgres") as connection:
        connection.execute(
            f'create database "{database.name}" template tokenlib_template strategy file_copy'
        )
        try:
            yield database
        finally:
            connection.execute(f'drop database "{database.name}" with (force)')
