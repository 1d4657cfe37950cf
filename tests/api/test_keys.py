"""API keys over HTTP: a secret is shown once, and a key never makes one that may do more."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from tests.api.callers import bearer
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Api, Books, World


def as_key(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_key_from_its_making_to_its_end(api: Api, world: World, token_clock: TestClock) -> None:
    who = world.staff["admin"]
    body: dict[str, Any] = {"name": "New", "scopes": ["read"], "reason": "a launch"}
    made = api.post("/keys", who, key="make", **body)
    assert made.status_code == 201
    first = made.json()["secret"]
    assert first.startswith(made.json()["start"])
    # Shown once: a replay makes no second key, and has the secret no more.
    again = api.post("/keys", who, key="make", **body)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == {**made.json(), "secret": None}
    path = f"{world.path}/balances"
    assert api.get(path, as_key(first)).status_code == 200
    turned = api.post(
        f"/keys/{made.json()['id']}/rotate", who, overlapSeconds=60, reason="yearly"
    ).json()
    second = turned["secret"]
    assert [api.get(path, as_key(each)).status_code for each in (first, second)] == [200, 200]
    token_clock.advance(timedelta(seconds=61))
    assert [api.get(path, as_key(each)).status_code for each in (first, second)] == [401, 200]
    listed = {row["id"]: row for row in api.get("/keys", who).json()["keys"]}
    row = listed[made.json()["id"]]
    assert (row["name"], row["scopes"], row["organizationId"]) == ("New", ["read"], None)
    assert row["lastUsedAt"] is not None
    assert second not in api.get("/keys", who).text
    ended = api.post(f"/keys/{made.json()['id']}/revoke", who, reason="over")
    assert ended.status_code == 200
    assert api.get(path, as_key(second)).status_code == 401
    over = api.post(f"/keys/{made.json()['id']}/rotate", who, reason="again")
    assert (over.status_code, over.json()["code"]) == (409, "api_key_over")


def test_a_key_of_one_organization_manages_its_own(api: Api, world: World, books: Books) -> None:
    who = world.keys["own"]
    listed = api.get("/keys", who).json()["keys"]
    assert [row["id"] for row in listed] == [str(world.key_ids["own"])]
    before = books()
    body: dict[str, Any] = {"name": "New", "scopes": ["read"], "reason": "a test"}
    for place in ({}, {"organizationId": str(world.other)}):
        assert api.post("/keys", who, **body, **place).status_code == 404
    for name in ("all", "other"):
        for verb in ("rotate", "revoke"):
            path = f"/keys/{world.key_ids[name]}/{verb}"
            assert api.post(path, who, reason="a test").status_code == 404
    assert books() == before
    own = api.post("/keys", who, **body, organizationId=str(world.organization))
    assert own.status_code == 201


def test_a_key_makes_none_that_may_do_more(api: Api, world: World, books: Books) -> None:
    before = books()
    answer = api.post("/keys", world.keys["admin"], name="M", scopes=["metrics"], reason="a test")
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    assert books() == before
    made = api.post("/keys", world.keys["all"], name="M", scopes=["metrics"], reason="a test")
    assert made.is_success
    # Nor does it get the new secret of one.
    before = books()
    path = f"/keys/{made.json()['id']}/rotate"
    assert api.post(path, world.keys["admin"], reason="a test").status_code == 403
    assert books() == before
    assert api.post(path, world.keys["all"], reason="a test").is_success


def test_a_key_that_ends_makes_none_that_lasts_longer(api: Api, world: World, books: Books) -> None:
    end = datetime.now(UTC) + timedelta(days=1)
    scopes: dict[str, Any] = {"scopes": ["admin"], "reason": "a test", "expiresAt": end.isoformat()}
    made = api.post("/keys", world.staff["admin"], name="For a day", **scopes).json()
    headers = as_key(made["secret"])
    before = books()
    for longer in ({}, {"expiresAt": (end + timedelta(seconds=1)).isoformat()}):
        wanted: dict[str, Any] = {
            "name": "For ever",
            "scopes": ["read"],
            "reason": "a test",
        } | longer
        assert api.post("/keys", headers, **wanted).status_code == 403
    path = f"/keys/{world.key_ids['own']}/rotate"
    assert api.post(path, headers, reason="a test").status_code == 403
    assert books() == before
    assert api.post("/keys", headers, name="As long", **scopes).is_success


OWN_LIMITS: dict[str, Any] = {
    "requestsPerMinute": 60,
    "secondsBetweenRequests": 2,
    "tokensPerRequest": 10,
    "outputUnitsPerRequest": 500,
    "limitUsers": True,
}


@pytest.mark.parametrize(
    ("limit", "less", "more"),
    [
        ("requestsPerMinute", 59, 61),
        ("secondsBetweenRequests", 3, 1),
        ("tokensPerRequest", 9, 11),
        ("outputUnitsPerRequest", 499, 501),
        ("limitUsers", True, False),
    ],
)
def test_a_key_that_is_limited_makes_none_that_is_less_so(
    api: Api, world: World, books: Books, limit: str, less: Any, more: Any
) -> None:
    wanted: dict[str, Any] = {"name": "A key", "scopes": ["read", "admin"], "reason": "a test"}
    admin = world.staff["admin"]
    headers = as_key(api.post("/keys", admin, **wanted, **OWN_LIMITS).json()["secret"])
    free = {name: value for name, value in OWN_LIMITS.items() if name != limit}
    # Somebody made them by hand: their new secrets are not its to have either.
    looser = [
        api.post("/keys", admin, **wanted, **free | each).json()["id"]
        for each in ({}, {limit: more})
    ]
    same = api.post("/keys", admin, **wanted, **OWN_LIMITS).json()["id"]
    before = books()
    for each in ({}, {limit: more}):
        refused = api.post("/keys", headers, **wanted, **free | each)
        assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
    for key in looser:
        assert api.post(f"/keys/{key}/rotate", headers, reason="a test").status_code == 403
    assert books() == before
    for each in (OWN_LIMITS[limit], less):
        assert api.post("/keys", headers, **wanted, **free | {limit: each}).status_code == 201
    assert api.post(f"/keys/{same}/rotate", headers, reason="a test").status_code == 200


def test_a_key_gives_no_scope_that_it_has_not(api: Api, world: World, books: Books) -> None:
    """Also none of the lesser ones: what opens the books of everybody is the admin's to give."""
    before = books()
    for scope in ("check", "spend", "read"):
        body: dict[str, Any] = {"name": "New", "scopes": [scope], "reason": "a test"}
        assert api.post("/keys", world.keys["admin"], **body).status_code == 403
    assert books() == before


