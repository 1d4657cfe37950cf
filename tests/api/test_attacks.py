"""Every endpoint of the description, attacked by every wrong caller: a new one too, by itself.

The books stay as they are, nothing of another organization is told, and an organization that is
another's looks the same as one that does not exist. The control: the right caller gets through.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from uuid import uuid4

import pytest

from tests.api.callers import SECRET, bearer, claims, unsigned
from tokenlib.api import create_app
from tokenlib.config import Settings
from tokenlib.domain import Scope
from tokenlib.keys import new_secret
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from httpx2 import Response

    from tests.api.conftest import Api, Books, World

    Send = Callable[..., Response]

SCOPES = get_args(Scope)


@dataclass(frozen=True)
class Operation:
    """One method on one path, as the description has it."""

    name: str
    method: str
    path: str
    needs: str
    old: bool
    parameters: tuple[str, ...]
    body: dict[str, Any] | None


def described() -> Iterator[Operation]:
    """Every operation that asks for credentials."""
    never = create_app(lambda: pytest.fail("no database is needed"), Settings(data_dir=Path()))
    schema = never.openapi()
    for path, methods in schema["paths"].items():
        for method, each in methods.items():
            if not each["security"]:
                continue
            body = None
            if "requestBody" in each:
                content = each["requestBody"]["content"]["application/json"]
                name = content["schema"].get("$ref", "").rpartition("/")[2]
                model = schema["components"]["schemas"].get(name, {})
                body = content.get("example") or model["example"]
            yield Operation(
                each["operationId"],
                method,
                path,
                each["x-needs"],
                each["operationId"].startswith("old_"),
                tuple(one["name"] for one in each.get("parameters", ())),
                body,
            )


OPERATIONS = list(described())
OPEN = {"health", "ready"}


def test_every_route_says_what_it_needs() -> None:
    never = create_app(lambda: pytest.fail("no database is needed"), Settings(data_dir=Path()))
    schema = never.openapi()
    public = {
        each["operationId"]
        for methods in schema["paths"].values()
        for each in methods.values()
        if not each["security"]
    }
    assert public == OPEN
    assert len(OPERATIONS) > 20
    assert {operation.needs for operation in OPERATIONS if not operation.old} == {
        *SCOPES,
        "anybody",
    }


@pytest.fixture
def scene(tokens: Tokens, world: World) -> dict[str, str]:
    """A thing of the first organization for every id in a path, and what an answer would tell."""
    # By somebody else, so that no limit of the user's stands in the way of the right caller.
    third = tokens.add_member(world.organization, "A third member", "third@example.org")
    usage = tokens.deduct_tokens(world.organization, third, "generate_goal")
    spare = tokens.staff_create_key(
        world.admin, "A spare key", ["read"], world.organization, reason="a test"
    )
    return {
        "organizationId": str(world.organization),
        "usageId": str(usage.id),
        "userId": str(world.user),
        "keyId": str(spare.id),
        "tokenType": "goal_generation",
        "feature": "generate_goal",
        "reservationId": "",
    }


@pytest.fixture
def send(api: Api, world: World, scene: dict[str, str]) -> Send:
    """Send an operation with everything right but who calls."""

    def send(operation: Operation, who: dict[str, str], **others: str) -> Response:
        ids = scene | others
        if "reservationId" in operation.parameters and not ids["reservationId"]:
            held = api.post(
                f"/organizations/{world.organization}/reservations",
                world.keys["all"],
                feature="generate_goal",
                userId=str(world.user),
            )
            assert held.status_code == 201, held.text
            scene["reservationId"] = ids["reservationId"] = held.json()["id"]
        path = operation.path
        query: dict[str, Any] = {}
        for name in operation.parameters:
            if f"{{{name}}}" in path:
                path = path.replace(f"{{{name}}}", ids[name])
            elif name in ("feature", "userId", "organizationId"):
                query[name] = ids[name]
        body = operation.body
        if body is not None:
            body = dict(body)
            if operation.name in ("reserve", "charge"):
                body["userId"] = ids["userId"]
            if operation.name == "history":
                query.pop("userId")
            if operation.old:
                body["organizationId"] = ids["organizationId"]
        headers = who | {"Idempotency-Key": f"attack {uuid4()}"}
        return api.client.request(
            operation.method, f"/api{path}", headers=headers, params=query, json=body
        )

    return send


def prepare(operation: Operation, send: Send) -> None:
    """Make the hold that the path names, before the books are looked at."""
    if "reservationId" in operation.parameters:
        send(replace(operation, path="/v1/nothing/{reservationId}"), {})


def strip(answer: Response) -> tuple[int, Any]:
    """An answer without what is different in every one."""
    body = answer.json()
    body.pop("requestId", None)
    return answer.status_code, body


def assert_silent(answer: Response, world: World, scene: dict[str, str]) -> None:
    """Refused, in the right form, and without a word of the first organization."""
    assert answer.status_code in (401, 403, 404), answer.text
    told = answer.text
    secrets = [str(world.user), scene["usageId"], scene["keyId"], "Acme", "goal_generation"]
    for secret in secrets:
        assert secret not in told, answer.text
    assert set(answer.json()) == {"error"} or answer.headers["content-type"] == (
        "application/problem+json"
    )


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_right_caller_gets_through(operation: Operation, send: Send, world: World) -> None:
    who = world.member if operation.old else world.keys["all"]
    answer = send(operation, who)
    assert answer.is_success, answer.text


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_nobody_gets_through_without_credentials(
    operation: Operation,
    send: Send,
    world: World,
    scene: dict[str, str],
    tokens: Tokens,
    books: Books,
) -> None:
    sub = str(world.admin if operation.needs == "admin" else world.user)
    right = claims(sub=sub)
    ended = tokens.staff_create_key(world.admin, "Ended", list(SCOPES), reason="a test")
    turned = tokens.staff_create_key(world.admin, "Turned", list(SCOPES), reason="a test")
    tokens.staff_revoke_key(world.admin, ended.id, reason="a test")
    tokens.staff_rotate_key(world.admin, turned.id, overlap=timedelta(0), reason="a test")
    assert ended.secret is not None
    wrong: dict[str, dict[str, str]] = {
        "nobody": {},
        "empty": {"Authorization": "Bearer "},
        "basic": {"Authorization": "Basic YTpi"},
        "expired": bearer({"sub": sub, "exp": int(time.time()) - 1}),
        "no exp": bearer({"sub": sub, "exp": None}),
        "wrong issuer": bearer({"sub": sub, "iss": "https://id.example.com"}),
        "no issuer": bearer({"sub": sub, "iss": None}),
        "wrong audience": bearer({"sub": sub, "aud": "anon"}),
        "no audience": bearer({"sub": sub, "aud": None}),
        "alg none": {"Authorization": f"Bearer {unsigned(right, 'none')}"},
        "no signature": {"Authorization": f"Bearer {unsigned(right, 'HS256')}"},
        "other secret": bearer({"sub": sub}, SECRET[::-1]),
        "other algorithm": bearer({"sub": sub}, SECRET, "HS512"),
        "revoked key": {"Authorization": f"Bearer {ended.secret}"},
        "rotated key": {"Authorization": f"Bearer {turned.secret}"},
        "invented key": {"Authorization": f"Bearer {new_secret()}"},
        "mistyped key": {"Authorization": f"Bearer {ended.secret[:-1]}_"},
        "only a prefix": {"Authorization": "Bearer tkl_"},
    }
    prepare(operation, send)
    before = books()
    said = set()
    for kind, who in wrong.items():
        answer = send(operation, who)
        assert answer.status_code == 401, kind
        assert answer.headers["www-authenticate"].startswith("Bearer"), kind
        assert_silent(answer, world, scene)
        said.add(json.dumps(strip(answer)))
    assert len(said) <= 4, "a reason for a missing, an expired, another bad JWT, and a bad key"
    assert books() == before


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_another_organization_learns_and_moves_nothing(
    operation: Operation, send: Send, world: World, scene: dict[str, str], books: Books
) -> None:
    prepare(operation, send)
    before = books()
    strangers = {
        "other member": world.other_member,
        "other key": world.keys["other"],
        "stranger": bearer({"sub": str(uuid4())}),
    }
    for kind, who in strangers.items():
        answer = send(operation, who)
        if answer.is_success:
            # What is anybody's, and a list of one's own.
            assert operation.name in ("catalog", "list_keys"), kind
            assert str(world.organization) not in answer.text
            assert scene["keyId"] not in answer.text
            continue
        assert_silent(answer, world, scene)
        if "{organizationId}" in operation.path:
            theirs = strip(answer)
            assert strip(send(operation, who, organizationId=str(uuid4()))) == theirs, kind
            gone = ("usageId", "reservationId", "userId", "keyId")
            assert strip(send(operation, who, **{n: str(uuid4()) for n in gone})) == theirs, kind
    assert books() == before


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_a_key_without_the_scope_does_nothing(
    operation: Operation, send: Send, world: World, scene: dict[str, str], books: Books
) -> None:
    prepare(operation, send)
    before = books()
    for scope in SCOPES:
        if scope == operation.needs or operation.needs == "anybody":
            continue
        answer = send(operation, world.keys[scope])
        assert_silent(answer, world, scene)
        if not operation.old:
            assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope")
            assert answer.json()["scope"] == operation.needs
    assert books() == before


@pytest.mark.parametrize(
    "operation",
    [operation for operation in OPERATIONS if operation.needs in ("admin", "metrics")],
    ids=lambda operation: operation.name,
)
def test_a_member_is_no_staff(operation: Operation, send: Send, world: World, books: Books) -> None:
    before = books()
    for who in (world.member, world.colleague):
        answer = send(operation, who)
        if operation.name == "list_keys":
            assert answer.json() == {"keys": []}
        else:
            assert answer.status_code in (403, 404)
    assert books() == before
