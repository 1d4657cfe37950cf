"""API keys over HTTP: a secret is shown once, and a key never makes one that may do more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tokenlib.testing import TestClock
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
