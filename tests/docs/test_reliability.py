"""The page that names a test for each guard names only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.conftest import COLUMNS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")


def test_every_test_that_it_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 40
    for path, name in named:
        text = (ROOT / path).read_text("utf-8")
        assert re.search(rf"^def {name}\(", text, flags=re.MULTILINE), f"{path}::{name}"


def test_every_requirement_has_a_row() -> None:
    rows = re.findall(r"^\| ((?:[XTRLO]\d(?:, )?)+) \|", PAGE, flags=re.MULTILINE)
    assert set(re.findall(r"\w\d", " ".join(rows))) == {
        f"{group}{number}"
        for group, last in (("X", 6), ("T", 4), ("R", 8), ("L", 4), ("O", 3))
        for number in range(1, last + 1)
    }


def test_the_table_of_faults_has_the_columns_that_are_printed() -> None:
    assert "| " + " | ".join(COLUMNS) + " |" in PAGE
