"""When the server or its database fails: no, with the time to try again, and not a word more."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tokenlib.db import Database
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Books, Join, Member, Serve

UNAVAILABLE = (
    "The service cannot answer now. Try again shortly, with the same Idempotency-Key if you sent"
    " one, so that nothing is charged twice."
)


def assert_unavailable(member: Member) -> None:
    for answer in (member.ask("check"), member.ask("deduct"), member.stats()):
        assert (answer.status_code, answer.json()) == (503, {"error": UNAVAILABLE})
        assert int(answer.headers["Retry-After"]) > 0


def test_no_database(join: Join, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = "postgresql+psycopg://somebody@/tokenlib?host=/nowhere/at/all"
    with Tokens(Database(nowhere)) as cut_off:
        assert_unavailable(join(client=serve(lambda: cut_off)))
    # What callers are not told stands in the log.
    assert "/nowhere/at/all" in caplog.text


def test_a_database_that_is_not_migrated(
    join: Join, serve: Serve, token_database: TestDatabase
) -> None:
    with Tokens(Database(token_database.server.url("postgres", "tokenlib_service"))) as empty:
        assert_unavailable(join(client=serve(lambda: empty)))


def test_a_database_that_goes_and_comes_back(
    member: Member, token_database: TestDatabase, books: Books
) -> None:
    assert member.ask("check").status_code == 200
    before = books()
    stop = f'alter database "{token_database.name}" allow_connections false'
    leave = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = %s and usename = 'tokenlib_service'"
    )
    maintenance = TestDatabase(token_database.server, "postgres")
    with maintenance.connect("postgres") as operator:
        operator.execute(stop)
        operator.execute(leave, (token_database.name,))
        try:
            assert_unavailable(member)
        finally:
            operator.execute(stop.replace("false", "true"))
    assert books() == before
    assert member.ask("deduct").json()["remainingBalance"] == 17


def test_a_wallet_that_is_busy(
    join: Join, serve: Serve, token_database: TestDatabase, books: Books
) -> None:
    member = join()
    with token_database.connect("postgres") as operator:
        operator.execute(
            f'alter role tokenlib_service in database "{token_database.name}"'
            " set lock_timeout = '50ms'"
        )
    before = books()
    with Tokens(Database(token_database.url())) as impatient, token_database.connect() as other:
        client = serve(lambda: impatient)
        with other.transaction():
            other.execute("select from public.ai_tokens for update")
            blocked = replace(member, client=client).ask("deduct")
    assert (blocked.status_code, blocked.json()) == (503, {"error": UNAVAILABLE})
    assert books() == before


def test_what_nobody_foresaw(join: Join, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Tokens:
        raise RuntimeError("a detail for the log")

    answer = join(client=serve(broken)).ask("deduct")
    assert answer.status_code == 500
    assert set(answer.json()) == {"error"}
    assert "a detail" not in answer.text
    assert answer.headers["cache-control"] == "no-store"
    [entry] = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert entry.exc_info is not None
    assert "a detail for the log" in entry.getMessage()


def test_a_database_that_refuses_the_gate(
    member: Member, token_database: TestDatabase, books: Books
) -> None:
    before = books()
    with token_database.connect() as owner:
        owner.execute("revoke execute on all functions in schema tokenlib from tokenlib_service")
    for answer in (member.ask("deduct"), member.stats()):
        assert answer.status_code == 500
        assert answer.json() == {
            "error": "The server failed. What was asked was not done or not confirmed;"
            " try again later."
        }
    assert books() == before
