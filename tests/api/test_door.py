"""The database's own door, without the API in front: what a route forgets, it asks."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from tokenlib.db import statements
from tokenlib.errors import PermissionDenied
from tokenlib.keys import digest
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Books, World

VERBS: dict[str, dict[str, Any]] = {
    "deduct": {"feature": "generate_goal", "units": 1},
    "reserve": {"feature": "generate_goal", "units": 1, "id": str(uuid4())},
    "settle": {"id": str(uuid4())},
    "release": {"id": str(uuid4())},
    "refund": {"id": str(uuid4()), "reason": "a test"},
    "grant": {"token_type": "general", "amount": 1, "kind": "gift", "reason": "a test"},
    "change_plan": {"plan": "enterprise", "reason": "a test"},
    "set_status": {"status": "suspended", "reason": "a test"},
    "pause_user": {"user_id": str(uuid4()), "paused": True, "reason": "a test"},
    "set_mode": {"mode": "off", "reason": "a test"},
    "set_request_limit": {"requests_per_minute": 1, "reason": "a test"},
    "create_key": {
        "id": str(uuid4()),
        "name": "New",
        "start": "tkl_",
        "digest": "00",
        "scopes": ["read"],
        "reason": "a test",
    },
    "rotate_key": {"start": "tkl_", "digest": "00", "overlap_seconds": 0, "reason": "a test"},
    "revoke_key": {"reason": "a test"},
}
SPENDING = {"deduct", "reserve", "settle", "release", "refund"}


def write(
    tokens: Tokens, caller: UUID, verb: str, world: World, place: UUID | None
) -> dict[str, Any]:
    """Ask the door as a caller, past everything that the API looks at."""
    args = dict(VERBS[verb])
    if verb in ("rotate_key", "revoke_key"):
        args["id"] = str(world.key_ids["own"])
    shown = {world.key_ids[name]: world.keys[name]["Authorization"] for name in world.key_ids}
    secret = shown.get(caller, "").removeprefix("Bearer ")
    return tokens.database.call(
        statements("api")["write"],
        {
            "caller": caller,
            "secret": digest(secret, tokens.pepper) if secret else None,
            "verb": verb,
            "organization_id": place,
            "user_id": world.user if verb in SPENDING else None,
            "key": str(uuid4()),
            "hash": hashlib.sha256(verb.encode()).digest(),
            "args": Jsonb(args),
            "mode": None,
        },
    )


@pytest.mark.parametrize("verb", VERBS)
def test_who_may_not_is_refused_also_by_the_database(
    tokens: Tokens, world: World, books: Books, verb: str
) -> None:
    wrong = {
        "other member": world.other_user,
        "other key": world.key_ids["other"],
        "nobody": uuid4(),
        **{
            f"key for {scope}": world.key_ids[scope]
            for scope in ("check", "read", "metrics", "admin" if verb in SPENDING else "spend")
            if (verb, scope) != ("refund", "admin")
        },
    }
    before = books()
    for kind, caller in wrong.items():
        for place in (world.organization, None):
            if verb in SPENDING and place is None:
                continue
            if place is None and kind in ("other member", "nobody"):
                with pytest.raises(PermissionDenied, match="Only staff may do this"):
                    write(tokens, caller, verb, world, place)
                continue
            assert write(tokens, caller, verb, world, place)["status"] == "not_yours", kind
    assert books() == before


@pytest.mark.parametrize("verb", sorted(SPENDING))
def test_a_revoked_key_is_refused_also_by_the_database(
    tokens: Tokens, world: World, books: Books, verb: str
) -> None:
    tokens.staff_revoke_key(world.admin, world.key_ids["own"], reason="a test")
    before = books()
    row = write(tokens, world.key_ids["own"], verb, world, world.organization)
    assert row["status"] == "not_yours"
    assert books() == before
