"""What the database tests share: people on a plan, the owner's connection, books that close."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from tests.db.archiving import Old
from tests.db.crowd import Crowd
from tokenlib import Tokens
from tokenlib.db import Database
from tokenlib.retry import Retry
from tokenlib.testing import TestClock, TestDatabase

Person = tuple[UUID, UUID]


@pytest.fixture
def join(tokens: Tokens) -> Callable[[str], Person]:
    """Create an organization on a plan, with one member."""

    def create(plan: str) -> Person:
        organization = tokens.create_organization(f"Acme {plan}", plan)
        return organization, tokens.add_member(organization, "A member", "member@example.org")

    return create


@pytest.fixture
def pro(join: Callable[[str], Person]) -> Person:
    """An organization on pro and its member."""
    return join("pro")


@pytest.fixture
def noon(token_clock: TestClock) -> datetime:
    """Stop the clock of the books; return where it stands. Name it before any organization."""
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    token_clock.set(moment)
    return moment


@pytest.fixture
def owner(token_database: TestDatabase) -> Iterator[psycopg.Connection]:
    """A connection of the role that owns the tables."""
    with token_database.connect("tokenlib_owner") as connection:
        yield connection


@pytest.fixture
def books_close(tokens: Tokens) -> Iterator[None]:
    """Whatever the test did, the books close after it."""
    yield
    found = tokens.verify()
    assert found.closed, found.problems
    assert found.wallets > 0


@pytest.fixture
def old(
    tokens: Tokens,
    token_database: TestDatabase,
    token_clock: TestClock,
    join: Callable[[str], Person],
    tmp_path: Path,
) -> Old:
    """Books that can be archived."""
    token_clock.set(datetime(2026, 3, 1, 12, tzinfo=UTC))
    pro, other = join("pro"), join("enterprise")
    quest = "generate_goal"
    first = tokens.deduct_tokens(*pro, quest, idempotency_key="first", metadata={"q": "Q1"})
    second = tokens.deduct_tokens(*pro, quest)
    tokens.refund(second, "unusable")
    reservation = tokens.reserve(*pro, "generate_insight", 5, idempotency_key="held")
    tokens.deduct(reservation, 3)
    tokens.release(tokens.reserve(*pro, "generate_insight"))
    for _ in range(8):
        tokens.deduct_tokens(*other, "analyze_strategy")
    token_clock.set(datetime(2026, 4, 15, tzinfo=UTC))
    tokens.deduct_tokens(*pro, quest, idempotency_key="later")
    tokens.deduct_tokens(*other, "generate_insight")
    token_clock.set(datetime(2026, 7, 30, tzinfo=UTC))
    return Old(tokens, token_database, tmp_path / "archive", pro, first, reservation)


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Crowd:
    return Crowd(monkeypatch)


@pytest.fixture
def gate(token_database: TestDatabase) -> Iterator[Tokens]:
    """A gate with connections for many threads, which asks again."""
    with Tokens(Database(token_database.url(), pool_size=32, retry=Retry(deadline=60))) as tokens:
        yield tokens
