"""Hold, charge, give back: over HTTP as in the library, each once under its key."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Api, Books, World

NEXT_TRY = timedelta(seconds=3)


def balance(tokens: Tokens, world: World) -> int:
    return tokens.get_token_balance(world.organization, "goal_generation").balance


def test_hold_then_charge(api: Api, world: World, tokens: Tokens) -> None:
    held = api.post(
        f"{world.path}/reservations",
        world.keys["own"],
        feature="generate_goal",
        units=3,
        userId=str(world.user),
        metadata={"quarter": "Q1"},
        holdSeconds=60,
    )
    assert held.status_code == 201, held.text
    assert set(held.json()) == {
        "id",
        "organizationId",
        "userId",
        "feature",
        "tokenType",
        "units",
        "tokens",
        "remainingBalance",
        "expiresAt",
    }
    assert (held.json()["tokens"], held.json()["remainingBalance"]) == (9, 11)
    path = f"{world.path}/reservations/{held.json()['id']}"
    charged = api.post(f"{path}/deduct", world.keys["own"], units=1)
    assert charged.status_code == 200
    assert (charged.json()["tokensDeducted"], charged.json()["remainingBalance"]) == (3, 17)
    [row] = tokens.database.rows("select * from public.ai_token_usage_log")
    assert (row["user_id"], row["metadata"]) == (world.user, {"quarter": "Q1"})
    over = api.post(f"{path}/release", world.keys["own"])
    assert (over.status_code, over.json()["code"]) == (409, "reservation_over")
    assert over.json()["state"] == "deducted"


def test_hold_then_release(api: Api, world: World, tokens: Tokens) -> None:
    held = api.post(f"{world.path}/reservations", world.member, feature="generate_goal").json()
    assert balance(tokens, world) == 17
    released = api.post(
        f"{world.path}/reservations/{held['id']}/release", world.member, reason="cancelled"
    )
    assert released.json() == {
        "id": held["id"],
        "organizationId": str(world.organization),
        "tokenType": "goal_generation",
        "remainingBalance": 20,
    }
    assert balance(tokens, world) == 20


def test_charge_and_refund(api: Api, world: World, tokens: Tokens) -> None:
    who = world.keys["spend"]
    charged = api.post(
        f"{world.path}/charges", who, feature="generate_goal", userId=str(world.user)
    )
    assert (charged.status_code, charged.json()["remainingBalance"]) == (201, 17)
    path = f"{world.path}/charges/{charged.json()['id']}/refund"
    given = api.post(path, who, key="refund 1", reason="it was empty")
    assert given.status_code == 200, given.text
    assert (given.json()["usageId"], given.json()["tokens"]) == (charged.json()["id"], 3)
    assert given.json()["remainingBalance"] == 20
    again = api.post(path, who, reason="it was empty")
    assert (again.status_code, again.json()["code"]) == (409, "already_refunded")
    assert balance(tokens, world) == 20
    [event] = tokens.database.rows("select * from public.ai_token_events where kind = 'refund'")
    assert (event["actor"], event["reason"]) == ("API key The key spend", "it was empty")


def test_refunds_are_not_for_members(api: Api, world: World, tokens: Tokens, books: Books) -> None:
    usage = tokens.deduct_tokens(world.organization, world.user, "generate_goal")
    before = books()
    path = f"{world.path}/charges/{usage.id}/refund"
    refused = api.post(path, world.member, reason="mine")
    assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
    assert refused.json()["detail"].startswith("Only staff may do this, and you are not staff.")
    assert api.post(path, world.other_member, reason="mine").status_code == 404
    assert api.post(path, world.staff["support"], reason="kind").status_code == 403
    assert books() == before
    assert api.post(path, world.staff["admin"], reason="right").status_code == 200


def test_out_of_tokens_is_told_in_full(api: Api, world: World, books: Books) -> None:
    before = books()
    refused = api.post(
        f"{world.path}/charges",
        world.keys["own"],
        feature="generate_goal",
        units=7,
        userId=str(world.user),
    )
    assert refused.status_code == 402
    assert refused.headers["content-type"] == "application/problem+json"
    problem = refused.json()
    assert (problem["code"], problem["needed"], problem["available"]) == (
        "insufficient_tokens",
        21,
        20,
    )
    assert problem["tokenType"] == "goal_generation"
    assert problem["refreshDate"] > "2026"
    after = books()
    assert after.pop("ai_token_refusals") != before.pop("ai_token_refusals")
    assert after == before


def test_the_first_answer_comes_again(
    api: Api, world: World, tokens: Tokens, token_clock: TestClock
) -> None:
    def hold() -> tuple[int, object, str | None]:
        answer = api.post(
            f"{world.path}/reservations", world.member, key="quest 1", feature="generate_goal"
        )
        return answer.status_code, answer.json(), answer.headers.get("idempotency-replayed")

    first = hold()
    assert (first[0], first[2]) == (201, None)
    assert hold() == (first[0], first[1], "true")
    reservation = first[1]["id"]  # type: ignore[index]
    path = f"{world.path}/reservations/{reservation}/deduct"
    charged = api.post(path, world.member, key="charge 1")
    token_clock.advance(NEXT_TRY)
    assert api.post(f"{world.path}/charges", world.member, feature="generate_goal").is_success
    again = api.post(path, world.member, key="charge 1")
    assert again.json() == charged.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert balance(tokens, world) == 14


NAMES = pytest.mark.parametrize("named", [False, True], ids=["no id", "the same id"])


@NAMES
def test_a_hold_that_was_charged_is_not_made_again(
    api: Api, world: World, token_clock: TestClock, books: Books, named: bool
) -> None:
    """Else whoever lost an answer would run the model again for one charge."""
    path, name = f"{world.path}/reservations", {"id": str(uuid4())} if named else {}
    body: dict[str, Any] = {"feature": "generate_goal", "units": 2, **name}
    held = api.post(path, world.member, key="quest", **body).json()
    charged = api.post(f"{path}/{held['id']}/deduct", world.member, key="quest-deduct").json()
    before = books()
    # At once, within the 3 seconds between two requests: a question counts for no limit.
    for _ in range(2):
        again = api.post(path, world.member, key="quest", **body)
        assert (again.status_code, again.json()["code"]) == (409, "already_spent")
        assert again.json()["usage"]["tokensDeducted"] == charged["tokensDeducted"] == 6
        assert "idempotency-replayed" not in again.headers
    assert books() == before


def test_what_was_charged_is_told_though_the_key_may_not_ask_again(
    api: Api, world: World, tokens: Tokens
) -> None:
    made = tokens.staff_create_key(
        world.admin, "One a minute", ["spend"], requests_per_minute=1, reason="a test"
    )
    who = {"Authorization": f"Bearer {made.secret}"}
    path, body = f"{world.path}/reservations", {"feature": "generate_goal"}
    held = api.post(path, who, key="quest", **body, userId=str(world.user)).json()
    assert api.post(f"{path}/{held['id']}/deduct", who).is_success
    again = api.post(path, who, key="quest", **body, userId=str(world.user))
    assert (again.status_code, again.json()["code"]) == (409, "already_spent")
    assert api.post(path, who, **body, userId=str(world.user)).status_code == 429


@NAMES
@pytest.mark.parametrize("end", ["released", "expired"])
def test_a_hold_that_is_over_frees_its_key(
    api: Api, world: World, tokens: Tokens, token_clock: TestClock, end: str, named: bool
) -> None:
    path, name = f"{world.path}/reservations", {"id": str(uuid4())} if named else {}
    body: dict[str, Any] = {"feature": "generate_goal", "holdSeconds": 60, **name}
    first = api.post(path, world.keys["own"], key="quest", **body, userId=str(world.user)).json()
    if end == "released":
        assert api.post(f"{path}/{first['id']}/release", world.keys["own"]).is_success
    else:
        token_clock.advance(timedelta(seconds=60))
    fresh = api.post(path, world.keys["own"], key="quest", **body, userId=str(world.user))
    assert fresh.status_code == 201
    assert "idempotency-replayed" not in fresh.headers
    assert fresh.json()["id"] != first["id"]
    assert balance(tokens, world) == 17
    # From now on this one is meant.
    again = api.post(path, world.keys["own"], key="quest", **body, userId=str(world.user))
    if not named:
        assert (again.json(), again.headers["idempotency-replayed"]) == (fresh.json(), "true")
    ended = api.post(f"{path}/{fresh.json()['id']}/deduct", world.keys["own"])
    assert ended.json()["remainingBalance"] == 17


def test_a_name_stands_for_one_hold(api: Api, world: World, books: Books) -> None:
    path, name = f"{world.path}/reservations", str(uuid4())
    body: dict[str, Any] = {"feature": "generate_goal", "userId": str(world.user), "id": name}
    assert api.post(path, world.keys["own"], key="quest 1", **body).json()["id"] == name
    before = books()
    for feature in ("generate_goal", "generate_insight"):
        taken = api.post(path, world.keys["own"], key="quest 2", **body | {"feature": feature})
        assert (taken.status_code, taken.json()["code"]) == (422, "idempotency_conflict")
        assert taken.json()["errors"][0]["field"] == "id"
    assert books() == before


def test_a_name_that_many_want_at_once_is_one_s(api: Api, world: World) -> None:
    name, path = str(uuid4()), f"{world.path}/reservations"

    def hold(number: int) -> tuple[int, str]:
        feature = ("generate_goal", "generate_insight")[number % 2]
        body = {"feature": feature, "id": name, "userId": str(world.user)}
        answer = api.post(path, world.keys["own"], key=f"quest {number}", **body)
        return answer.status_code, answer.json().get("code", "held")

    with ThreadPoolExecutor(6) as callers:
        said = sorted(callers.map(hold, range(6)))
    assert said == [(201, "held")] + [(422, "idempotency_conflict")] * 5


def test_a_key_stands_for_one_request(api: Api, world: World, tokens: Tokens) -> None:
    path = f"{world.path}/charges"
    assert api.post(path, world.member, key="k", feature="generate_goal").is_success
    for other in (
        api.post(path, world.member, key="k", feature="generate_insight"),
        api.post(path, world.member, key="k", feature="generate_goal", units=2),
        api.post(f"{world.path}/reservations", world.member, key="k", feature="generate_goal"),
    ):
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    assert balance(tokens, world) == 17


def test_a_key_of_the_library_stands_for_the_same_request(
    api: Api, world: World, tokens: Tokens
) -> None:
    tokens.deduct_tokens(world.organization, world.user, "generate_goal", idempotency_key="q")
    again = api.post(
        f"{world.path}/charges",
        world.keys["own"],
        key="q",
        feature="generate_goal",
        userId=str(world.user),
    )
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    held = api.post(
        f"{world.path}/reservations",
        world.keys["own"],
        key="q",
        feature="generate_goal",
        userId=str(world.user),
    )
    assert (held.status_code, held.json()["code"]) == (422, "idempotency_conflict")
    assert balance(tokens, world) == 17


def test_a_refusal_frees_the_key(api: Api, world: World, tokens: Tokens) -> None:
    path, who, user = f"{world.path}/charges", world.keys["own"], str(world.user)
    body = {"feature": "generate_goal", "units": 7, "userId": user}
    assert api.post(path, who, key="k", **body).status_code == 402
    tokens.upgrade_tokens(world.organization, "goal_generation", 10)
    assert api.post(path, who, key="k", **body).json()["remainingBalance"] == 9


def test_many_callers_with_one_key_charge_once(api: Api, world: World, tokens: Tokens) -> None:
    def charge(_: int) -> tuple[int, str]:
        answer = api.post(
            f"{world.path}/charges",
            world.keys["own"],
            key="one",
            feature="generate_goal",
            userId=str(world.user),
        )
        return answer.status_code, answer.json().get("id") or answer.json()["code"]

    with ThreadPoolExecutor(8) as callers:
        answers = set(callers.map(charge, range(40)))
    done = {said for status, said in answers if status == 201}
    assert len(done) == 1
    assert answers - {(201, *done)} <= {(409, "in_flight")}
    assert balance(tokens, world) == 17


@pytest.mark.one_node
def test_a_call_that_is_still_running_is_told(
    api: Api, world: World, token_database: TestDatabase, tokens: Tokens
) -> None:
    with token_database.connect() as other, other.transaction():
        other.execute(
            "select pg_advisory_xact_lock(hashtextextended('one',"
            " hashtextextended('api ' || %s || %s, 0)))",
            (str(world.organization), str(world.user)),
        )
        waiting = api.post(
            f"{world.path}/charges", world.member, key="one", feature="generate_goal"
        )
    assert (waiting.status_code, waiting.json()["code"]) == (409, "in_flight")
    assert waiting.headers["retry-after"] == "1"
    assert balance(tokens, world) == 20


def test_no_key_no_write(api: Api, world: World, books: Books) -> None:
    before = books()
    for headers in ({}, {"Idempotency-Key": ""}, {"Idempotency-Key": "k" * 256}):
        answer = api.client.post(
            f"/api/v1{world.path}/charges",
            headers=world.member | headers,
            json={"feature": "generate_goal"},
        )
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["field"] == "Idempotency-Key"
    assert books() == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "feature"),
        ({"feature": "generate_goal", "units": 0}, "units"),
        ({"feature": "generate_goal", "units": "3"}, "units"),
        ({"feature": "generate_goal", "units": True}, "units"),
        ({"feature": "generate_goal", "organizationId": str(uuid4())}, "organizationId"),
        ({"feature": "generate_goal", "user_id": str(uuid4())}, "user_id"),
        ({"feature": "generate_goal", "tokens": 0}, "tokens"),
        ({"feature": "a b"}, "feature"),
        ({"feature": "generate_goal", "metadata": []}, "metadata"),
        ({"feature": "generate_goal", "metadata": {"a": "b" * 17_000}}, "metadata"),
        ({"feature": "generate_gaol"}, "feature"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_done(
    api: Api, world: World, books: Books, body: dict[str, Any], field: str
) -> None:
    before = books()
    answer = api.post(f"{world.path}/charges", world.member, **body)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == field, answer.text
    assert books() == before


@pytest.mark.one_node
def test_a_key_names_the_member_it_calls_for(api: Api, world: World, books: Books) -> None:
    before = books()
    missing = api.post(f"{world.path}/charges", world.keys["own"], feature="generate_goal")
    assert (missing.status_code, missing.json()["errors"][0]["field"]) == (400, "userId")
    for stranger in (world.other_user, uuid4()):
        answer = api.post(
            f"{world.path}/charges",
            world.keys["own"],
            feature="generate_goal",
            userId=str(stranger),
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "not_a_member")
        assert str(stranger) not in answer.text
    assert books() == before


def test_a_member_spends_for_nobody_else(api: Api, world: World, books: Books) -> None:
    before = books()
    for path in ("charges", "reservations"):
        told = [
            api.post(f"{world.path}/{path}", world.colleague, feature="generate_goal", userId=user)
            for user in (str(world.user), str(world.other_user), str(uuid4()))
        ]
        assert {answer.status_code for answer in told} == {403}
        assert told[0].json()["code"] == "permission_denied"
        assert told[0].json()["errors"][0]["field"] == "userId"
        # A colleague, a stranger and nobody read the same.
        assert len({answer.json()["detail"] for answer in told}) == 1
        elsewhere = f"/organizations/{world.other}/{path}"
        answer = api.post(
            elsewhere, world.colleague, feature="generate_goal", userId=str(world.other_user)
        )
        assert answer.status_code == 404
    # Each was a failed attempt, and seven of them block for a while.
    mine = api.post(f"{world.path}/charges", world.colleague, feature="generate_goal")
    assert (mine.status_code, mine.json()["limit"]) == (429, "failed_attempts")
    changed = books()
    assert changed.pop("ai_token_refusals") != before.pop("ai_token_refusals")
    assert changed == before


def test_a_hold_is_ended_by_who_made_it(
    api: Api, world: World, tokens: Tokens, books: Books
) -> None:
    """Else a member could release the hold of the product's server while its model runs."""
    servers = api.post(
        f"{world.path}/reservations",
        world.keys["own"],
        feature="generate_goal",
        userId=str(world.user),
    ).json()
    librarys = tokens.reserve(world.organization, world.user, "generate_goal")
    before = books()
    for reservation in (servers["id"], librarys.id):
        for who in (world.member, world.colleague, world.other_member, world.staff["admin"]):
            for end in ("release", "deduct"):
                path = f"{world.path}/reservations/{reservation}/{end}"
                assert api.post(path, who).status_code == 404
    assert books() == before
    path = f"{world.path}/reservations/{servers['id']}/deduct"
    assert api.post(path, world.keys["spend"]).status_code == 200


