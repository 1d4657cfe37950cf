"""Rollups made anew when a month of the log lies in files: the same as before, in every table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.db.demo_loaded import OWNER
from tests.db.test_rollups import few_are_kept
from tokenlib import Tokens, archives, demo
from tokenlib.errors import InvalidInput
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase

NOW = datetime(2026, 5, 20, 9, 17, 23, tzinfo=UTC)
CUT = datetime(2026, 2, 15, tzinfo=UTC)  # the first month of 120 days
# All of them; how far each window is kept for hasty people is not what they hold.
TABLES = {
    "usage_closed": "closed_to, windows_to",
    "usage_sums": "*",
    "usage_kept": "*",
    "usage_windows": "*",
    "usage_pace": "*",
    "usage_costs": "*",
    "usage_cost_sums": "*",
    "usage_days": "*",
    "usage_active": "days, at, change, active",
    "usage_seen": "*",
    "usage_hasty": "*",
    "usage_bursts": "*",
    "wallet_sums": "*",
    "refusal_sums": "*",
    "refusal_windows": "*",
    "refusal_rules": "*",
    "refusal_seen": "*",
}


def contents(owner: psycopg.Connection) -> dict[str, list[Any]]:
    """Every rollup, row by row."""
    return {
        name: owner.execute(
            f"select {columns} from ai_token_{name} as t order by t::text".encode()  # noqa: S608
        ).fetchall()
        for name, columns in TABLES.items()
    }


@pytest.fixture
def closed(
    tokens: Tokens,
    token_clock: TestClock,
    token_database: TestDatabase,
    owner: psycopg.Connection,
) -> dict[str, list[Any]]:
    """The rollups of 120 days, closed week by week as a server does."""
    owner.execute("set timezone = 'UTC'")
    few_are_kept(owner)
    owner.execute("update ai_token_limits set alert_tokens_per_hour = 4")  # somebody is hasty
    token_clock.set(NOW)
    size = demo.Size(6_000, organizations=40, users=120)
    demo.load_rows(token_database.url(OWNER), tokens, size, now=NOW)
    owner.execute("select tokenlib.forget_usage()")
    token_clock.set(NOW - timedelta(days=115))  # somebody who came no more
    gone = tokens.create_organization("Gone", "pro")
    tokens.deduct_tokens(gone, tokens.add_member(gone, "A", "a@example.org"), "generate_goal")
    for weeks in range(17, -1, -1):
        token_clock.set(NOW - weeks * timedelta(days=7))
        tokens.close_usage()
        tokens.close_usage()
    made = contents(owner)
    assert all(made.values()), [name for name, rows in made.items() if not rows]
    known = owner.execute(
        "select count(*) filter (where plan is not null), count(user_id),"
        " count(organization_id) - count(user_id) from ai_token_usage_kept"
    ).fetchone()
    assert known is not None
    assert min(known) > 1
    assert owner.execute("select 1 from ai_token_usage_seen where last_at < %s", (CUT,)).fetchone()
    return made


def archive(database: TestDatabase, folder: Path) -> None:
    found = archives.archive(database.url(OWNER), folder, CUT, actor="keeper")
    assert found.rows > 400


def same(owner: psycopg.Connection, before: dict[str, list[Any]]) -> None:
    after = contents(owner)
    for name, rows in before.items():
        assert after[name] == rows, name


def test_they_are_the_same_with_the_figures_of_archived_time_kept(
    tokens: Tokens,
    token_database: TestDatabase,
    owner: psycopg.Connection,
    closed: dict[str, list[Any]],
    tmp_path: Path,
) -> None:
    assert tokens.archived_to() is None
    archive(token_database, tmp_path)
    kept_to = tokens.archived_to()
    assert kept_to is not None
    assert CUT - timedelta(days=1) < kept_to <= CUT
    tokens.close_usage(anew=True)
    same(owner, closed)
    assert Reports(tokens.database).rollup_differences() == []


def test_they_are_the_same_made_from_the_files(
    tokens: Tokens,
    token_database: TestDatabase,
    owner: psycopg.Connection,
    closed: dict[str, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archives, "_FILE_ROWS", 150)
    archive(token_database, tmp_path)
    # Whatever they said about the archived time: the files say it again.
    for change in (
        "update ai_token_usage_sums set tokens = tokens + 7, uses = uses + 1",
        "update ai_token_usage_seen set last_at = last_at - interval '1 day'",
        "update ai_token_usage_active set active = active + 3",
    ):
        owner.execute(change.encode())
    seen: list[tuple[int, int]] = []
    until = archives.roll_up(
        token_database.url(OWNER), tmp_path, progress=lambda *step: seen.append(step)
    )
    assert until == tokens.archived_to()
    assert len(seen) > 1
    assert seen[-1][0] == seen[-1][1] == len(list(tmp_path.iterdir()))
    tokens.close_usage()
    tokens.close_usage()
    same(owner, closed)
    left = owner.execute("select count(*) from ai_token_usage_log where created_at < %s", (CUT,))
    assert left.fetchone() == (0,)  # what was read is in no log


def test_a_file_that_is_missing_or_changed_changes_nothing(
    tokens: Tokens,
    token_database: TestDatabase,
    owner: psycopg.Connection,
    closed: dict[str, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert archives.roll_up(token_database.url(OWNER), tmp_path) is None  # nothing is archived
    monkeypatch.setattr(archives, "_FILE_ROWS", 150)
    archive(token_database, tmp_path)
    first, second = sorted(tmp_path.iterdir())[:2]
    whole = first.read_bytes()
    for instead, said in ((second.read_bytes(), "not what its entry says"), (b"", "no archive")):
        first.write_bytes(instead)
        with pytest.raises(InvalidInput, match=said):
            archives.roll_up(token_database.url(OWNER), tmp_path)
    first.unlink()
    with pytest.raises(InvalidInput, match="No such file"):
        archives.roll_up(token_database.url(OWNER), tmp_path)
    same(owner, closed)
    first.write_bytes(whole)
    owner.execute("delete from ai_token_usage_closed")
    with pytest.raises(Exception, match="usage is not closed"):
        archives.roll_up(token_database.url(OWNER), tmp_path)


def test_what_is_not_closed_far_enough_is_not_forgotten(
    tokens: Tokens,
    token_database: TestDatabase,
    owner: psycopg.Connection,
    closed: dict[str, list[Any]],
    tmp_path: Path,
) -> None:
    archive(token_database, tmp_path)
    owner.execute("update ai_token_usage_closed set closed_to = %s", (CUT,))
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="are archived"):
        owner.execute("select tokenlib.forget_usage()")
