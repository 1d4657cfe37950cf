"""doctor: one line each, ways out, and how it ends."""

from __future__ import annotations

import pytest

from tests.cli.shell import Shell
from tokenlib import migrations
from tokenlib.testing import TestDatabase


@pytest.fixture
def migrated(nowhere: Shell, empty: TestDatabase) -> Shell:
    """A shell on a database with the real clock."""
    migrations.upgrade(empty.url("tokenlib_owner"))
    return nowhere.set(TOKENLIB_DATABASE_URL=empty.url())


def test_a_healthy_database(migrated: Shell) -> None:
    lines = migrated("doctor", "--smoke").stdout.splitlines()
    assert all(line.startswith("ok       ") for line in lines), lines
    assert lines[0].startswith("ok       start: ")
    assert lines[-1] == "ok       smoke: a charge and its refund, rolled back"
    as_json = migrated.json("doctor")
    assert as_json["ok"] is True
    assert as_json["checks"][0] == {
        "name": "start",
        "status": "ok",
        "detail": "version, durability settings and schema version fit",
        "way_out": "",
    }


def test_what_failed_comes_with_a_way_out(migrated: Shell, empty: TestDatabase) -> None:
    with empty.connect("tokenlib_owner") as owner:
        owner.execute("drop index usage_by_time")
    lines = migrated("doctor", exit_code=1).stdout.splitlines()
    at = lines.index("failed   indexes: missing: public.ai_token_usage_log.usage_by_time")
    assert lines[at + 1] == (
        "         Apply what `tokenlib migrate --sql` prints for it, as tokenlib_owner."
    )
    assert migrated.json("doctor", exit_code=1)["ok"] is False


def test_the_owner_s_login_is_refused(nowhere: Shell, migrated: Shell, empty: TestDatabase) -> None:
    shell = nowhere.set(TOKENLIB_DATABASE_URL=empty.url("tokenlib_owner"))
    said = shell("doctor", exit_code=1).stdout
    assert "failed   login: tokenlib_owner has the owner's rights" in said
    assert "Set TOKENLIB_DATABASE_URL to the login tokenlib_service." in said


def test_a_database_without_tokenlib_fails(nowhere: Shell, empty: TestDatabase) -> None:
    shell = nowhere.set(TOKENLIB_DATABASE_URL=empty.url("tokenlib_owner"))
    assert "Run `tokenlib migrate`" in shell("doctor", exit_code=1).stdout


def test_a_database_that_does_not_answer_ends_with_3(nowhere: Shell) -> None:
    shell = nowhere.set(TOKENLIB_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    shell.error("doctor", exit_code=3)
