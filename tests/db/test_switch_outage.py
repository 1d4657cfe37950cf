"""The night when the database is down: no without TOKENLIB_SWITCH, yes with it, and on record."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tokenlib import (
    DatabaseUnavailable,
    InvalidInput,
    NothingToRefund,
    Settings,
    Tokens,
    UnknownFeature,
    connect,
)
from tokenlib.config import SwitchOverride
from tokenlib.domain import SwitchSetting
from tokenlib.testing import TestClock, TestDatabase

Person = tuple[UUID, UUID]
GOAL = "generate_goal"


@contextmanager
def gate(url: str, switch: SwitchOverride | None) -> Iterator[Tokens]:
    settings = Settings(Path("/nowhere"), database_url=url, switch=switch, deadline=0.2)
    with connect(settings=settings) as tokens:
        yield tokens


@contextmanager
def down(database: TestDatabase) -> Iterator[None]:
    """The database is away: nobody gets in, and whoever was in is out."""
    with TestDatabase(database.server, "postgres").connect("postgres") as operator:
        stop = f'alter database "{database.name}" allow_connections '
        operator.execute(stop + "false")
        operator.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s",
            (database.name,),
        )
        try:
            yield
        finally:
            operator.execute(stop + "true")


@pytest.fixture
def url(token_database: TestDatabase) -> str:
    return token_database.url().replace("+psycopg", "")


def let_through(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [each for each in caplog.records if "on no book" in each.getMessage()]
    assert all(each.levelno == logging.WARNING and each.name == "tokenlib" for each in found)
    caplog.clear()
    return [each.getMessage() for each in found]


@pytest.mark.parametrize("switch", [None, "enforce"])
def test_without_it_every_answer_is_no(
    token_database: TestDatabase, url: str, pro: Person, switch: SwitchOverride | None
) -> None:
    with gate(url, switch) as tokens:
        held = tokens.reserve(*pro, GOAL)
        with down(token_database):
            for call in (
                lambda: tokens.deduct_tokens(*pro, GOAL),
                lambda: tokens.reserve(*pro, GOAL),
                lambda: tokens.deduct(held),
                lambda: tokens.release(held),
                lambda: tokens.has_enough_tokens(pro[0], GOAL),
                lambda: tokens.can_use(*pro, GOAL),
            ):
                with pytest.raises(DatabaseUnavailable):
                    call()
            with pytest.raises(DatabaseUnavailable), tokens.spend(*pro, GOAL):
                pytest.fail("the body ran")
            with pytest.raises(DatabaseUnavailable):
                connect(url)
        assert tokens.deduct(held).remaining_balance == 17


@pytest.mark.parametrize("switch", ["log_only", "off"])
def test_with_it_each_call_passes_is_on_no_book_and_one_line_of_the_log(
    token_database: TestDatabase,
    url: str,
    pro: Person,
    switch: SwitchOverride,
    caplog: pytest.LogCaptureFixture,
) -> None:
    organization, user = pro
    with gate(url, switch) as tokens:
        with down(token_database):
            caplog.clear()
            usage = tokens.deduct_tokens(organization, user, GOAL, 2, idempotency_key="key")
            assert not usage.booked
            assert (usage.tokens_deducted, usage.tokens_waived) == (0, 6)
            assert (usage.token_type, usage.feature) == ("goal_generation", GOAL)
            assert (usage.organization_id, usage.user_id) == pro
            [line] = let_through(caplog)
            for part in (f"TOKENLIB_SWITCH={switch}", "deduct_tokens", *map(str, pro), GOAL):
                assert part in line

            ran = []
            with tokens.spend(organization, str(user), GOAL) as held:
                ran.append(held)
            assert not held.booked
            assert (held.tokens, held.units) == (0, 1)
            [line] = let_through(caplog)
            assert (
                f"let reserve through, on no book: organization {organization}, user {user}" in line
            )

            # What follows on such a hold asks nobody, and is in that line already.
            held = tokens.reserve(organization, user, GOAL, 2)
            assert len(let_through(caplog)) == 1
            settled = tokens.deduct(held, 1)
            assert (settled.booked, settled.tokens_waived) == (False, 3)
            with pytest.raises(InvalidInput, match="at most the 2 that are held"):
                tokens.deduct(held, 3)
            tokens.release(held)
            with pytest.raises(NothingToRefund):
                tokens.refund(usage, "nothing was paid")

            async def run() -> bool:
                async with tokens.aio.spend(organization, user, GOAL) as twin:
                    return not twin.booked

            assert asyncio.run(run())
            assert len(let_through(caplog)) == 1

            # Questions let nothing through, so nothing is logged.
            assert tokens.has_enough_tokens(organization, GOAL, 1000)
            verdict = tokens.can_use(organization, user, GOAL)
            assert (verdict.allowed, verdict.rule, verdict.needed) == (True, None, 3)
            assert "the database does not answer" in verdict.message
            # What can be known without the database is still refused.
            with pytest.raises(UnknownFeature):
                tokens.deduct_tokens(organization, user, "generate_gaol")
            with pytest.raises(InvalidInput):
                tokens.deduct_tokens(organization, user, GOAL, 0)
            assert let_through(caplog) == []
        # It is back: the books again, where the switch waives as ever.
        again = tokens.deduct_tokens(organization, user, GOAL, 2, idempotency_key="key")
        assert again.booked
        assert (again.tokens_deducted, again.tokens_waived) == (0, 6)
        # A hold from the night is no business of the books in the morning either.
        tokens.release(held)
        assert not tokens.deduct(held).booked
        rows = tokens.database.rows("select id from ai_token_usage_log")
    assert rows == [{"id": again.id}]
    assert ran


@pytest.mark.parametrize("verb", ["deduct", "release"])
def test_a_hold_from_before_the_outage_passes_too(
    token_database: TestDatabase,
    url: str,
    pro: Person,
    verb: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with gate(url, "log_only") as tokens:
        held = tokens.reserve(*pro, GOAL)
        assert held.booked
        with down(token_database):
            if verb == "deduct":
                usage = tokens.deduct(held)
                assert (usage.booked, usage.tokens_deducted, usage.tokens_waived) == (False, 0, 3)
            else:
                tokens.release(held)
        [line] = let_through(caplog)
        assert f"let {verb} through" in line
        # It is still on the books, and ends by itself or now.
        assert tokens.deduct(held).booked


def test_a_process_that_starts_in_the_outage_serves_and_knows_no_costs(
    token_database: TestDatabase, url: str, pro: Person, caplog: pytest.LogCaptureFixture
) -> None:
    with down(token_database), gate(url, "off") as tokens:
        assert "starting without the database" in caplog.text
        usage = tokens.deduct_tokens(*pro, GOAL, 2)
        assert (usage.booked, usage.tokens_waived, usage.token_type) == (False, 0, "unknown")
        assert not tokens.reserve(*pro, "anything at all").booked
        assert tokens.can_use(*pro, GOAL).needed == 0


def test_with_it_nobody_waits_long_for_the_books(
    token_database: TestDatabase, url: str, pro: Person
) -> None:
    settings = Settings(Path("/nowhere"), database_url=url, switch="off", deadline=100)
    with connect(settings=settings) as tokens, down(token_database):
        began = time.monotonic()
        assert not tokens.deduct_tokens(*pro, GOAL).booked
        assert time.monotonic() - began < 50


def test_the_deadline_is_the_caller_s_before_the_environment_s(
    token_database: TestDatabase, url: str, pro: Person
) -> None:
    patient = Settings(Path("/nowhere"), database_url=url, deadline=100)
    with connect(settings=patient, deadline=0.2) as tokens, down(token_database):
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            tokens.deduct_tokens(*pro, GOAL)
        assert time.monotonic() - began < 50
    with pytest.raises(InvalidInput, match="deadline must be from"):
        connect(url, deadline=0)


def test_tables_that_are_not_there_yet_are_an_outage(
    token_database: TestDatabase, pro: Person
) -> None:
    """The night of a restore: the server answers, the books do not."""
    empty = token_database.server.url("postgres", "tokenlib_service").replace("+psycopg", "")
    with gate(empty, "log_only") as tokens:
        assert not tokens.deduct_tokens(*pro, GOAL).booked
        assert tokens.switch_state().answered is False
    with token_database.connect() as owner:
        owner.execute("revoke usage on schema tokenlib from tokenlib_service")
    with gate(token_database.url().replace("+psycopg", ""), "log_only") as tokens:
        assert not tokens.deduct_tokens(*pro, GOAL).booked


def test_nothing_that_is_on_the_books_can_be_made_to_look_off_them(
    tokens: Tokens, pro: Person
) -> None:
    held = tokens.reserve(*pro, GOAL)
    usage = tokens.deduct(replace(held, booked=False))
    assert (usage.booked, usage.tokens_deducted) == (False, 0)
    # Its hold stands, and can still be charged.
    assert tokens.deduct(held).tokens_deducted == 3


# What the console shows --------------------------------------------------------------------------


def test_the_state_of_the_switch_names_who_and_until_when(
    token_database: TestDatabase, tokens: Tokens, noon: datetime, pro: Person, url: str
) -> None:
    state = tokens.switch_state()
    assert (state.override, state.settings, state.answered) == (None, (), True)
    assert not state.lets_through

    until = noon + timedelta(hours=2)
    tokens.set_mode("off", pro[0], until=until, actor="on call", reason="a launch")
    tokens.set_mode("off", actor="somebody", reason="a mistake")
    clock = TestClock(token_database)
    clock.advance(timedelta(minutes=1))
    tokens.set_mode("log_only", actor="on call", reason="a new rule")
    globex = tokens.create_organization("Globex")
    initech = tokens.create_organization("Initech")  # with settings, and no mode of its own
    tokens.set_status(initech, "active", actor="x", reason="y")
    tokens.set_mode("enforce", globex, actor="x", reason="y")
    state = tokens.switch_state()
    assert state.lets_through
    everyone, *own = state.settings
    assert everyone == SwitchSetting(None, "log_only", None, "on call", "a new rule", clock.now())
    assert sorted(own, key=lambda each: each.mode) == [
        SwitchSetting(globex, "enforce", None, "x", "y", clock.now()),
        SwitchSetting(pro[0], "off", until, "on call", "a launch", noon),
    ]
    clock.set(until)
    assert [each.organization_id for each in tokens.switch_state().settings] == [None, globex]

    tokens.set_mode("enforce", actor="on call", reason="over")
    assert tokens.switch_state().settings == (), "an own enforce that differs from nothing"
    tokens.set_mode("log_only", actor="on call", reason="again")
    tokens.set_mode("enforce", globex, until=clock.now(), actor="on call", reason="own mode ends")
    assert [each.organization_id for each in tokens.switch_state().settings] == [None]

    with gate(url, "enforce") as strict:
        assert strict.switch_state().override == "enforce"
        assert not strict.switch_state().lets_through
    with gate(url, "off") as open_gate, down(token_database):
        state = open_gate.switch_state()
        assert (state.override, state.answered, state.lets_through) == ("off", False, True)


def test_an_organization_that_nobody_has_passes_too_while_nobody_can_look(
    token_database: TestDatabase, url: str
) -> None:
    with gate(url, "off") as tokens, down(token_database):
        usage = tokens.deduct_tokens(uuid4(), uuid4(), GOAL)
        assert usage.created_at <= datetime.now(UTC)
