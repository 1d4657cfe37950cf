"""Without the right credentials nobody learns anything and nothing moves."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import jwt
import pytest

from tests.api.callers import SECRET, unsigned
from tests.api.callers import claims as right
from tokenlib.api import create_app
from tokenlib.config import Settings
from tokenlib.errors import ConfigurationError
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from httpx2 import Response
    from starlette.testclient import TestClient

    from tests.api.conftest import Books, Join, Member, Serve

NOT_YOURS = {"error": "You are not a member of this organization."}
NOT_VALID = "The JWT is not valid here."
SIGN_IN = "Sign in: send the header Authorization: Bearer <JWT>."


def everywhere(member: Member, headers: dict[str, str]) -> list[Response]:
    """What each endpoint says to these headers."""
    path = "/api/v1/tokens"
    client: TestClient = member.client
    return [
        client.post(f"{path}/check-balance", json=member.body(), headers=headers),
        client.post(f"{path}/check-balance", json=member.body(action="deduct"), headers=headers),
        client.get(
            f"{path}/stats", params={"organizationId": str(member.organization)}, headers=headers
        ),
    ]


def encoded(claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, secret, algorithm)


def test_bad_credentials_are_refused(member: Member, books: Books) -> None:
    claims = right(sub=str(member.user))
    good = encoded(claims)
    deep = base64.urlsafe_b64encode(b"[" * 30_000).decode()
    bad: dict[str, tuple[str | None, str]] = {
        "no header": (None, SIGN_IN),
        "empty": ("", SIGN_IN),
        "no scheme": (good, SIGN_IN),
        "basic": (f"Basic {good}", SIGN_IN),
        "no value": ("Bearer ", SIGN_IN),
        "no JWT": ("Bearer abc", NOT_VALID),
        "three empty parts": ("Bearer ..", NOT_VALID),
        "deeply nested": (f"Bearer {deep}.{deep}.", NOT_VALID),
        "cut": (f"Bearer {good[:-4]}", NOT_VALID),
        "expired": (f"Bearer {encoded(claims | {'exp': int(time.time()) - 1})}", "has expired"),
        "no exp": (f"Bearer {encoded(right(sub=str(member.user), exp=None))}", NOT_VALID),
        "exp is text": (f"Bearer {encoded(claims | {'exp': 'soon'})}", NOT_VALID),
        "not yet": (f"Bearer {encoded(claims | {'nbf': int(time.time()) + 50})}", NOT_VALID),
        "no sub": (f"Bearer {encoded(right())}", NOT_VALID),
        "sub is a number": (f"Bearer {encoded(claims | {'sub': 7})}", NOT_VALID),
        "sub is a name": (f"Bearer {encoded(claims | {'sub': 'admin'})}", "a UUID"),
        "other secret": (f"Bearer {encoded(claims, SECRET[::-1])}", NOT_VALID),
        "HS512": (f"Bearer {encoded(claims, SECRET, 'HS512')}", NOT_VALID),
        "none": (f"Bearer {unsigned(claims, 'none')}", NOT_VALID),
        "no signature": (f"Bearer {unsigned(claims, 'HS256')}", NOT_VALID),
    }
    before = books()
    for kind, (value, problem) in bad.items():
        headers = {} if value is None else {"Authorization": value}
        for answer in everywhere(member, headers):
            assert answer.status_code == 401, kind
            assert set(answer.json()) == {"error"}, kind
            assert problem in answer.json()["error"], kind
            assert answer.headers["WWW-Authenticate"].startswith("Bearer"), kind
    assert books() == before
    assert [answer.status_code for answer in everywhere(member, member.signed())] == [200] * 3


def test_two_authorization_headers_are_none(member: Member) -> None:
    [(name, value)] = member.signed().items()
    answer = member.client.get("/api/v1/tokens/stats", headers=[(name, value), (name, value)])
    assert answer.status_code == 401


def test_the_clock_of_the_issuer_may_be_ahead(member: Member) -> None:
    headers = member.signed(iat=int(time.time()) + 5)
    assert [answer.status_code for answer in everywhere(member, headers)] == [200] * 3


def test_credentials_come_before_the_body(member: Member) -> None:
    path = "/api/v1/tokens/check-balance"
    assert member.client.post(path, content=b"{").status_code == 401
    assert member.client.post(path, content=b"x" * 100_000).status_code == 401


def test_strangers_learn_nothing(join: Join, books: Books, tokens: Tokens) -> None:
    member, other = join("pro"), join("starter")
    elsewhere = tokens.add_member(other.organization, "Another member", "another@example.org")
    before = books()
    for sub in (str(other.user), str(elsewhere), str(uuid4())):
        for answer in everywhere(member, member.signed(sub=sub)):
            assert (answer.status_code, answer.json()) == (403, NOT_YOURS)
    # An organization that does not exist looks the same as one that is not yours.
    nowhere = str(uuid4())
    for body in (
        member.body(organizationId=nowhere),
        member.body(organizationId=nowhere, action="deduct", featureUsed="generate_gaol"),
        member.body(organizationId=str(other.organization), featureUsed="generate_gaol"),
    ):
        answer = member.post(body)
        assert (answer.status_code, answer.json()) == (403, NOT_YOURS)
    for organization in (nowhere, other.organization):
        answer = member.stats(organization)
        assert (answer.status_code, answer.json()) == (403, NOT_YOURS)
    assert books() == before


def test_audience_and_issuer_are_required(member: Member, books: Books) -> None:
    right = {"aud": "authenticated", "iss": "https://id.example.org"}
    before = books()
    for wrong in (
        {"aud": None},
        {"aud": "anon"},
        {"aud": ["anon", "service"]},
        {"aud": 7},
        {"iss": None},
        {"iss": "https://id.example.com"},
        {"iss": ""},
    ):
        for answer in everywhere(member, member.signed(**(right | wrong))):
            assert (answer.status_code, answer.json()) == (401, {"error": NOT_VALID}), wrong
    assert books() == before
    for also_right in (right, right | {"aud": ["authenticated", "other"]}):
        assert member.client.post(
            "/api/v1/tokens/check-balance",
            json=member.body(),
            headers=member.signed(**also_right),
        ).json() == {"hasTokens": True}


@pytest.mark.parametrize("unset", ["jwt_secret", "jwt_issuer", "jwt_audience"])
def test_until_all_is_configured_everybody_is_refused(
    join: Join, serve: Serve, books: Books, unset: str
) -> None:
    member = join(client=serve(**{unset: None}))
    before = books()
    claims = right(sub=str(member.user))
    for headers in (
        {},
        member.signed(),
        {"Authorization": f"Bearer {unsigned(claims, 'none')}"},
        {"Authorization": f"Bearer {unsigned(claims, 'HS256')}"},
    ):
        for answer in everywhere(member, headers):
            assert answer.status_code == 401
            assert f"TOKENLIB_{unset.upper()}" in answer.json()["error"]
    assert books() == before


def test_a_short_secret_serves_nobody(tokens: Tokens, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least 32 bytes"):
        create_app(lambda: tokens, Settings(data_dir=tmp_path, jwt_secret="x" * 31))
