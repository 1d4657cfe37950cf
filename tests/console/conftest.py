"""The console on a database of its own: personas and scenarios made by the gate's own verbs."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from tests.console.opening import Open, open_page
from tokenlib import demo
from tokenlib.config import Settings
from tokenlib.console import process
from tokenlib.db import Database
from tokenlib.embedded import Embedded
from tokenlib.errors import Refused
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

WORLD = "tokenlib_console"


@pytest.fixture(autouse=True)
def _main() -> Iterator[None]:
    """AppTest leaves its page behind as __main__, which a process spawned later would run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def world(token_server: Embedded) -> str:
    """A template with the demo's personas and scenarios, in the states that they promise."""
    with TestDatabase(token_server, "postgres").connect("postgres") as superuser:
        superuser.execute(
            f'create database "{WORLD}" template tokenlib_template strategy file_copy'
        )
    database = TestDatabase(token_server, WORLD)
    with database.connect() as owner:
        for persona in demo.PERSONAS.values():
            if persona.role != "member":
                owner.execute(
                    "insert into tokenlib_staff (user_id, email, full_name, role)"
                    " values (%s, %s, %s, %s)",
                    (persona.user_id, persona.email, persona.name, persona.role),
                )
        for name, scenario in demo.SCENARIOS.items():
            organization = scenario.organization_id
            owner.execute(
                "insert into organizations (id, name, plan) values (%s, %s, %s)",
                (organization, f"{scenario.title} Roofing", scenario.plan),
            )
            for user, role in ((scenario.user_id, "user"), (scenario.colleague_id, "colleague")):
                owner.execute(
                    "insert into user_profiles (id, organization_id, full_name, email)"
                    " values (%s, %s, %s, %s)",
                    (user, organization, f"{name} {role}", f"{role}.{name}@example.org"),
                )
            if scenario.unlimited:
                owner.execute(
                    "insert into ai_token_organization_allowances values"
                    " (%s, 'goal_generation', null)",
                    (organization,),
                )
    with Tokens(Database(database.url())) as tokens:
        for scenario in demo.SCENARIOS.values():
            _arrange(tokens, scenario)
    return WORLD


def _arrange(tokens: Tokens, scenario: demo.Scenario) -> None:
    organization = scenario.organization_id
    tokens.initialize_tokens(organization)
    if scenario.goodwill:
        tokens.grant(organization, "goal_generation", scenario.goodwill)
    if scenario.quest_tokens is not None:
        balance = tokens.get_token_balance(organization, "goal_generation").balance
        for _ in range((balance - scenario.quest_tokens) // 3):
            tokens.deduct_tokens(organization, scenario.colleague_id, "generate_goal")
    if scenario.status != "active":
        tokens.set_status(organization, scenario.status, actor="test", reason="its scenario")


@contextmanager
def copied(token_server: Embedded, world: str) -> Iterator[TestDatabase]:
    """A fresh copy of the world, gone afterwards."""
    database = TestDatabase(token_server, f"console_{uuid.uuid4().hex[:12]}")
    with TestDatabase(token_server, "postgres").connect("postgres") as superuser:
        superuser.execute(
            f'create database "{database.name}" template "{world}" strategy file_copy'
        )
        yield database
        superuser.execute(f'drop database "{database.name}" with (force)')


@pytest.fixture
def token_database(token_server: Embedded, world: str) -> Iterator[TestDatabase]:
    """A fresh copy of that world for one test."""
    with copied(token_server, world) as database:
        yield database


@pytest.fixture(scope="session")
def kept_tokens(token_server: Embedded, world: str) -> Iterator[Tokens]:
    """A gate on a copy that the tests only look at: one for all of them."""
    with copied(token_server, world) as database, Tokens(Database(database.url())) as gate:
        yield gate


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The environment of a demo: no database URL."""
    return Settings(data_dir=tmp_path)


@pytest.fixture
def look(kept_tokens: Tokens, settings: Settings) -> Iterator[Open]:
    """The console in demo mode, for tests that change nothing."""
    process.gate.use(kept_tokens, settings)
    yield open_page
    process.gate.forget()


@pytest.fixture
def console(tokens: Tokens, settings: Settings) -> Iterator[Open]:
    """The console in demo mode on a world of its own, for tests that change it."""
    process.gate.use(tokens, settings)
    yield open_page
    process.gate.forget()


@pytest.fixture(scope="module")
def told(token_server: Embedded, world: str) -> Iterator[tuple[Tokens, TestDatabase]]:
    """Two days of the healthy organization: charges, a gift, a hold, a refund, a refusal."""
    with copied(token_server, world) as database, Tokens(Database(database.url())) as tokens:
        healthy, empty = demo.SCENARIOS["healthy"], demo.SCENARIOS["empty"]
        clock = TestClock(database)
        organization, user = healthy.organization_id, healthy.user_id
        tokens.deduct_tokens(organization, user, "generate_goal")
        usage = tokens.deduct_tokens(organization, healthy.colleague_id, "generate_leads")
        clock.advance(timedelta(days=1))
        tokens.refund(usage, "it was empty", actor="somebody")
        tokens.grant(
            organization,
            "goal_generation",
            5,
            kind="gift",
            source="test",
            actor="me",
            reason="sorry",
            expires_at=clock.now() + timedelta(days=9),
        )
        tokens.grant(
            organization,
            "shared",
            500,
            kind="purchase",
            source="pack",
            expires_at=clock.now() + timedelta(days=365),
            actor="billing",
        )
        tokens.reserve(organization, user, "generate_goal")
        with suppress(Refused):
            tokens.deduct_tokens(empty.organization_id, empty.user_id, "generate_goal")
        clock.advance(timedelta(minutes=1))  # no limit on the pace refuses what is tried now
        yield tokens, database


@pytest.fixture
def seen(told: tuple[Tokens, TestDatabase], tmp_path: Path) -> Iterator[TestDatabase]:
    """The console on those two days, for tests that change nothing."""
    process.gate.use(told[0], Settings(data_dir=tmp_path))
    yield told[1]
    process.gate.forget()
