"""Scale: its arithmetic is right, its query runs, and what it names is there."""

from __future__ import annotations

import re

import pytest

from tests.docs.test_examples import ROOT, blocks
from tokenlib import Tokens, migrations
from tokenlib.snapshot import packaged
from tokenlib.testing import TestDatabase

PAGE = ROOT / "docs" / "scale.md"
TEXT = PAGE.read_text("utf-8")
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
SECONDS = 86_400


def capacity() -> list[list[str]]:
    """The rows of the table, from charges a day to the disk of a year."""
    rows = re.findall(r"^\|[^|]+\| ([\d,]+) \|(.*)$", TEXT, flags=re.MULTILINE)
    return [[charges, *(cell.strip() for cell in rest.split("|")[:5])] for charges, rest in rows]


def number(cell: str) -> float:
    found = re.fullmatch(r"([\d.,]+) ?(\w\w)?(?: \(Citus\))?", cell)
    assert found, cell
    return float(found[1].replace(",", "")) * UNITS.get(found[2], 1)


def test_the_capacity_table_is_its_own_formula() -> None:
    per_charge = re.findall(r"peak × ([\d.]+) ms, on Citus × ([\d.]+) ms", TEXT)
    plain, citus = (float(found) / 1000 for found in per_charge[0])
    [kilobytes] = map(float, re.findall(r"\*c\* × ([\d.]+) kB", TEXT))
    rows = capacity()
    assert [number(row[0]) for row in rows] == [10.0**power for power in range(2, 10)]
    for row in rows:
        a_second = number(row[0]) / SECONDS
        of_one = citus if row[3].endswith("(Citus)") else plain
        a_day = number(row[0]) * kilobytes * 1000
        expected = [a_second, 10 * a_second, 10 * a_second * of_one, a_day, 365 * a_day]
        for cell, value in zip(row[1:], expected, strict=True):
            if cell == "< 0.01":
                assert value < 0.01
            else:
                assert number(cell) == pytest.approx(value, rel=0.05), (row, cell)


def test_its_query_runs(tokens: Tokens, token_database: TestDatabase) -> None:
    organization = tokens.create_organization("Acme", "pro")
    user = tokens.add_member(organization, "A member", "member@example.org")
    tokens.deduct_tokens(organization, user, "generate_goal")
    query = next(block.text for block in blocks(PAGE, "sql") if "bytes_per_charge" in block.text)
    with token_database.connect("tokenlib_service") as connection:
        found = connection.execute(query.encode()).fetchone()
    assert found is not None
    assert found[1] > 0


def test_every_table_has_its_place_on_citus() -> None:
    named = set(
        re.findall(
            r"'((?:ai_token|tokenlib_|organizations|user_profiles|quests)\w*)'",
            migrations.citus_sql(),
        )
    )
    ours = {name.partition(".")[2] for name in packaged()["table"]} - {"alembic_version"}
    assert named == ours
