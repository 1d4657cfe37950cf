"""Limits of a user, a key and an organization: decided with the charge, told, on record."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from httpx2 import Response

    from tests.api.conftest import Api, Books, World

INSIGHT = {"feature": "generate_insight"}


@dataclass(frozen=True)
class Spender:
    """Charges in the first organization with a key that has limits of its own."""

    api: Api
    world: World
    who: dict[str, str]

    def charge(self, **body: Any) -> Response:
        """One insight, for its member unless said."""
        wanted = INSIGHT | {"userId": str(self.world.user)} | body
        return self.api.post(f"{self.world.path}/charges", self.who, **wanted)


@pytest.fixture
def limited(api: Api, world: World, tokens: Tokens) -> Any:
    """Make a key with limits."""

    def limited(**limits: Any) -> Spender:
        made = tokens.staff_create_key(
            world.admin, "A limited key", ["spend"], reason="a test", **limits
        )
        return Spender(api, world, {"Authorization": f"Bearer {made.secret}"})

    return limited


@pytest.fixture(autouse=True)
def _stopped(token_clock: TestClock, world: World) -> None:
    token_clock.set(token_clock.now())


def refusals(database: TestDatabase) -> list[tuple[Any, ...]]:
    with database.connect() as owner:
        return owner.execute(
            "select user_id, feature, rule, data ->> 'limit', count from ai_token_refusals"
        ).fetchall()


def test_a_long_answer_is_refused_before_it_and_after(
    api: Api, world: World, token_clock: TestClock, token_database: TestDatabase
) -> None:
    large: dict[str, Any] = INSIGHT | {"metadata": {"output_units": 2_001}}
    for path in ("charges", "reservations"):
        refused = api.post(f"{world.path}/{path}", world.member, **large)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert (refused.json()["limit"], refused.json()["allowed"]) == (
            "output_units_per_request",
            2_000,
        )
        assert "retry-after" not in refused.headers
    held = api.post(f"{world.path}/reservations", world.member, **INSIGHT).json()
    path = f"{world.path}/reservations/{held['id']}"
    refused = api.post(f"{path}/deduct", world.member, metadata={"output_units": 2_001})
    assert (refused.status_code, refused.json()["limit"]) == (429, "output_units_per_request")
    assert api.post(f"{path}/release", world.member).is_success
    assert api.get(f"{world.path}/balances/general", world.member).json()["balance"] == 50
    [row] = refusals(token_database)
    assert row[2:] == ("rate_limited", "output_units_per_request", 3)
    # A key is under the limits of users only when it was made so.
    body = large | {"userId": str(world.user)}
    assert api.post(f"{world.path}/charges", world.keys["own"], **body).is_success


@pytest.mark.parametrize("said", ['"2001"', "[5000]", "-5", "1e999", "2.5", "true", "null"])
def test_output_units_that_are_no_count_pass_no_limit(
    api: Api, world: World, books: Books, said: str
) -> None:
    """For members, whom the limit holds, and for keys, whom it may not: charge, hold, settle."""
    held = api.post(f"{world.path}/reservations", world.member, **INSIGHT).json()
    before = books()
    for who, user in ((world.member, ""), (world.keys["own"], f', "userId": "{world.user}"')):
        body = f'{{"metadata": {{"output_units": {said}}}'
        spending = f'{body}, "feature": "generate_insight"{user}}}'
        asked = {"charges": spending, "reservations": spending}
        asked[f"reservations/{held['id']}/deduct"] = body + "}"
        for path, content in asked.items():
            refused = api.client.post(
                f"/api/v1{world.path}/{path}",
                content=content,
                headers=who | {"Idempotency-Key": "k", "Content-Type": "application/json"},
            )
            assert (refused.status_code, refused.json()["code"]) == (400, "invalid_input"), path
            assert refused.json()["errors"] == [
                {
                    "field": "metadata.output_units",
                    "problem": "must be a whole number from 0 to 9999999999",
                }
            ]
    assert books() == before


def test_the_description_has_the_headers_of_the_limits(api: Api, world: World) -> None:
    paths = api.client.get("/api/v1/openapi.json").json()["paths"]
    for verb in ("charges", "reservations"):
        answers = paths[f"/v1/organizations/{{organizationId}}/{verb}"]["post"]["responses"]
        for key, status in (("first", 201), ("second", 429)):
            told = api.post(f"{world.path}/{verb}", world.member, key=f"{verb} {key}", **INSIGHT)
            if status == told.status_code:
                sent = {name for name in told.headers if name.startswith("ratelimit")}
                assert sent == {name.lower() for name in answers[str(status)]["headers"]} & {
                    "ratelimit",
                    "ratelimit-policy",
                }


def test_a_member_is_limited_and_told(api: Api, world: World, token_clock: TestClock) -> None:
    path = f"{world.path}/charges"
    first = api.post(path, world.member, key="first", **INSIGHT)
    assert first.headers["ratelimit-policy"] == '"user";q=30;w=60'
    assert first.headers["ratelimit"] == '"user";r=29;t=60'
    token_clock.advance(timedelta(seconds=1.5))
    soon = api.post(path, world.member, **INSIGHT)
    assert (soon.status_code, soon.headers["retry-after"]) == (429, "2")
    assert soon.headers["ratelimit"] == '"user";r=0;t=2'
    assert (soon.json()["limit"], soon.json()["allowed"]) == ("seconds_between_requests", 3)
    # A replay is no request that counts.
    assert api.post(path, world.member, key="first", **INSIGHT).is_success
    held = api.post(f"{world.path}/reservations", world.member, **INSIGHT)
    assert held.status_code == 429
    token_clock.advance(timedelta(seconds=1.5))
    assert api.post(path, world.member, **INSIGHT).headers["ratelimit"] == '"user";r=28;t=57'
    large = api.post(path, world.member, feature="generate_leads", units=3)
    assert (large.status_code, large.json()["limit"]) == (429, "tokens_per_request")
    assert "retry-after" not in large.headers


def test_a_key_is_not_limited_unless_it_says_so(limited: Any) -> None:
    spender = limited()
    for _ in range(5):
        answer = spender.charge()
        assert answer.status_code == 201
        assert "ratelimit" not in answer.headers


def test_a_key_may_hold_the_limits_of_users(limited: Any) -> None:
    spender = limited(limit_users=True)
    assert spender.charge().status_code == 201
    assert spender.charge().json()["limit"] == "seconds_between_requests"


def test_a_key_has_limits_of_its_own(
    limited: Any, token_clock: TestClock, token_database: TestDatabase, world: World
) -> None:
    spender = limited(requests_per_minute=3)
    for left in (2, 1, 0):
        assert spender.charge().headers["ratelimit"] == f'"key";r={left};t=60'
    refused = spender.charge()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert refused.headers["ratelimit"] == '"key";r=0;t=60'
    assert refused.json()["limit"] == "key_requests_per_minute"
    assert refusals(token_database) == [
        (world.user, "generate_insight", "rate_limited", "key_requests_per_minute", 1)
    ]
    token_clock.advance(timedelta(seconds=60))
    assert spender.charge().status_code == 201


def test_seconds_and_tokens_of_a_key(limited: Any, token_clock: TestClock) -> None:
    spender = limited(seconds_between_requests=2, tokens_per_request=4)
    large = spender.charge(units=5)
    assert (large.status_code, large.json()["limit"]) == (429, "key_tokens_per_request")
    assert "retry-after" not in large.headers
    assert spender.charge(units=4).status_code == 201
    token_clock.advance(timedelta(seconds=1))
    soon = spender.charge()
    assert (soon.json()["limit"], soon.headers["retry-after"]) == (
        "key_seconds_between_requests",
        "1",
    )
    token_clock.advance(timedelta(seconds=1))
    assert spender.charge().status_code == 201


def test_output_units_of_a_key(
    limited: Any, api: Api, world: World, token_database: TestDatabase
) -> None:
    """Known before the call, as the most that may come, or after it: refused either way."""
    spender = limited(output_units_per_request=500)
    large: dict[str, Any] = {"metadata": {"output_units": 501}}
    most: dict[str, Any] = {"metadata": {"output_units": 500}}
    wanted = INSIGHT | {"userId": str(world.user)}
    path = f"{world.path}/reservations"
    for refused in (spender.charge(**large), api.post(path, spender.who, **wanted, **large)):
        assert (refused.status_code, refused.json()["allowed"]) == (429, 500)
        assert refused.json()["limit"] == "key_output_units_per_request"
        assert "retry-after" not in refused.headers
    assert spender.charge(**most).status_code == 201
    held = api.post(path, spender.who, **wanted).json()
    end = f"{path}/{held['id']}/deduct"
    assert api.post(end, spender.who, **large).json()["limit"] == "key_output_units_per_request"
    # The hold stays, for who charges what is allowed; then the first answer stands.
    first = api.post(end, spender.who, **most)
    assert first.status_code == 200
    assert api.post(end, spender.who, **large).json()["id"] == first.json()["id"]
    [row] = refusals(token_database)
    assert row[1:] == ("generate_insight", "rate_limited", "key_output_units_per_request", 3)
    # Another key's limit is its own.
    assert limited().charge(**large).status_code == 201


def test_whether_it_may_is_asked_with_the_limits_of_the_key(
    limited: Any, api: Api, world: World, tokens: Tokens, books: Books
) -> None:
    """The same verdict as the charge, and nothing is on record for having asked."""
    made = tokens.staff_create_key(
        world.admin,
        "A limited key",
        ["check", "spend"],
        requests_per_minute=1,
        tokens_per_request=4,
        output_units_per_request=500,
        reason="a test",
    )
    spender = Spender(api, world, {"Authorization": f"Bearer {made.secret}"})

    def verdict(**asked: Any) -> tuple[bool, str]:
        wanted = INSIGHT | {"userId": str(world.user)} | asked
        answer = api.get(f"{world.path}/can-use", spender.who, **wanted).json()
        return answer["allowed"], answer["message"]

    before = books()
    assert verdict(outputUnits=500, units=4) == (True, "Allowed.")
    for asked, name in (
        ({"outputUnits": 501}, "key output units per request, 500"),
        ({"units": 5}, "key tokens per request, 4"),
    ):
        assert verdict(**asked) == (False, f"Limit reached: {name} allowed.")
    assert books() == before
    assert spender.charge().status_code == 201
    allowed, message = verdict()
    assert not allowed
    assert message.startswith("Limit reached: key requests per minute, 1 allowed. Try again in")
    # The switch goes before them.
    tokens.set_mode("log_only", world.organization, actor="a test", reason="a test")
    assert verdict(outputUnits=501)[0]


def test_whether_a_member_may_is_asked_with_the_output_units(api: Api, world: World) -> None:
    path = f"{world.path}/can-use"
    asked = {"feature": "generate_goal", "outputUnits": 2_000}
    assert api.get(path, world.member, **asked).json()["allowed"]
    answer = api.get(path, world.member, **asked | {"outputUnits": 2_001}).json()
    assert (answer["allowed"], answer["rule"]) == (False, "rate_limited")
    assert "output units per request, 2000 allowed" in answer["message"]
    wrong = api.get(path, world.member, **asked | {"outputUnits": -1})
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (400, "outputUnits")


def test_an_organization_is_limited_over_all_its_callers(
    limited: Any, api: Api, world: World, tokens: Tokens, token_clock: TestClock
) -> None:
    tokens.staff_set_request_limit(world.admin, world.organization, 3, reason="a test")
    spender = limited()
    assert spender.charge().status_code == 201
    token_clock.advance(timedelta(seconds=3))
    assert api.post(f"{world.path}/charges", world.member, **INSIGHT).status_code == 201
    assert api.post(f"{world.path}/reservations", world.colleague, **INSIGHT).is_success
    refused = spender.charge()
    assert (refused.status_code, refused.json()["limit"]) == (
        429,
        "organization_requests_per_minute",
    )
    # Another organization has room of its own.
    other = api.post(f"/organizations/{world.other}/charges", world.other_member, **INSIGHT)
    assert other.status_code == 201
    tokens.staff_set_request_limit(world.admin, None, 1, reason="a test")
    more = api.post(
        f"/organizations/{world.other}/charges",
        world.keys["other"],
        **INSIGHT,
        userId=str(world.other_user),
    )
    assert more.json()["limit"] == "organization_requests_per_minute"


def test_callers_at_the_same_time_do_not_share_a_place(
    limited: Any, books: Books, world: World
) -> None:
    spender = limited(requests_per_minute=4)
    with ThreadPoolExecutor(8) as callers:
        statuses = sorted(callers.map(lambda _: spender.charge().status_code, range(16)))
    assert statuses == [201] * 4 + [429] * 12
    assert len(books()["ai_token_usage_log"]) == 4


def test_callers_of_an_organization_at_the_same_time_take_turns(
    limited: Any, world: World, tokens: Tokens, books: Books
) -> None:
    """Also with several keys: the wallet makes them wait too, but after the count."""
    tokens.staff_set_request_limit(world.admin, world.organization, 4, reason="a test")
    spenders = [limited() for _ in range(4)]

    def charge(number: int) -> int:
        return int(spenders[number % 4].charge().status_code)

    with ThreadPoolExecutor(8) as callers:
        statuses = sorted(callers.map(charge, range(16)))
    assert statuses == [201] * 4 + [429] * 12
    assert len(books()["ai_token_usage_log"]) == 4


def test_what_cannot_be_asked_is_refused(
    limited: Any, token_database: TestDatabase, books: Books
) -> None:
    """Fail closed: without the table that limits are counted from there is no charge."""
    spender = limited(requests_per_minute=4)
    before = books()
    with token_database.connect() as owner:
        owner.execute("alter table ai_token_api_keys rename column requests_per_minute to gone")
        answer = spender.charge()
        owner.execute("alter table ai_token_api_keys rename column gone to requests_per_minute")
    assert answer.status_code in (500, 503)
    assert books() == before


def test_the_switch_goes_before_limits(
    limited: Any, tokens: Tokens, world: World, token_database: TestDatabase
) -> None:
    spender = limited(requests_per_minute=1)
    assert spender.charge().status_code == 201
    tokens.set_mode("log_only", world.organization, actor="a test", reason="a test")
    assert spender.charge().json()["tokensWaived"] == 1
    assert [row[2:4] for row in refusals(token_database)] == [
        ("rate_limited", "key_requests_per_minute")
    ]
    tokens.set_mode("off", world.organization, actor="a test", reason="a test")
    assert spender.charge().json()["tokensWaived"] == 1
    assert refusals(token_database)[0][4] == 1


def test_five_failed_attempts_block_a_member_for_a_while(
    api: Api, world: World, token_clock: TestClock, token_database: TestDatabase
) -> None:
    path = f"{world.path}/charges"
    theirs = f"/organizations/{world.other}/charges"
    assert api.post(path, world.member, feature="generate_goal", units="3").status_code == 400
    assert api.post(path, world.member, feature="generate_gaol").status_code == 400
    assert api.post(theirs, world.member, **INSIGHT).status_code == 404
    assert api.client.post(
        f"/api/v1{path}", headers=world.member | {"Idempotency-Key": "k"}, content=b"{"
    ).is_client_error
    # What others do in the member's name is not laid at the member's door, and questions are free.
    for who in ({}, world.keys["own"], world.keys["other"]):
        assert api.post(path, who, feature="generate_goal", units="3").is_client_error
    assert api.get(f"/organizations/{world.other}/balances", world.member).status_code == 404
    assert api.post(path, world.member, key="good", **INSIGHT).status_code == 201
    token_clock.advance(timedelta(seconds=3))
    body = {"organizationId": str(world.other), "featureUsed": "generate_goal", "action": "deduct"}
    old = api.client.post("/api/v1/tokens/check-balance", json=body, headers=world.member)
    assert old.status_code == 403
    blocked = api.post(path, world.member, **INSIGHT)
    assert (blocked.status_code, blocked.json()["limit"]) == (429, "failed_attempts")
    assert int(blocked.headers["retry-after"]) > 500
    assert api.post(path, world.colleague, **INSIGHT).status_code == 201
    assert api.post(path, world.member, key="good", **INSIGHT).status_code == 201
    assert {(row[0], row[2]) for row in refusals(token_database)} == {
        (world.user, "failed_attempt"),
        (world.user, "rate_limited"),
    }
    token_clock.advance(timedelta(minutes=10))
    assert api.post(path, world.member, **INSIGHT).status_code == 201
