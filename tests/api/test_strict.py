"""What a request must look like: nothing twice, JSON that is read here; else told in our words."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from starlette.testclient import TestClient

from tokenlib.api import alone
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from httpx2 import Response

    from tests.api.conftest import Api, Books, Member, World

JSON = {"Content-Type": "application/json"}
PYDANTIC = ("Input should", "Field required", "Value error", "Extra inputs", "ctx", "pydantic")


def charge(
    api: Api, world: World, content: bytes, headers: dict[str, str] | list[tuple[str, str]]
) -> Response:
    """A charge with a key and any body: it would take the short way."""
    said = [*headers.items()] if isinstance(headers, dict) else headers
    names = {name.lower() for name, _ in said}
    said += [pair for pair in world.keys["own"].items() if "authorization" not in names]
    if "idempotency-key" not in names:
        said.append(("Idempotency-Key", str(uuid4())))
    return api.client.post(f"/api/v1{world.path}/charges", content=content, headers=said)


def right(world: World) -> bytes:
    return json.dumps({"feature": "generate_goal", "userId": str(world.user)}).encode()


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "The header Content-Type is missing. Send the body as UTF-8 JSON"),
        ({"Content-Type": "text/plain"}, "Content-Type: application/json"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "Content-Type: application/json"),
        ({"Content-Type": "json"}, "Content-Type: application/json"),
        ({"Content-Type": "application/json; charset=latin-1"}, "charset"),
        ({"Content-Type": 'application/json; charset="UTF-16"'}, "charset"),
        (JSON | {"Content-Encoding": "gzip"}, "Content-Encoding"),
        (JSON | {"Content-Encoding": "br"}, "Content-Encoding"),
    ],
)
def test_a_body_that_is_not_read_here_is_refused_with_the_way_out(
    api: Api, world: World, books: Books, headers: dict[str, str], said: str
) -> None:
    before = books()
    for content in (right(world), gzip.compress(right(world))):
        answer = charge(api, world, content, headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
        assert said in answer.json()["detail"]
    assert books() == before


@pytest.mark.parametrize(
    "headers",
    [
        JSON,
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": 'Application/JSON;charset="UTF-8"'},
        {"Content-Type": "application/problem+json"},
        JSON | {"Content-Encoding": "identity"},
    ],
)
def test_json_in_utf_8_is_read_however_it_is_said(
    api: Api, world: World, headers: dict[str, str]
) -> None:
    assert charge(api, world, right(world), headers).status_code == 201
    assert charge(api, world, b"\xef\xbb\xbf" + right(world), headers).status_code == 201


def test_json_in_another_encoding_is_none(api: Api, world: World, books: Books) -> None:
    before = books()
    for encoding in ("utf-16", "utf-32", "utf-16-le"):
        answer = charge(api, world, right(world).decode().encode(encoding), JSON)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert books() == before


def test_nothing_that_matters_is_there_twice(api: Api, world: World, books: Books) -> None:
    """Also what says the same: who reads the first and who reads the last must agree."""
    [authorization] = world.keys["own"].items()
    [other] = world.keys["all"].items()
    kind = ("Content-Type", "application/json")
    user, before = str(world.user), books()
    twice: list[tuple[str, bytes, list[tuple[str, str]]]] = [
        ("Authorization", right(world), [authorization, other, kind]),
        ("Authorization", right(world), [authorization, authorization, kind]),
        (
            "Idempotency-Key",
            right(world),
            [("Idempotency-Key", "a"), ("idempotency-key", "b"), kind],
        ),
        ("Content-Type", right(world), [kind, kind]),
        ("feature", right(world)[:-1] + b', "feature": "generate_insight"}', [kind]),
        ("userId", right(world)[:-1] + f', "userId": "{user}"}}'.encode(), [kind]),
        ("a", right(world)[:-1] + b', "metadata": {"b": [{"a": 1, "a": 2}]}}', [kind]),
        (
            "output_units",
            right(world)[:-1] + b', "metadata": {"output_units": 9000, "output_units": 1}}',
            [kind],
        ),
    ]
    for field, content, headers in twice:
        answer = charge(api, world, content, headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), field
        assert answer.json()["detail"] == f"{field} is there more than once: send it once."
        assert answer.json()["errors"][0]["field"] == field
    assert books() == before


def test_old_callers_are_read_as_ever(member: Member) -> None:
    """Any type, any charset, the last of two: the contract is older."""
    body = member.body(action="deduct")
    content = json.dumps(body)[:-1] + ', "action": "check"}'
    for headers in ({}, {"Content-Type": "text/plain; charset=latin-1"}):
        answer = member.client.post(
            "/api/v1/tokens/check-balance",
            content=content.encode(),
            headers=member.signed() | headers | {"Content-Encoding": "gzip"},
        )
        assert (answer.status_code, answer.json()) == (200, {"hasTokens": True})


def test_an_api_key_hears_where_its_calls_are(
    api: Api, world: World, member: Member, books: Books
) -> None:
    before = books()
    for answer in (
        api.client.post(
            "/api/v1/tokens/check-balance", json=member.body(), headers=world.keys["all"]
        ),
        api.client.get("/api/v1/tokens/stats", headers=world.keys["all"]),
    ):
        assert answer.status_code == 401
        assert answer.json() == {
            "error": "This call takes the JWT of a person. With an API key call"
            " /api/v1/organizations/{organizationId}/charges, /has-enough or /stats."
        }
    assert books() == before


NEW = "is missing: send this header, new for each request and the same for its repetitions"
TIME = "must be a time with its offset, such as 2026-04-01T00:00:00Z"
LONG = b"1" + b"0" * 4300


def until(time: str) -> bytes:
    said = {"tokenType": "general", "amount": 1, "reason": "x", "expiresAt": time}
    return json.dumps(said).encode()


@pytest.mark.parametrize(
    ("path", "body", "field", "problem"),
    [
        ("charges", b"", "body", "is missing: send a JSON object"),
        ("charges", b"{", "body", "is not JSON: send a JSON object"),
        ("charges", b"[]", "body", "must be a JSON object"),
        ("charges", b"null", "body", "must be a JSON object"),
        ("charges", b"{}", "feature", "is missing: send it"),
        ("charges", b'{"feature": 7}', "feature", "must be text"),
        ("charges", b'{"feature": "a b"}', "feature", "must be a name: 1 to 100 letters, digits"),
        ("charges", b'{"feature": "a", "units": "3"}', "units", "must be a whole number"),
        ("charges", b'{"feature": "a", "units": 1.5}', "units", "must be a whole number"),
        ("charges", b'{"feature": "a", "units": 0}', "units", "must be 1 or more"),
        ("charges", b'{"feature": "a", "units": 1e9}', "units", "must be a whole number"),
        ("charges", b'{"feature": "a", "units": 1000001}', "units", "must be 1000000 or less"),
        ("charges", b'{"feature": "a", "userId": "x"}', "userId", "must be a UUID"),
        ("charges", b'{"feature": "a", "metadata": []}', "metadata", "must be a JSON object"),
        ("charges", b'{"feature": "a", "unit": 1}', "unit", "is not known: leave it out"),
        ("plan", b'{"plan": "pro", "reason": ""}', "reason", "must have at least 1 character"),
        ("plan", b'{"plan": "pro", "reason": " "}', "reason", "must have a character that is no"),
        ("status", b'{"status": "x", "reason": "y"}', "status", "must be one of: 'active', "),
        ("grants", b'{"tokenType": "general", "amount": 1, "reason": "x", "expiresAt": 1}',
         "expiresAt", TIME),
        ("grants", b'{"tokenType": "general", "amount": 1, "reason": "x", "expiresAt": "soon"}',
         "expiresAt", TIME),
        ("grants", until("2026-02-30T00:00:00Z"), "expiresAt", "names a day that does not exist"),
        ("grants", until("2026-13-01T00:00:00Z"), "expiresAt", "names a day that does not exist"),
        ("grants", until("0000-01-01T00:00:00Z"), "expiresAt", "names a day that does not exist"),
        ("grants", until("2026-01-01T24:00:00Z"), "expiresAt", TIME),
        ("charges", b'{"metadata": {"a": %s}}' % LONG, "body", "has a number of too many digits"),
        ("charges", b'{"feature": "a", "units": %s}' % LONG, "body", "has a number of too many"),
        ("charges", b'{"feature": "\xff"}', "body", "is not UTF-8: send JSON in UTF-8"),
        ("charges", '{"feature": "a"}'.encode("utf-16"), "body", "is not UTF-8: send JSON in"),
        ("charges", b"[" * 60_000, "body", "is nested too deeply: send fewer levels"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_our_words(
    api: Api, world: World, books: Books, path: str, body: bytes, field: str, problem: str
) -> None:
    before = books()
    for who in (world.staff["admin"], world.keys["own"]):  # whose charges take the short way
        answer = api.client.post(
            f"/api/v1{world.path}/{path}",
            content=body,
            headers=who | JSON | {"Idempotency-Key": "k"},
        )
        assert answer.status_code == 400, answer.text
        [told] = [each for each in answer.json()["errors"] if each["field"] == field]
        assert told["problem"].startswith(problem)
        assert answer.json()["detail"] == f"{field} {told['problem']}."
        assert not any(word in answer.text for word in PYDANTIC)
    assert books() == before


@pytest.mark.parametrize(
    "number", ["1_0", "+1", " 1", "1 ", "1.0", "1e1", "0x1", "\u0661", "", "-1", "0", "9" * 101]
)
def test_a_number_in_an_address_is_whole_decimal_digits(
    api: Api, world: World, number: str
) -> None:
    for path, name in (("can-use", "units"), ("has-enough", "units"), ("history", "limit")):
        asked = {"feature": "generate_goal", name: number}
        answer = api.get(f"{world.path}/{path}", world.member, **asked)
        assert answer.status_code == 400, path
        assert [each["field"] for each in answer.json()["errors"]] == [name]
    asked = {"feature": "generate_goal", "outputUnits": number}
    used = api.get(f"{world.path}/can-use", world.member, **asked)
    assert used.status_code == (200 if number == "0" else 400)


def test_what_is_missing_is_told_where_it_belongs(api: Api, world: World) -> None:
    [header] = api.client.post(
        f"/api/v1{world.path}/charges", content=right(world), headers=world.keys["own"] | JSON
    ).json()["errors"]
    assert header == {"field": "Idempotency-Key", "problem": NEW}
    [query] = api.get(f"{world.path}/has-enough", world.member).json()["errors"]
    assert query == {
        "field": "feature",
        "problem": "is missing: send it behind the ? of the address",
    }
    unknown = api.get(f"{world.path}/stats", world.member, units=1).json()
    assert unknown["detail"] == "units is not known: leave it out."
    lacks = api.get(f"{world.path}/stats", world.keys["spend"]).json()["detail"]
    assert lacks == "The API key lacks the scope read. Use a key that has it; an admin makes one."


def test_a_problem_outside_of_the_api_has_an_id_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setenv("TOKENLIB_DATA_DIR", str(tmp_path))
    server = TestClient(alone.create())  # its lifespan, which opens the gate, is not begun
    for given in ({}, {"X-Request-Id": "their-own"}):
        answer = server.get("/nothing", headers=given)
        assert (answer.status_code, answer.json()["code"]) == (404, "no_such_path")
        assert answer.json()["requestId"] == answer.headers["X-Request-Id"]
        assert answer.json()["requestId"] == given.get("X-Request-Id", answer.json()["requestId"])
        assert answer.json()["requestId"]


def test_times_are_written_in_one_way(api: Api, world: World, tokens: Tokens) -> None:
    refused = api.post(
        f"{world.path}/charges",
        world.keys["own"],
        feature="generate_goal",
        units=9,
        userId=str(world.user),
    ).json()
    assert refused["refreshDate"].endswith("Z")
    assert api.get(f"{world.path}/stats", world.member).json()["refreshDate"].endswith("Z")
    who, body = world.keys["own"], {"feature": "generate_goal", "userId": str(world.user)}
    path = f"{world.path}/charges"
    first = api.post(path, who, key="k", **body).json()
    usage = api.post(f"{world.path}/reservations", who, key="k", **body).json()["usage"]
    assert usage["createdAt"] == first["createdAt"]
    assert first["createdAt"].endswith("Z")


def test_who_only_looks_whether_it_lives_may_ask_for_the_head(api: Api) -> None:
    for path in ("health", "ready"):
        answer = api.client.head(f"/api/v1/{path}")
        assert answer.status_code == 200
        assert api.client.post(f"/api/v1/{path}").headers["allow"] in ("GET, HEAD", "HEAD, GET")
    described = api.client.get("/api/v1/openapi.json").json()["paths"]
    assert set(described["/v1/health"]) == {"get"}
