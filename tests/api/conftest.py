"""The API as `app.py` mounts it, on a test's own database, and callers who hold a JWT."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from httpx2 import Response
from psycopg import sql
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from tokenlib.api import create_app
from tokenlib.config import Settings
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

SECRET = "a secret of the tests, so long that HS512 would take it without a word of warning"
CHECK_BALANCE = "/api/v1/tokens/check-balance"
STATS = "/api/v1/tokens/stats"
# Whatever a request could change.
_BOOKS = (
    "ai_tokens",
    "ai_token_usage_log",
    "ai_token_events",
    "ai_token_grants",
    "ai_token_reservations",
    "ai_token_refusals",
)


@dataclass(frozen=True)
class Member:
    """A user of an organization, who calls the API with a JWT of its own."""

    client: TestClient
    organization: UUID
    user: UUID

    def signed(self, **claims: Any) -> dict[str, str]:
        """The Authorization header; claims given here win, None leaves one out."""
        return bearer({"sub": str(self.user), **claims})

    def body(self, **changes: Any) -> dict[str, Any]:
        """A right body for check-balance, but for the changes."""
        return {
            "organizationId": str(self.organization),
            "featureUsed": "generate_goal",
            **changes,
        }

    def ask(self, action: str, feature: str = "generate_goal", key: str | None = None) -> Response:
        """Call check-balance."""
        headers = self.signed() | ({} if key is None else {"Idempotency-Key": key})
        body = self.body(action=action, featureUsed=feature)
        return self.client.post(CHECK_BALANCE, json=body, headers=headers)

    def post(self, body: object) -> Response:
        """Call check-balance with any JSON body."""
        return self.client.post(CHECK_BALANCE, json=body, headers=self.signed())

    def stats(self, organization: object = None) -> Response:
        """Call stats, for its own organization unless told otherwise."""
        params = {"organizationId": str(organization or self.organization)}
        return self.client.get(STATS, params=params, headers=self.signed())


def bearer(
    claims: dict[str, Any], secret: str = SECRET, algorithm: str | None = "HS256"
) -> dict[str, str]:
    """An Authorization header. It is good for a minute; claims that are None are left out."""
    wanted = {"exp": int(time.time()) + 60, **claims}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    return {"Authorization": f"Bearer {jwt.encode(wanted, secret, algorithm)}"}


Serve = Callable[..., TestClient]
Join = Callable[..., Member]
Books = Callable[[], dict[str, list[Any]]]


@pytest.fixture
def serve(tokens: Tokens, tmp_path: Path) -> Iterator[Serve]:
    """Mount an API with settings of its own, on the test's gate unless told otherwise."""
    with ExitStack() as held:

        def serve(get_tokens: Callable[[], Tokens] = lambda: tokens, **settings: Any) -> TestClient:
            chosen = Settings(data_dir=tmp_path, **({"jwt_secret": SECRET} | settings))
            app = Starlette(routes=[Mount("/api", app=create_app(get_tokens, chosen))])
            return held.enter_context(TestClient(app))

        yield serve


@pytest.fixture
def join(tokens: Tokens, serve: Serve) -> Join:
    """Make an organization with one member, who calls the API."""

    def join(plan: str = "pro", client: TestClient | None = None) -> Member:
        organization = tokens.create_organization(f"An organization on {plan}", plan)
        user = tokens.add_member(organization, "A member", "member@example.org")
        return Member(client or serve(), organization, user)

    return join


@pytest.fixture
def member(join: Join) -> Member:
    """A member of an organization on pro."""
    return join()


@pytest.fixture
def books(token_database: TestDatabase) -> Books:
    """Read every row that a request could change; equal before and after: nothing was touched."""

    rows = sql.SQL("select t from public.{} t order by t")

    def read() -> dict[str, list[Any]]:
        with token_database.connect() as owner:
            return {
                table: owner.execute(rows.format(sql.Identifier(table))).fetchall()
                for table in _BOOKS
            }

    return read