def test_a_key_gets_no_secret_of_another_admin_s(
    api: Api, world: World, tokens: Tokens, staff: Callable[[str], UUID], books: Books
) -> None:
    """Else it would act as that one, also when its own has gone."""
    other = staff("admin")
    theirs = tokens.staff_create_key(other, "Theirs", ["admin", "read"], reason="a test")
    before = books()
    answer = api.post(f"/keys/{theirs.id}/rotate", world.keys["all"], reason="a test")
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    assert "admin whom it acts as" in answer.json()["detail"]
    assert books() == before
    own = f"/keys/{world.key_ids['admin']}/rotate"
    assert api.post(own, world.keys["all"], reason="a test").is_success
    # A person who is signed in rotates any.
    turned = api.post(f"/keys/{theirs.id}/rotate", world.staff["admin"], reason="they are away")
    assert turned.json()["secret"] is not None


def test_a_secret_that_was_replaced_manages_no_keys(
    api: Api, world: World, books: Books, token_clock: TestClock
) -> None:
    """Else whoever found it could keep it alive for ever."""
    old, key = world.keys["all"], world.key_ids["all"]
    asked = {"overlapSeconds": 60, "reason": "it leaked"}
    turned = api.post(f"/keys/{key}/rotate", old, key="turn", **asked)
    new = as_key(turned.json()["secret"])
    # Whose answer was lost hears that it was done, and no secret.
    again = api.post(f"/keys/{key}/rotate", old, key="turn", **asked)
    assert (again.json()["secret"], again.headers["idempotency-replayed"]) == (None, "true")
    before = books()
    body: dict[str, Any] = {"name": "New", "scopes": ["admin"], "reason": "a test"}
    told = [
        api.post("/keys", old, **body),
        api.post(f"/keys/{key}/rotate", old, reason="a test"),
        api.post(f"/keys/{world.key_ids['admin']}/rotate", old, reason="a test"),
        api.post(f"/keys/{world.key_ids['admin']}/revoke", old, reason="a test"),
    ]
    assert {answer.status_code for answer in told} == {403}
    assert "was replaced" in told[0].json()["detail"]
    assert books() == before
    # Whatever else it may do it does until its overlap ends.
    assert api.get("/keys", old).is_success
    charge = {"feature": "generate_goal", "userId": str(world.user)}
    assert api.post(f"{world.path}/charges", old, **charge).is_success
    assert api.post("/keys", new, **body).is_success
    token_clock.advance(timedelta(seconds=61))
    assert api.get("/keys", old).status_code == 401