def test_can_use(api: Api, world: World, tokens: Tokens, books: Books) -> None:
    before = books()
    path = f"{world.path}/can-use"
    for who, user in (
        (world.member, {}),
        (world.keys["check"], {"userId": str(world.user)}),
        (world.staff["support"], {"userId": str(world.user)}),
    ):
        answer = api.get(path, who, feature="generate_goal", **user)
        assert answer.status_code == 200, answer.text
        assert answer.json()["allowed"] is True
        assert answer.json()["needed"] == 3
    no = api.get(path, world.keys["check"], feature="generate_goal", units=7, userId=world.user)
    assert (no.json()["allowed"], no.json()["rule"]) == (False, "insufficient_tokens")
    assert api.get(path, world.member, feature="generate_gaol").json()["code"] == "unknown_feature"
    assert api.get(path, world.member, feature="generate_goal", unit=7).status_code == 400
    for other in (world.admin, world.other_user, uuid4()):
        answer = api.get(path, world.member, feature="generate_goal", userId=other)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (403, "userId")
    assert books() == before


@pytest.mark.one_node
def test_first_answers_are_kept_for_a_week(
    api: Api, world: World, tokens: Tokens, token_clock: TestClock
) -> None:
    def kept() -> set[str]:
        rows = tokens.database.rows("select idempotency_key from public.ai_token_api_requests")
        return {row["idempotency_key"] for row in rows}

    path, body = f"{world.path}/charges", {"feature": "analyze_strategy"}
    own, user = world.keys["own"], str(world.user)
    first = api.post(path, own, key="charged", **body, userId=user)
    for number in (1, 2, 3):
        api.post(f"{world.path}/reservations", own, key=f"old {number}", **body, userId=user)
    token_clock.advance(timedelta(days=6))
    assert api.post(path, world.member, key="new 1", **body).is_success
    assert kept() == {"old 1", "old 2", "old 3", "new 1"}
    token_clock.advance(timedelta(days=1, seconds=1))
    assert api.post(path, world.member, key="new 2", **body).is_success
    assert len(kept()) == 3
    assert api.post(path, world.colleague, key="new 3", **body).is_success
    assert kept() == {"new 1", "new 2", "new 3"}
    # What was charged is protected for ever, by the key in the books.
    again = api.post(path, own, key="charged", **body, userId=user)
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (
        first.json()["id"],
        "true",
    )
