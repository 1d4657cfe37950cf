"""The audit fails for what is known, and never calls good what nobody was asked about."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.audit import LOCKS, ROOT, main

GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {
    "name": "bad",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}],
}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found: unknown (3.0)"}


@pytest.mark.parametrize(
    ("packages", "strict", "lenient", "said"),
    [
        ([GOOD], 0, 0, "2 packages, no known vulnerability"),
        ([GOOD, BAD], 1, 1, "bad 2.0: PYSEC-1, mended in 2.1"),
        ([GOOD, UNKNOWN], 3, 0, "not audited: 1 (the index gives no advisories for unknown)"),
        ([UNKNOWN, BAD], 1, 1, "not audited: 1"),
        ([], 3, 0, "not audited: 2"),
        (None, 3, 0, "not audited: 2"),
    ],
)
def test_what_is_found_is_how_it_ends(
    capsys: pytest.CaptureFixture[str],
    packages: list[dict[str, Any]] | None,
    strict: int,
    lenient: int,
    said: str,
) -> None:
    answer = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    asked: list[str] = []

    def ask(lock: str) -> str:
        asked.append(lock)
        return answer

    assert main([], ask) == strict
    assert said in capsys.readouterr().out
    assert main(["--allow-unaudited"], ask) == lenient
    assert said in capsys.readouterr().out
    assert asked == [*LOCKS, *LOCKS]


def test_the_lock_files_are_there() -> None:
    assert all((ROOT / lock).is_file() for lock in LOCKS)