def test_the_key_of_one_who_is_no_longer_staff_lists_none(
    api: Api, world: World, token_database: TestDatabase, books: Books
) -> None:
    assert api.get("/keys", world.keys["all"]).json()["keys"] != []
    with token_database.connect() as owner:
        owner.execute("delete from tokenlib_staff where user_id = %s", (world.admin,))
    before = books()
    for answer in (
        api.get("/keys", world.keys["all"]),
        api.get("/keys", world.keys["own"]),
        api.post(f"/keys/{world.key_ids['own']}/revoke", world.keys["all"], reason="a test"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
        assert answer.json()["detail"] == "Only staff may do this."
    assert books() == before


@pytest.mark.parametrize("name", ["all", "own"])
def test_a_person_with_the_id_of_a_key_is_nobody(
    api: Api, world: World, tokens: Tokens, books: Books, name: str
) -> None:
    """An issuer may put anything into a sub; what a key may do, its secret alone opens."""
    usage = tokens.deduct_tokens(world.organization, world.user, "generate_goal")
    held = tokens.reserve(world.organization, world.user, "generate_goal")
    who, path = bearer({"sub": str(world.key_ids[name])}), world.path
    spent: dict[str, Any] = {"feature": "generate_goal", "userId": str(world.user)}
    reason = {"reason": "a test"}
    before = books()
    used = tokens.database.rows("select id, last_used_at from public.ai_token_api_keys order by id")
    for question in (
        "has-enough?feature=generate_goal",
        f"can-use?feature=generate_goal&userId={world.user}",
        "balances",
        "balances/goal_generation",
        "stats",
        "history",
        "entries",
        "explain/goal_generation",
    ):
        asked = api.client.get(f"/api/v1{path}/{question}", headers=who)
        assert asked.status_code == 404, question
    assert api.get("/keys", who).json() == {"keys": []}
    assert api.get("/metrics", who).status_code == 403
    for act, body in {
        f"{path}/charges": spent,
        f"{path}/reservations": spent,
        f"{path}/reservations/{held.id}/deduct": {},
        f"{path}/reservations/{held.id}/release": {},
        f"{path}/charges/{usage.id}/refund": reason,
        f"{path}/grants": {"tokenType": "general", "amount": 1, **reason},
        f"{path}/status": {"status": "suspended", **reason},
        f"{path}/users/{world.user}/pause": {"paused": True, **reason},
        "/switch": {"mode": "off", **reason},
        "/keys": {"name": "New", "scopes": ["read"], **reason},
        f"/keys/{world.key_ids['own']}/rotate": reason,
        f"/keys/{world.key_ids['own']}/revoke": reason,
    }.items():
        assert api.post(act, who, **body).status_code in (403, 404), act
    old = {"organizationId": str(world.organization), "featureUsed": "generate_goal"}
    for action in ("check", "deduct"):
        assert api.post("/tokens/check-balance", who, **old, action=action).status_code == 403
    stats = api.get("/tokens/stats", who, organizationId=str(world.organization))
    assert stats.status_code == 403
    assert books() == before
    assert used == tokens.database.rows(
        "select id, last_used_at from public.ai_token_api_keys order by id"
    )


def test_support_manages_no_keys(api: Api, world: World, books: Books) -> None:
    before = books()
    who = world.staff["support"]
    answer = api.post("/keys", who, name="New", scopes=["read"], reason="a test")
    assert answer.status_code == 403
    for verb in ("rotate", "revoke"):
        path = f"/keys/{world.key_ids['all']}/{verb}"
        assert api.post(path, who, reason="a test").status_code == 403
    assert books() == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["read", "read"]}, "scopes"),
        ({"scopes": ["everything"]}, "scopes.0"),
        ({"name": ""}, "name"),
        ({"expiresAt": "2020-01-01T00:00:00Z"}, "expiresAt"),
        ({"requestsPerMinute": 0}, "requestsPerMinute"),
        ({"outputUnitsPerRequest": 0}, "outputUnitsPerRequest"),
        ({"digest": "00"}, "digest"),
        ({"ownerId": "1b4e28ba-2fa1-41d2-883f-0016d3cca427"}, "ownerId"),
    ],
)
def test_what_is_wrong_is_named(
    api: Api, world: World, books: Books, body: dict[str, Any], field: str
) -> None:
    before = books()
    wanted = {"name": "New", "scopes": ["read"], "reason": "a test"} | body
    answer = api.post("/keys", world.staff["admin"], **wanted)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == field
    assert books() == before


def test_without_a_pepper_no_key_is_made(
    api: Api, world: World, tokens: Tokens, books: Books
) -> None:
    tokens.pepper = None
    before = books()
    answer = api.post("/keys", world.staff["admin"], name="N", scopes=["read"], reason="a test")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "TOKENLIB_KEY_PEPPER" in answer.json()["detail"]
    assert api.get("/catalog", world.keys["all"]).status_code == 401
    assert books() == before
