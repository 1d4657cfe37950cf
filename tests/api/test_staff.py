"""What staff do over HTTP, and keys with the scope admin: decided in the database, on record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Api, Books, World


def changes(database: TestDatabase) -> list[tuple[Any, ...]]:
    with database.connect() as owner:
        return owner.execute(
            "select action, organization_id, actor, reason from ai_token_changes"
            " where action <> 'create_key' order by created_at"
        ).fetchall()


def test_an_admin_does_it_all(
    api: Api, world: World, tokens: Tokens, token_database: TestDatabase
) -> None:
    who = world.staff["admin"]
    grant = api.post(
        f"{world.path}/grants", who, tokenType="general", amount=10, reason="goodwill", kind="gift"
    )
    assert (grant.status_code, grant.json()["balance"]) == (201, 60)
    calls: list[tuple[str, dict[str, Any]]] = [
        (f"{world.path}/plan", {"plan": "enterprise", "reason": "upgrade"}),
        (f"{world.path}/status", {"status": "suspended", "reason": "asked for"}),
        (f"{world.path}/users/{world.user}/pause", {"reason": "a script"}),
        (f"{world.path}/request-limit", {"requestsPerMinute": 5, "reason": "busy"}),
        ("/switch", {"mode": "log_only", "reason": "a launch"}),
    ]
    for path, body in calls:
        answer = api.post(path, who, key=f"once {path}", **body)
        assert (answer.status_code, answer.json()["done"]) == (200, True), answer.text
        again = api.post(path, who, key=f"once {path}", **body)
        assert again.headers["idempotency-replayed"] == "true"
    admin, place = str(world.admin), world.organization
    assert changes(token_database) == [
        ("change_plan", place, admin, "upgrade"),
        ("set_status", place, admin, "asked for"),
        ("pause_user", place, admin, "a script"),
        ("set_request_limit", place, admin, "busy"),
        ("set_mode", None, admin, "a launch"),
    ]
    assert tokens.get_token_balance(place, "goal_generation").balance == 200
    assert [setting.mode for setting in tokens.switch_state().settings] == ["log_only"]


def test_what_is_wrong_with_a_body_is_said_in_words(api: Api, world: World) -> None:
    who, path = world.staff["admin"], f"{world.path}/plan"
    blank = api.post(path, who, plan="pro", reason=" ")
    assert (blank.status_code, blank.json()["errors"]) == (
        400,
        [
            {
                "field": "reason",
                "problem": "must have a character that is no blank, and none that is NUL",
            }
        ],
    )
    headers = {**who, "Content-Type": "application/json", "Idempotency-Key": "a test"}
    url = f"/api/v1{path}"
    torn = api.client.post(url, content="{", headers=headers)
    assert (torn.status_code, torn.json()["errors"]) == (
        400,
        [{"field": "body", "problem": "is not JSON: send a JSON object"}],
    )
    deep = api.client.post(url, content="[" * 30_000, headers=headers)
    assert (deep.status_code, deep.json()["code"]) == (400, "invalid_request")
    assert deep.json()["detail"] == "body is nested too deeply: send fewer levels."


def test_a_member_hears_that_staff_may_do_it(api: Api, world: World, books: Books) -> None:
    """In their own organization and where none is named; of another as of one that is not there."""
    before = books()
    acts: dict[str, dict[str, Any]] = {
        "grants": {"tokenType": "general", "amount": 1},
        "plan": {"plan": "enterprise"},
        "status": {"status": "suspended"},
        f"users/{world.user}/pause": {"paused": True},
        "request-limit": {"requestsPerMinute": 5},
    }
    asked: list[tuple[str, dict[str, Any], int]] = []
    for place, status in ((world.organization, 403), (world.other, 404), (uuid4(), 404)):
        asked += [(f"/organizations/{place}/{path}", body, status) for path, body in acts.items()]
        asked.append(("/switch", {"mode": "off", "organizationId": str(place)}, status))
        key: dict[str, Any] = {"name": "N", "scopes": ["read"], "organizationId": str(place)}
        asked.append(("/keys", key, status))
    asked += [("/switch", {"mode": "off"}, 403), ("/keys", {"name": "N", "scopes": ["read"]}, 403)]
    for key_id in (world.key_ids["own"], world.key_ids["other"], uuid4()):
        asked += [(f"/keys/{key_id}/{verb}", {}, 403) for verb in ("rotate", "revoke")]
    said: dict[int, set[str]] = {403: set(), 404: set()}
    for path, body, status in asked:
        answer = api.post(path, world.member, reason="a test", **body)
        assert answer.status_code == status, (path, answer.text)
        said[status].add(answer.json()["detail"])
    assert said == {
        403: {"Only staff may do this, and you are not staff. Ask whoever runs this service."},
        404: {"There is nothing here that you may see."},
    }
    assert books() == before


def test_support_gives_within_its_limit(api: Api, world: World, books: Books) -> None:
    who = world.staff["support"]
    body = {"tokenType": "general", "reason": "goodwill"}
    assert api.post(f"{world.path}/grants", who, amount=50, **body).status_code == 201
    before = books()
    over = api.post(f"{world.path}/grants", who, amount=1, **body)
    assert (over.status_code, over.json()["code"]) == (403, "permission_denied")
    assert over.json()["detail"] == "You may give 50 tokens a day; 0 are left today."
    plan = api.post(f"{world.path}/plan", who, plan="enterprise", reason="kind")
    assert (plan.status_code, plan.json()["detail"]) == (
        403,
        "Only admin may do this; your role is support.",
    )
    assert books() == before


def test_a_key_acts_as_the_admin_who_made_it(
    api: Api, world: World, token_database: TestDatabase
) -> None:
    body = {"plan": "enterprise", "reason": "upgrade"}
    assert api.post(f"{world.path}/plan", world.keys["own"], **body).status_code == 200
    assert changes(token_database) == [
        (
            "change_plan",
            world.organization,
            str(world.admin),
            "upgrade (API key The key own)",
        )
    ]
    with token_database.connect() as owner:
        owner.execute("delete from tokenlib_staff where user_id = %s", (world.admin,))
    body = {"plan": "pro", "reason": "downgrade"}
    gone = api.post(f"{world.path}/plan", world.keys["own"], **body)
    assert (gone.status_code, gone.json()["detail"]) == (403, "Only staff may do this.")


def test_a_key_of_one_organization_switches_that_one_alone(
    api: Api, world: World, books: Books
) -> None:
    before = books()
    everyone = api.post("/switch", world.keys["own"], mode="off", reason="night")
    theirs = api.post(
        "/switch", world.keys["own"], mode="off", reason="night", organizationId=str(world.other)
    )
    assert (everyone.status_code, theirs.status_code) == (404, 404)
    assert books() == before
    own = api.post(
        "/switch",
        world.keys["own"],
        mode="off",
        reason="night",
        organizationId=str(world.organization),
    )
    assert own.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("grants", {"tokenType": "general", "amount": 0}, "amount"),
        ("grants", {"tokenType": "general", "amount": 1.5}, "amount"),
        ("grants", {"tokenType": "nothing", "amount": 1}, "tokenType"),
        ("grants", {"tokenType": "general", "amount": 1, "kind": "allowance"}, "kind"),
        ("grants", {"tokenType": "general", "amount": 1, "expiresAt": 5}, "expiresAt"),
        (
            "grants",
            {"tokenType": "general", "amount": 1, "expiresAt": "2020-01-01T00:00:00Z"},
            "expiresAt",
        ),
        ("plan", {"plan": "platinum"}, "plan"),
        ("status", {"status": "gone"}, "status"),
        ("request-limit", {"requestsPerMinute": 0}, "requestsPerMinute"),
        ("plan", {"plan": "pro", "reason": " "}, "reason"),
    ],
)
def test_what_is_wrong_is_named(
    api: Api, world: World, books: Books, path: str, body: dict[str, Any], field: str
) -> None:
    before = books()
    answer = api.post(f"{world.path}/{path}", world.staff["admin"], **({"reason": "a test"} | body))
    assert answer.status_code == 400, answer.text
    assert answer.json()["errors"][0]["field"] == field
    assert books() == before
