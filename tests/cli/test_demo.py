"""demo: on a database of one's own it is written when told so, once, and can be reset."""

from __future__ import annotations

import re
from functools import partial

import pytest

from tests.cli.shell import Shell
from tokenlib import Tokens, demo
from tokenlib.demo import SCENARIOS
from tokenlib.testing import TestDatabase


def test_a_database_of_ones_own_is_filled_only_when_told_so(
    shell: Shell, token_database: TestDatabase
) -> None:
    result = shell("demo", exit_code=2)
    assert "TOKENLIB_DATABASE_URL names a database of your own. Give --yes" in result.stderr
    with token_database.connect() as connection:
        assert connection.execute("select count(*) from organizations").fetchone() == (0,)


def test_it_fills_once_and_goes_back_to_the_start(shell: Shell, tokens: Tokens) -> None:
    text = shell("demo", "--yes", "--charges", 1000, "--seed", 7).stdout
    assert re.fullmatch(
        r"Loaded 60 organizations, 400 users, [\d,]+ charges in \d+\.\d s\.\n", text
    )
    again = shell("demo", "--yes").stdout
    assert again.startswith("The demo data are there already: 60 organizations, 400 users, ")
    assert shell.json("demo", "--yes")["fresh"] is False

    healthy = SCENARIOS["healthy"]
    before = tokens.get_token_balance(healthy.organization_id, "goal_generation").balance
    tokens.deduct_tokens(healthy.organization_id, healthy.user_id, "generate_goal")
    text = shell("demo", "--yes", "--reset").stdout
    assert text == "The demo's scenarios are back at their start.\n"
    assert tokens.get_token_balance(healthy.organization_id, "goal_generation").balance == before
    assert shell.json("demo", "--yes", "--reset") == {"reset": True}
    assert shell.json("verify")["closed"] is True


def test_there_is_nothing_to_reset_before_a_load(shell: Shell) -> None:
    message = shell.error("demo", "--yes", "--reset", exit_code=3)
    assert message == "There is no demo here to reset. Load it first."


def test_a_reset_takes_no_size(nowhere: Shell) -> None:
    result = nowhere("demo", "--reset", "--seed", 0, exit_code=2)
    assert "--reset goes with none of --seed, --charges and --rows." in result.stderr
    result = nowhere("demo", "--charges", 1000, "--rows", 1000, exit_code=2)
    assert "--charges is the demo's size, --rows that of data for measuring." in result.stderr


def test_rows_for_measuring_go_into_an_empty_database(
    shell: Shell, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "Size", partial(demo.Size, organizations=20, users=90))
    text = shell("demo", "--yes", "--rows", 1000).stdout
    assert text.startswith("Loaded 20 organizations, 90 users, 1,0")
    message = shell.error("demo", "--yes", "--rows", 1000, exit_code=3)
    assert message.startswith("This database holds organizations already.")
    assert shell.json("verify")["closed"] is True
