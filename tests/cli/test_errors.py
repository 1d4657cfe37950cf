"""Help, exit codes, and errors that end in one plain line."""

from __future__ import annotations

import subprocess
import sys
import uuid
from importlib import metadata
from pathlib import Path

import click
import pytest

from tests.cli.shell import Shell
from tokenlib.cli import main
from tokenlib.cli.output import Failure, failures
from tokenlib.errors import BooksBroken
from tokenlib.testing import TestDatabase

COMMANDS = (
    ["demo"],
    ["initialize", "--all"],
    ["migrate"],
    ["refresh"],
    ["serve"],
    ["stats", str(uuid.uuid4())],
    ["verify"],
)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_that_tells_its_exit_codes(nowhere: Shell, command: str) -> None:
    text = nowhere(command, "--help").stdout
    assert text.startswith(f"Usage: tokenlib {command} [OPTIONS]")
    assert "Exit codes: 0 done; 1 refused" in text
    assert nowhere(command, "-h").stdout == text


def test_the_help_lists_every_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tokenlib", "--help"], capture_output=True, text=True, check=True
    )
    listed = result.stdout.partition("Commands:")[2]
    assert result.stdout.startswith("Usage: tokenlib [OPTIONS] COMMAND [ARGS]...")
    assert {line.split()[0] for line in listed.splitlines() if line[:3].strip()} >= {
        *("serve", "migrate", "demo", "initialize", "refresh", "verify", "replay", "stats")
    }


def test_the_version_is_that_of_the_package(nowhere: Shell) -> None:
    try:
        version = metadata.version("tokenlib-ai")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    assert nowhere("--version").stdout == f"tokenlib {version}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["verify", "--frobnicate"],
        ["stats"],
        ["initialize"],
        ["initialize", "--all", "an organization"],
        ["serve", "--port", "0"],
        ["serve", "--port", "abc"],
        ["serve", "--port", "65536"],
        ["replay", "missing.csv"],
        ["replay", "."],
        ["replay", __file__, "--workers", "0"],
        ["replay", __file__, "--speed", "0"],
        ["replay", __file__, "--speed", "nan"],
        ["replay", __file__, "--speed", "inf"],
        ["explain", str(uuid.uuid4()), "general", "--at", "2999-01-01"],
        ["replay", __file__, "--limit", "-1"],
    ],
)
def test_a_command_that_makes_no_sense_ends_with_2(nowhere: Shell, arguments: list[str]) -> None:
    result = nowhere(*arguments, exit_code=2)
    assert result.stdout == ""
    assert "Usage: tokenlib" in result.stderr
    assert "Error: " in result.stderr


@pytest.mark.parametrize("command", [*COMMANDS[:4], COMMANDS[6]], ids=lambda command: command[0])
def test_a_data_folder_that_cannot_be_used_ends_with_3(nowhere: Shell, command: list[str]) -> None:
    folder = nowhere.environment["TOKENLIB_DATA_DIR"]
    message = nowhere.error(*command, exit_code=3)
    assert message.startswith(f"The data folder {folder} cannot be used: ")
    assert message.endswith("Name another with TOKENLIB_DATA_DIR.")


def test_a_data_folder_of_another_version_ends_with_3(nowhere: Shell, tmp_path: Path) -> None:
    pgdata = tmp_path / "old" / "pgdata"
    pgdata.mkdir(parents=True)
    (pgdata / "PG_VERSION").write_text("13\n")
    message = nowhere.set(TOKENLIB_DATA_DIR=str(pgdata.parent)).error("verify", exit_code=3)
    assert message.startswith(f"The folder {pgdata} belongs to PostgreSQL 13")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_database_that_is_down_ends_with_3(nowhere: Shell, command: list[str]) -> None:
    extra = ["--yes"] if command == ["demo"] else []
    url = "postgresql://somebody:secret@127.0.0.1:1/nothing"
    message = nowhere.set(TOKENLIB_DATABASE_URL=url).error(*command, *extra, exit_code=3)
    assert message.startswith("The database did not answer: ")
    assert "secret" not in message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TOKENLIB_DATABASE_URL", "sqlite:///x", "TOKENLIB_DATABASE_URL must start with"),
        ("TOKENLIB_PORT", "http", "TOKENLIB_PORT must be a whole number from 1 to 65535."),
        ("TOKENLIB_SWITCH", "on", "TOKENLIB_SWITCH must be enforce, log_only or off, or unset."),
    ],
)
def test_a_setting_that_cannot_be_meant_ends_with_3(
    nowhere: Shell, name: str, value: str, said: str
) -> None:
    assert nowhere.set(**{name: value}).error("verify", exit_code=3).startswith(said)


