"""A client, a server, and a way between them that does what a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.api.callers import PEPPER, SETTINGS
from tests.api.flaky import Flaky, flaky
from tests.api.test_wire import serving
from tokenlib import Client
from tokenlib.api import create_app
from tokenlib.config import Settings
from tokenlib.domain import Scope
from tokenlib.tokens import Tokens


@pytest.fixture
def way(tokens: Tokens, tmp_path: Path) -> Iterator[Flaky]:
    """The API, and the way to it."""
    tokens.pepper = PEPPER
    app = create_app(lambda: tokens, Settings(data_dir=tmp_path, **SETTINGS))
    with serving(Starlette(routes=[Mount("/api", app=app)])) as port, flaky(port) as server:
        yield server


@pytest.fixture
def secret(tokens: Tokens, staff: Callable[[str], UUID]) -> str:
    scopes: list[Scope] = ["check", "spend", "read", "admin"]
    tokens.pepper = PEPPER
    made = tokens.staff_create_key(staff("admin"), "The client", scopes, reason="a test")
    return str(made.secret)


@pytest.fixture
def client(way: Flaky, secret: str) -> Iterator[Client]:
    with Client(way.url, secret) as client:
        yield client


@pytest.fixture
def org(tokens: Tokens) -> UUID:
    return tokens.create_organization("Acme", "pro")


@pytest.fixture
def user(tokens: Tokens, org: UUID) -> UUID:
    return tokens.add_member(org, "A member", "member@example.org")


def left(tokens: Tokens, org: UUID) -> tuple[int, int]:
    wallet = tokens.get_token_balance(org, "goal_generation")
    return wallet.balance, wallet.reserved
