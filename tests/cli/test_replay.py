"""replay: what it prints, and what stops it before anything is charged."""

from __future__ import annotations

import hashlib
import re
import uuid
from pathlib import Path
from uuid import UUID

import pytest
from psycopg import sql

from tests.cli.shell import Shell
from tokenlib import Tokens
from tokenlib.testing import TestDatabase


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Sixty small requests."""
    path = tmp_path / "trace.csv"
    rows = (f"2023-11-16 18:17:{n:02}.0319600,{n},7" for n in range(60))
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return path


def count(database: TestDatabase, table: str) -> int:
    with database.connect() as connection:
        query = sql.SQL("select count(*) from {}").format(sql.Identifier(table))
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def test_it_reports_and_verifies(shell: Shell, token_database: TestDatabase, trace: Path) -> None:
    result = shell("replay", trace, "--workers", 8, "--organizations", 5, "--run", "first")
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"Run first: 60 requests in \d+\.\d s\.", lines[0])
    assert re.fullmatch(r"charged +48  48 tokens", lines[2])
    assert re.fullmatch(r"charged before +0  not charged again", lines[3])
    assert re.fullmatch(r"refused +12  feature_not_in_plan 12", lines[4])
    assert re.fullmatch(r"errors +0", lines[5])
    number = r"\d+(\.\d+)?"
    assert re.fullmatch(
        rf"[\d,]+ requests/s; latency p50 {number} ms, p95 {number} ms, p99 {number} ms\.", lines[6]
    )
    assert lines[7] == "Verified 25 wallets, 73 entries: the books close."
    assert result.stderr == ""
    assert count(token_database, "ai_token_usage_log") == 48


def test_a_run_goes_on_where_it_stopped_and_charges_nothing_twice(
    shell: Shell, token_database: TestDatabase, trace: Path
) -> None:
    arguments = ("replay", trace, "--run", "first", "--organizations", 1)
    first = shell.json(*arguments, "--limit", 20)
    assert (first["rows"], first["charged"], first["replayed"]) == (20, 20, 0)
    second = shell.json(*arguments)
    assert (second["rows"], second["charged"], second["replayed"]) == (60, 40, 20)
    assert (second["errors"], second["problems"]) == ({}, [])
    assert set(second["latency_ms"]) == {"p50", "p95", "p99"}
    assert count(token_database, "ai_token_usage_log") == 60


def test_every_replay_is_a_run_of_its_own_unless_named(
    shell: Shell, token_database: TestDatabase, trace: Path
) -> None:
    runs = {shell.json("replay", trace, "--organizations", 2)["run"] for _ in range(2)}
    assert len(runs) == 2
    assert count(token_database, "organizations") == 4


def test_an_organization_of_ones_own(
    shell: Shell, tokens: Tokens, trace: Path, pro: tuple[UUID, UUID]
) -> None:
    report = shell.json("replay", trace, "--organization", pro[0])
    assert (report["charged"], report["refused"]) == (50, {"insufficient_tokens": 10})
    assert tokens.get_token_balance(pro[0], "general").balance == 0


def test_an_error_ends_with_1(
    shell: Shell, tokens: Tokens, trace: Path, pro: tuple[UUID, UUID]
) -> None:
    shell("replay", trace, "--organization", pro[0], "--run", "own", "--limit", 1)
    with trace.open("a") as file:
        file.write("\n")  # another digest: other keys
    digest = hashlib.sha256(trace.read_bytes()).hexdigest()[:32]
    key = f"replay:own:{digest}:2"
    tokens.deduct_tokens(*pro, "generate_insight", idempotency_key=key)
    result = shell("replay", trace, "--organization", pro[0], "--run", "own", exit_code=1)
    assert re.search(r"^errors +1  idempotency_conflict 1$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "trace.csv is empty."),
        (b"time,input_units\n", "trace.csv has no column for the output units."),
        ("time,input_units,output_units\n".encode("utf-16"), "trace.csv line 1 is not UTF-8 text."),
        (
            b"time,input_units,output_units\n2024-01-01,1,2\n2024-01-01,1,many\n",
            "trace.csv line 3, column output_units, must be a whole number from 0 to 1000000000",
        ),
    ],
)
def test_a_bad_file_ends_with_2_before_anything_is_charged(
    shell: Shell, token_database: TestDatabase, trace: Path, content: bytes, said: str
) -> None:
    trace.write_bytes(content)
    assert shell.error("replay", trace, exit_code=2).startswith(said)
    assert count(token_database, "organizations") == 0


def test_bad_rows_are_left_out_and_named_when_told_so(shell: Shell, trace: Path) -> None:
    with trace.open("a") as file:
        file.write("\nnever,1,2\n2024-01-01,1\n")
    result = shell("replay", trace, "--skip-bad-rows", "--organizations", 1)
    assert result.stdout.splitlines()[0].partition(": ")[2].startswith("60 requests in ")
    first, second, third = result.stderr.splitlines()
    assert first == "Skipping 2 bad rows, first of all:"
    assert second.startswith("  line 62, column TIMESTAMP, must be a time")
    assert third == "  line 63 has 2 fields, and the header has 3."


def test_bad_names_and_ids(shell: Shell, trace: Path) -> None:
    assert shell.error("replay", trace, "--run", "a b", exit_code=2).startswith("run must be")
    unknown = uuid.uuid4()
    message = shell.error("replay", trace, "--organization", unknown, exit_code=1)
    assert message == f"There is no organization {unknown}."
    message = shell.error("replay", trace, "--organization", "acme", exit_code=2)
    assert message == "organization must be a UUID, not 'acme'"


def test_a_database_that_goes_away_ends_with_3_and_tells_how_to_go_on(
    shell: Shell, token_database: TestDatabase, trace: Path, pro: tuple[UUID, UUID]
) -> None:
    with token_database.connect() as connection:
        for verb in ("deduct", "deduct_many"):  # one that is missing alone would let some pass
            connection.execute(f"alter function tokenlib.{verb} rename to {verb}_gone")
    with trace.open("a") as file:
        file.write("\n2024-01-01,1,2" * 60)
    result = shell("replay", trace, "--organization", pro[0], "--run", "own", exit_code=3)
    first, second = result.stderr.splitlines()
    assert first == "Stopped. With --run own it goes on and charges nothing twice."
    assert second.startswith("Error: The database has no tokenlib tables.")