@pytest.mark.parametrize("command", [["verify"], ["refresh"], ["serve"]])
def test_a_database_that_is_not_migrated_ends_with_3(
    nowhere: Shell, empty: TestDatabase, command: list[str]
) -> None:
    message = nowhere.set(TOKENLIB_DATABASE_URL=empty.url()).error(*command, exit_code=3)
    assert "Run `tokenlib migrate`" in message


@pytest.mark.parametrize(
    ("version", "said"), [("0000", "Run `tokenlib migrate`."), ("9999", "Install the newer")]
)
def test_a_schema_of_another_version_ends_with_3(
    shell: Shell, token_database: TestDatabase, version: str, said: str
) -> None:
    with token_database.connect() as connection:
        connection.execute("update tokenlib.alembic_version set version_num = %s", (version,))
    message = shell.error("verify", exit_code=3)
    assert message.startswith(f"The database is at schema version {version}")
    assert said in message


@pytest.mark.parametrize("command", ["stats", "verify", "refresh", "initialize"])
def test_an_organization_that_is_none(shell: Shell, command: str) -> None:
    for text in ("acme", ""):
        expected = f"organization must be a UUID, not {text!r}"
        assert shell.error(command, text, exit_code=2) == expected
    unknown = uuid.uuid4()
    assert shell.error(command, unknown, exit_code=1) == f"There is no organization {unknown}."


def test_a_login_that_may_not_ends_with_3(shell: Shell, token_database: TestDatabase) -> None:
    with token_database.connect() as connection:
        connection.execute("revoke select on ai_tokens from tokenlib_service")
    assert shell.error("verify", exit_code=3).startswith("The database refused: ")


def test_no_traceback_unless_it_is_asked_for(shell: Shell) -> None:
    unknown = str(uuid.uuid4())
    result = shell("stats", unknown, exit_code=1)
    assert "Traceback" not in result.stderr
    asked = subprocess.run(
        [sys.executable, "-m", "tokenlib", "stats", unknown],
        env={**{k: v for k, v in shell.environment.items() if v}, "TOKENLIB_DEBUG": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 1
    assert "Traceback" in asked.stderr
    assert "UnknownOrganization" in asked.stderr


def test_what_nobody_foresaw_is_one_line_too() -> None:
    with pytest.raises(Failure) as unforeseen, failures(debug=False):
        raise KeyError("x")
    assert unforeseen.value.exit_code == 1
    assert unforeseen.value.message.startswith("Unexpected KeyError: 'x'.")
    with pytest.raises(KeyError), failures(debug=True):
        raise KeyError("x")


def test_the_other_ends_of_a_command() -> None:
    with pytest.raises(Failure) as broken, failures(debug=False):
        raise BooksBroken("The sums do not close.")
    assert broken.value.exit_code == 1
    with pytest.raises(Failure, match="/no/where: No such file") as missing, failures(debug=False):
        Path("/no/where").read_text()
    assert missing.value.exit_code == 1
    with pytest.raises(click.exceptions.Exit) as interrupted, failures(debug=False):
        raise KeyboardInterrupt
    assert interrupted.value.exit_code == 130


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--port", "abc"], "must be a whole number from 1 to 65535, not 'abc'"),
        (["serve", "--port", "70000"], "must be a whole number from 1 to 65535, not '70000'"),
        (["replay", __file__, "--limit", "x"], "must be a whole number from 1 on, not 'x'"),
    ],
)
def test_a_number_that_is_none_is_told_its_bounds(
    nowhere: Shell, arguments: list[str], said: str
) -> None:
    assert said in nowhere(*arguments, exit_code=2).stderr
