"""adopt: what it prints, in words and as JSON, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.shell import Shell
from tests.db import old_system
from tokenlib.embedded import Embedded
from tokenlib.testing import TestDatabase


@pytest.fixture(scope="module")
def product(token_server: Embedded) -> Iterator[Embedded]:
    with old_system.roles(token_server):
        yield token_server


@pytest.fixture
def old(product: Embedded) -> Iterator[TestDatabase]:
    with old_system.database(product) as database:
        yield database


def test_first_dry_then_real_then_nothing(nowhere: Shell, old: TestDatabase) -> None:
    shell = nowhere.set(TOKENLIB_MIGRATION_URL=old.url(old_system.OWNER))
    said = shell("migrate", exit_code=3).stderr
    assert "`tokenlib adopt --dry-run`" in said

    dry = shell("adopt", "--dry-run").stdout.splitlines()
    assert (
        dry[0]
        == "Would change the owner of ai_token_usage_log from product_owner to tokenlib_owner."
    )
    assert "13 findings, kept until each is settled:" in dry
    assert any("balance 9999, the old emergency value" in line for line in dry)
    assert dry[-1] == "39 wallets and 3,360 log rows would be taken in. Nothing was changed."
    as_json = shell.json("adopt", "--dry-run")
    assert (as_json["before"], as_json["changed"], as_json["wallets"]) == ("old", False, 39)
    assert len(as_json["findings"]) == 13

    done = shell("adopt").stdout.splitlines()
    assert done[0] == dry[0].replace("Would", "Done:")
    assert done[-1] == "39 wallets and 3,360 log rows taken in, no usable balance changed."

    assert shell("adopt").stdout == "The database is tokenlib's already. Nothing was done.\n"
    assert shell.json("adopt")["changed"] is False
    assert shell("migrate").stdout.endswith("already.\n")


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_database_without_old_tables_ends_with_3(
    nowhere: Shell, empty: TestDatabase, options: tuple[str, ...]
) -> None:
    said = nowhere.error("adopt", *options, "--url", empty.url("tokenlib_owner"), exit_code=3)
    assert said.startswith(
        "There are no old tables here. Use `tokenlib migrate` for a new database."
    )


def test_another_database_ends_with_3(nowhere: Shell, empty: TestDatabase) -> None:
    with empty.connect("tokenlib_owner") as owner:
        owner.execute("create table ai_tokens (id uuid, balance text)")
    said = nowhere.error("adopt", "--url", empty.url("tokenlib_owner"), exit_code=3)
    assert said.startswith(
        "The database is not that of the old token system, so nothing was changed"
    )
    for difference in ("ai_token_usage_log is missing", "ai_tokens.balance is text, not integer"):
        assert difference in said


def test_the_bundled_database_is_never_old(nowhere: Shell) -> None:
    assert "Name the database" in nowhere("adopt", exit_code=2).stderr
