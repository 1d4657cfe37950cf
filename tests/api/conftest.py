"""The API as `app.py` mounts it, on a test's own database, and callers who hold a JWT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from httpx2 import Response
from psycopg import sql
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from tests.api.callers import PEPPER, SETTINGS, bearer
from tokenlib.api import create_app
from tokenlib.config import Settings
from tokenlib.domain import Scope
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

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
    "ai_token_changes",
    "ai_token_organization_settings",
    "ai_token_user_settings",
    "ai_token_parameters",
    "ai_token_api_keys",
    "ai_token_api_requests",
    "ai_token_archived_keys",
    "organizations",
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


Serve = Callable[..., TestClient]
Join = Callable[..., Member]
Books = Callable[[], dict[str, list[Any]]]


@pytest.fixture
def serve(tokens: Tokens, tmp_path: Path) -> Iterator[Serve]:
    """Mount an API with settings of its own, on the test's gate unless told otherwise."""
    tokens.pepper = PEPPER
    with ExitStack() as held:

        def serve(get_tokens: Callable[[], Tokens] = lambda: tokens, **settings: Any) -> TestClient:
            chosen = Settings(data_dir=tmp_path, **(SETTINGS | settings))
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

    # When a key was last used is no secret and no money, and neither is what a caller got wrong.
    rows = sql.SQL(
        "select case when {name} = 'ai_token_api_keys' then (to_jsonb(t) - 'last_used_at')::text"
        " else t::text end as row from public.{table} t"
        " where to_jsonb(t) ->> 'rule' is distinct from 'failed_attempt' order by 1"
    )

    def read() -> dict[str, list[Any]]:
        with token_database.connect() as owner:
            return {
                table: owner.execute(
                    rows.format(name=sql.Literal(table), table=sql.Identifier(table))
                ).fetchall()
                for table in _BOOKS
            }

    return read


@pytest.fixture
def staff(token_database: TestDatabase) -> Callable[[str], UUID]:
    """Make a staff person of a role; return the user id."""

    def staff(role: str) -> UUID:
        person = uuid4()
        with token_database.connect() as owner:
            owner.execute(
                "insert into tokenlib_staff (user_id, email, full_name, role, grants_per_day)"
                " values (%s, %s, 'A staff person', %s, 50)",
                (person, f"{person}@example.org", role),
            )
        return person

    return staff


class Api:
    """Calls to one running API, as anybody."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self._count = 0

    def get(self, path: str, who: dict[str, str], **params: Any) -> Response:
        """Ask."""
        return self.client.get(f"/api/v1{path}", headers=who, params=params)

    def post(self, path: str, who: dict[str, str], key: str | None = None, **body: Any) -> Response:
        """Do, under a new Idempotency-Key unless one is given; `body` is as JSON has it."""
        self._count += 1
        headers = who | {"Idempotency-Key": key or f"key {self._count}"}
        return self.client.post(f"/api/v1{path}", headers=headers, json=body)


@pytest.fixture
def api(serve: Serve) -> Api:
    """A running API."""
    return Api(serve())


@dataclass(frozen=True)
class World:
    """Two organizations on pro, staff, and a key for every purpose; each with its credentials."""

    organization: UUID
    user: UUID
    other: UUID
    other_user: UUID
    admin: UUID
    member: dict[str, str]
    colleague: dict[str, str]
    other_member: dict[str, str]
    staff: dict[str, dict[str, str]]
    keys: dict[str, dict[str, str]]
    key_ids: dict[str, UUID]

    @property
    def path(self) -> str:
        """Where the first organization's things are."""
        return f"/organizations/{self.organization}"


@pytest.fixture
def world(tokens: Tokens, staff: Callable[[str], UUID]) -> World:
    """Who calls in the tests."""
    tokens.pepper = PEPPER
    organization = tokens.create_organization("Acme", "pro")
    user = tokens.add_member(organization, "A member", "member@example.org")
    colleague = tokens.add_member(organization, "A colleague", "colleague@example.org")
    other = tokens.create_organization("Globex", "pro")
    other_user = tokens.add_member(other, "Another member", "another@example.org")
    people = {"admin": staff("admin"), "support": staff("support")}
    keys, ids = {}, {}
    everything: list[Scope] = ["check", "spend", "read", "admin"]
    wanted: dict[str, tuple[list[Scope], UUID | None]] = {
        "all": ([*everything, "metrics"], None),
        "own": (everything, organization),
        "other": (everything, other),
        **{scope: ([scope], None) for scope in (*everything, "metrics")},
    }
    for name, (scopes, place) in wanted.items():
        made = tokens.staff_create_key(
            people["admin"], f"The key {name}", scopes, place, reason="a test"
        )
        keys[name] = {"Authorization": f"Bearer {made.secret}"}
        ids[name] = made.id
    return World(
        organization=organization,
        user=user,
        other=other,
        other_user=other_user,
        admin=people["admin"],
        member=bearer({"sub": str(user)}),
        colleague=bearer({"sub": str(colleague)}),
        other_member=bearer({"sub": str(other_user)}),
        staff={role: bearer({"sub": str(person)}) for role, person in people.items()},
        keys=keys,
        key_ids=ids,
    )
