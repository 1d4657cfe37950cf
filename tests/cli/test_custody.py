"""anchor, verify --anchor, settle, erase: files, exit codes and what is printed."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.cli.shell import Shell
from tokenlib import Tokens
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase

Person = tuple[UUID, UUID]


@pytest.fixture
def used(tokens: Tokens, pro: Person) -> Person:
    tokens.deduct_tokens(*pro, "generate_goal", metadata={"prompt": "a name"})
    return pro


def test_an_anchor_finds_a_tail_that_was_cut(
    shell: Shell, tokens: Tokens, token_database: TestDatabase, used: Person, tmp_path: Path
) -> None:
    file = tmp_path / "heads.jsonl"
    assert shell("anchor", "--output", file).stdout == f"5 wallets anchored in {file}.\n"
    assert [path.name for path in tmp_path.iterdir() if "heads" in path.name] == ["heads.jsonl"]
    assert shell("verify", "--anchor", file).stdout.endswith("the books close.\n")
    with token_database.connect("postgres") as admin:
        admin.execute("alter table ai_token_usage_log disable trigger append_only")
        admin.execute("delete from ai_token_usage_log")
        admin.execute(
            "update ai_tokens set log_number = 0, log_hash = '', balance = 20, total_used = 0,"
            " pending = 0, last_entry_at = (select max(created_at) from ai_token_events"
            " where token_type = 'goal_generation') where token_type = 'goal_generation'"
        )
    assert shell("verify").stdout.endswith("the books close.\n")
    said = shell("verify", "--anchor", file, exit_code=1).stdout
    assert "anchor tail cut" in said
    assert "log 1" in said
    assert shell.json("verify", "--anchor", file, exit_code=1)["closed"] is False


def test_old_rows_are_archived_and_proved(
    shell: Shell,
    token_database: TestDatabase,
    token_clock: TestClock,
    used: Person,
    tmp_path: Path,
) -> None:
    owner = token_database.url("tokenlib_owner")
    folder = tmp_path / "archive"
    tomorrow = f"{token_clock.now() + timedelta(days=1):%Y-%m-%d}"
    where = ("--to", folder, "--url", owner)
    message = shell.error("archive", "--before", tomorrow, *where, exit_code=2)
    assert message == "before must be at least 92 days ago"
    said = shell("archive", "--before", "2020-01-01", *where).stdout
    assert said == "No log row is from before 2020-01-01.\n"
    token_clock.advance(timedelta(days=100))
    said = shell("archive", "--before", tomorrow, *where).stdout
    assert said == f"1 log row of 1 wallet archived in 1 file in {folder}.\n"
    assert shell("verify", "--archive", folder).stdout.endswith("the books close.\n")
    made = shell("rollup", "--anew", "--archive", folder).stdout
    assert made.startswith("Closed up to ")
    assert "stand as they were" not in made
    kept = shell("rollup", "--anew").stdout
    assert kept.startswith(made)
    assert "since rows of then are archived" in kept
    assert "goes with --anew" in shell("rollup", "--archive", folder, exit_code=2).stderr
    [file] = folder.iterdir()
    file.unlink()
    missing = shell.error("rollup", "--anew", "--archive", folder, exit_code=2)
    assert missing.startswith(f"archive {file.name}: ")
    assert missing.endswith("No such file or directory")
    assert "archive missing" in shell("verify", "--archive", folder, exit_code=1).stdout
    assert shell("verify").stdout.endswith("the books close.\n")
    assert shell.json("archive", "--before", tomorrow, *where)["rows"] == 0


def test_it_prints_where_no_file_is_named(shell: Shell, used: Person) -> None:
    lines = [json.loads(line) for line in shell("anchor").stdout.splitlines()]
    assert lines[-1]["wallets"] == 5


def test_an_anchor_is_never_overwritten(shell: Shell, used: Person, tmp_path: Path) -> None:
    file = tmp_path / "heads.jsonl"
    file.write_text("kept")
    assert "never overwritten" in shell("anchor", "--output", file, exit_code=2).stderr
    assert file.read_text() == "kept"


def test_a_file_that_is_no_anchor_ends_with_2(shell: Shell, used: Person, tmp_path: Path) -> None:
    file = tmp_path / "other.txt"
    file.write_text("something else\n")
    said = shell.error("verify", "--anchor", file, exit_code=2)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert shell.error("verify", "--anchor", binary, exit_code=2) == (
        "anchor is no anchor of tokenlib: it is not UTF-8 text"
    )
    assert said == "anchor is no anchor of tokenlib: line 1"


def test_erase_says_how_much_and_keeps_the_books(
    shell: Shell, tokens: Tokens, used: Person
) -> None:
    assert shell("erase", *used, "--reason", "request 12").stdout == (
        "Metadata of 1 log row, 0 reservations and 0 quests erased.\n"
    )
    again = shell.json("erase", *used, "--reason", "request 12", "--actor", "privacy desk")
    assert again == {"log_entries": 0, "reservations": 0, "quests": 0}
    assert tokens.verify().closed


def test_erase_of_nobody_ends_with_1(shell: Shell, used: Person) -> None:
    for arguments in (("--reason", "request 12"), ("--reason", "request 12", "--json")):
        nobody = uuid4()
        said = shell.error("erase", used[0], nobody, *arguments, exit_code=1)
        assert said == f"User {nobody} is not a member of organization {used[0]}."


def test_erase_needs_a_reason_and_an_organization(shell: Shell, used: Person) -> None:
    assert "--reason" in shell("erase", *used, exit_code=2).stderr
    said = shell.error("erase", uuid4(), used[1], "--reason", "request 12", exit_code=1)
    assert said.startswith("There is no organization")


def test_an_anchor_that_cannot_be_written_names_its_file(
    shell: Shell, used: Person, tmp_path: Path
) -> None:
    file = tmp_path / "none" / "heads.jsonl"
    said = shell.error("anchor", "--output", file, exit_code=1)
    assert said == f"{file}: No such file or directory."


@pytest.fixture
def finding(tokens: Tokens, token_database: TestDatabase) -> tuple[UUID, UUID]:
    """A wallet of the old set-up script whose use is in no log: its organization and finding."""
    with token_database.connect() as owner:
        row = owner.execute(
            "insert into organizations (name, plan) values ('Acme', 'pro') returning id"
        ).fetchone()
        assert row is not None
        owner.execute(
            "insert into ai_tokens"
            " (organization_id, token_type, balance, total_allocated, total_used)"
            " values (%s, 'general', 45, 50, 5)",
            row,
        )
        tokens.get_token_balance(row[0], "general")
        found = owner.execute("select id from ai_token_findings").fetchone()
    assert found is not None
    return row[0], found[0]


def test_a_finding_is_listed_and_settled_once(
    shell: Shell, tokens: Tokens, finding: tuple[UUID, UUID]
) -> None:
    organization, finding_id = finding
    before = tokens.get_token_balance(organization, "general")
    listed = shell("settle").stdout
    assert str(finding_id) in listed
    assert "total_used 5, the log of the period says 0" in listed
    said = shell("settle", finding_id, "--reason", "kept for the customer", "--actor", "on call")
    assert said.stdout == (
        "Settled: used differs from log, total_used 5, the log of the period says 0.\n"
    )
    [settled] = Reports(tokens.database).findings()
    assert (settled.settled_by, settled.settlement) == ("on call", "kept for the customer")
    assert tokens.get_token_balance(organization, "general") == before
    assert shell("settle").stdout == "There are no open findings.\n"
    assert shell.json("settle") == {"findings": []}
    again = shell.error("settle", finding_id, "--reason", "twice", exit_code=1)
    assert "settled" in again
    assert tokens.verify().closed


def test_settling_needs_a_reason_and_a_finding(shell: Shell, finding: tuple[UUID, UUID]) -> None:
    assert "--reason" in shell("settle", finding[1], exit_code=2).stderr
    assert "--reason is for one FINDING" in shell("settle", "--reason", "x", exit_code=2).stderr
    nobody = uuid4()
    assert f"no finding {nobody}" in shell("settle", nobody, "--reason", "x", exit_code=2).stderr
    assert "is not a valid UUID" in shell("settle", "7", "--reason", "x", exit_code=2).stderr
    assert str(finding[1]) in shell("settle").stdout
