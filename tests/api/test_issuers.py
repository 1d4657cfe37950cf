"""Several issuers: each JWT is judged by the one that it names, and by no other."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.api.callers import AUDIENCE, ISSUER, SECRET, bearer, claims, signed_by_hand, unsigned
from tests.api.test_jwks import Issuer, issuer, status
from tokenlib.api import create_app
from tokenlib.config import JwtIssuer, Settings
from tokenlib.errors import ConfigurationError
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Books, Join, Member, Serve

__all__ = ["issuer"]

SUPABASE = "https://project.example.org/auth/v1"
SECOND_SECRET = "the secret of the second issuer, which the first one has never seen"
KEYS = "https://keys.example.org"


@pytest.fixture
def member(serve: Serve, join: Join, issuer: Issuer) -> Member:
    """Of three issuers: two with a secret, one with a JWKS."""
    issuer.rotate("first", "RS256")
    others = (
        JwtIssuer(SUPABASE, "second", secret=SECOND_SECRET),
        JwtIssuer(KEYS, "third", jwks_url=issuer.url),
    )
    return join(client=serve(jwt_issuers=others))


def right(member: Member, issuer: Issuer) -> dict[str, dict[str, str]]:
    """What each issuer signs for the member."""
    sub = str(member.user)
    return {
        ISSUER: bearer({"sub": sub}),
        SUPABASE: bearer({"sub": sub, "iss": SUPABASE, "aud": "second"}, SECOND_SECRET),
        KEYS: issuer.sign(sub, iss=KEYS, aud="third"),
    }


@pytest.mark.parametrize("name", [ISSUER, SUPABASE, KEYS])
def test_each_issuer_is_believed(member: Member, issuer: Issuer, name: str) -> None:
    headers = right(member, issuer)[name]
    assert status(member, headers) == 200
    answer = member.client.post(
        "/api/v1/tokens/check-balance", json=member.body(action="deduct"), headers=headers
    )
    assert answer.json()["success"]


def test_nobody_speaks_for_another_issuer(member: Member, issuer: Issuer, books: Books) -> None:
    sub = str(member.user)
    secrets = {ISSUER: SECRET, SUPABASE: SECOND_SECRET}
    audiences = {ISSUER: AUDIENCE, SUPABASE: "second", KEYS: "third"}
    [(_, key)] = issuer.keys.values()
    public = [
        key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        for encoding in (Encoding.DER, Encoding.PEM)
    ]
    wrong: dict[str, dict[str, str]] = {}
    for named, audience in audiences.items():
        said: dict[str, Any] = {"sub": sub, "iss": named, "aud": audience}
        for signer, secret in secrets.items():
            if signer != named:
                wrong[f"{named} by the secret of {signer}"] = bearer(said, secret)
        if named != KEYS:
            wrong[f"{named} by the keys"] = issuer.sign(sub, iss=named, aud=audience)
        for number, bytes_ in enumerate((*public, b"")):
            forged = signed_by_hand(claims(**said), bytes_, kid="first")
            wrong[f"{named} by a public key {number}"] = {"Authorization": f"Bearer {forged}"}
        for algorithm in ("none", "HS256", "RS256"):
            forged = unsigned(claims(**said), algorithm, kid="first")
            wrong[f"{named} unsigned {algorithm}"] = {"Authorization": f"Bearer {forged}"}
        for other in audiences.values():
            if other != audience:
                changed = said | {"aud": other}
                wrong[f"{named} for {other}"] = (
                    issuer.sign(sub, iss=named, aud=other)
                    if named == KEYS
                    else bearer(changed, secrets[named])
                )
    names: list[Any] = ["https://else.example.org", "", None, 7, [ISSUER], [SUPABASE, ISSUER], {}]
    for name in names:
        said = {"sub": sub, "aud": list(audiences.values()), "iss": name}
        for signer, secret in secrets.items():
            header = {"alg": "HS256", "typ": "JWT"}
            forged = signed_by_hand(claims(**said), secret.encode())
            assert jwt.get_unverified_header(forged) == header
            wrong[f"{name} by the secret of {signer}"] = {"Authorization": f"Bearer {forged}"}
    deep = base64.urlsafe_b64encode(b"[" * 10_000).decode()
    start = unsigned({}, "HS256").split(".")[0]
    wrong["deeply nested"] = {"Authorization": f"Bearer {start}.{deep}.{deep[:4]}"}
    before = books()
    for how, headers in wrong.items():
        assert status(member, headers) == 401, how
        answer = member.client.post(
            "/api/v1/tokens/check-balance", json=member.body(action="deduct"), headers=headers
        )
        assert answer.status_code == 401, how
    assert books() == before
    for name, headers in right(member, issuer).items():
        assert status(member, headers) == 200, name


def test_keys_of_two_issuers_with_one_name_stay_apart(
    serve: Serve, join: Join, issuer: Issuer
) -> None:
    issuer.rotate("first", "ES256")
    mine = issuer.keys
    others = (JwtIssuer(KEYS, "third", jwks_url=issuer.url),)
    member = join(client=serve(jwt_issuers=others))
    assert status(member, issuer.sign(member.user, iss=KEYS, aud="third")) == 200
    issuer.rotate("first", "ES256")  # as another issuer would call its key
    assert status(member, issuer.sign(member.user, iss=KEYS, aud="third")) == 401
    issuer.keys = mine
    assert status(member, issuer.sign(member.user, iss=KEYS, aud="third")) == 200


def test_one_issuer_that_does_not_answer_closes_no_other(member: Member, issuer: Issuer) -> None:
    issuer.broken = True
    seen = {name: status(member, headers) for name, headers in right(member, issuer).items()}
    assert seen == {ISSUER: 200, SUPABASE: 200, KEYS: 503}


def test_numbered_issuers_do_without_the_first(serve: Serve, join: Join) -> None:
    others = (JwtIssuer(SUPABASE, "second", secret=SECOND_SECRET),)
    nobody = {"jwt_secret": None, "jwt_issuer": None, "jwt_audience": None}
    member = join(client=serve(jwt_issuers=others, **nobody))
    said = {"sub": str(member.user), "iss": SUPABASE, "aud": "second"}
    assert status(member, bearer(said, SECOND_SECRET)) == 200
    assert status(member, bearer(said)) == 401
    assert status(member, member.signed()) == 401


def test_issuers_that_cannot_be_meant(tokens: Tokens, tmp_path: Path) -> None:
    other = JwtIssuer(SUPABASE, "second", secret=SECOND_SECRET)
    first: dict[str, Any] = {"jwt_secret": SECRET, "jwt_issuer": SUPABASE, "jwt_audience": AUDIENCE}
    for settings, problem in (
        (Settings(tmp_path, jwt_issuers=(other,), **first), "one name"),
        (Settings(tmp_path, jwt_issuers=(other, other)), "one name"),
        (Settings(tmp_path, jwt_issuers=(other,), jwt_secret=SECRET), "TOKENLIB_JWT_ISSUER and"),
        (Settings(tmp_path, jwt_issuers=(JwtIssuer(SUPABASE, "second", secret="s"),)), "32 bytes"),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            create_app(lambda: tokens, settings)


@pytest.fixture
def staff_by_claim(token_database: TestDatabase) -> None:
    with token_database.connect() as owner:
        owner.execute(
            "insert into tokenlib_staff_claims values"
            " (%s, '{app_metadata,role}', 'tokens', 'admin'), (%s, '{groups}', 'help', 'support')",
            (SUPABASE, KEYS),
        )


@pytest.mark.usefixtures("staff_by_claim")
def test_a_claim_of_its_issuer_makes_staff(
    member: Member, issuer: Issuer, token_database: TestDatabase
) -> None:
    sub = str(uuid4())
    path = f"/api/v1/organizations/{member.organization}"

    def plan(headers: dict[str, str], plan: str) -> int:
        return member.client.post(
            f"{path}/plan",
            json={"plan": plan, "reason": "asked"},
            headers=headers | {"Idempotency-Key": str(uuid4())},
        ).status_code

    def says(at: int = 0, **more: Any) -> dict[str, str]:
        said = {"sub": sub, "iss": SUPABASE, "aud": "second", "iat": int(time.time()) - 9 + at}
        return bearer(said | more, SECOND_SECRET)

    mine = {"role": "tokens"}
    for wrong in (
        says(user_metadata=mine),
        says(role="tokens"),
        says(app_metadata={"role": "member"}),
        bearer({"sub": sub, "iat": 1, "app_metadata": mine}),
        bearer({"sub": sub, "iat": 1, "app_metadata": mine, "iss": SUPABASE}),
        issuer.sign(sub, iss=KEYS, aud="third", iat=1, app_metadata=mine),
        issuer.sign(sub, iss=SUPABASE, aud="second", iat=1, app_metadata=mine),
        says(app_metadata=mine, iat=None),
    ):
        assert plan(wrong, "enterprise") in (401, 403, 404)
        assert status(member, wrong) in (401, 404)
    right = says(1, app_metadata=mine)
    assert (plan(right, "enterprise"), status(member, right)) == (200, 200)
    support = issuer.sign(uuid4(), iss=KEYS, aud="third", iat=1, groups=["x", "help"])
    assert (plan(support, "starter"), status(member, support)) == (403, 200)
    # The provider takes it back: the next token says so, and the older one is worth nothing more.
    without = says(2, app_metadata={})
    assert (plan(without, "starter"), status(member, without)) == (404, 404)
    assert (plan(right, "starter"), status(member, right)) == (404, 404)


@pytest.mark.usefixtures("staff_by_claim")
def test_what_one_issuer_claims_no_other_issuer_s_token_has(
    member: Member, issuer: Issuer, token_database: TestDatabase
) -> None:
    """Else whoever can sign as one issuer would have the staff of every other."""
    sub, now = str(uuid4()), int(time.time()) - 9
    place = f"/api/v1/organizations/{member.organization}"
    mine = bearer(
        {
            "sub": sub,
            "iss": SUPABASE,
            "aud": "second",
            "iat": now,
            "app_metadata": {"role": "tokens"},
        },
        SECOND_SECRET,
    )
    # One that maps nothing, one that maps another claim, and one whose own claim would give less.
    others = [
        bearer({"sub": sub, "iat": now}),
        issuer.sign(sub, iss=KEYS, aud="third", iat=now),
        issuer.sign(sub, iss=KEYS, aud="third", iat=now, groups=["help"]),
    ]

    def tries(headers: dict[str, str]) -> list[int]:
        write = headers | {"Idempotency-Key": str(uuid4())}
        body = {"plan": "enterprise", "reason": "asked"}
        off = {"mode": "off", "reason": "asked"}
        answers = [
            member.client.get(f"{place}/balances", headers=headers),
            member.client.get(f"{place}/history", headers=headers),
            member.client.get("/api/v1/keys", headers=headers),
            member.client.get("/api/v1/metrics", headers=headers),
            member.client.post(f"{place}/plan", json=body, headers=write),
            member.client.post("/api/v1/switch", json=off, headers=write),
        ]
        return [answer.status_code for answer in answers]

    assert tries(others[0]) == [404, 404, 200, 403, 404, 403]
    assert tries(mine) == [200] * 6
    for headers in others:
        assert tries(headers) == [403] * 6
    refused = member.client.get(f"{place}/balances", headers=others[0]).json()
    assert refused["code"] == "permission_denied"
    assert refused["detail"] == (
        "You are staff by the claims of another issuer. Send a JWT of that one."
    )
    # Also once nobody maps the claim any more, and in a process that has just begun.
    with token_database.connect() as owner:
        owner.execute("delete from tokenlib_staff_claims")
    assert tries(others[0]) == [403] * 6
    with token_database.connect() as owner:
        owner.execute("update tokenlib_staff set until = now() where user_id = %s", (sub,))
    assert tries(others[0])[:2] == [404, 404]


@pytest.mark.usefixtures("staff_by_claim")
def test_who_is_staff_by_hand_has_it_by_every_issuer(
    member: Member, issuer: Issuer, token_database: TestDatabase
) -> None:
    sub = str(uuid4())
    with token_database.connect() as owner:
        owner.execute(
            "insert into tokenlib_staff (user_id, email, full_name, role)"
            " values (%s, 'a@example.org', 'Ada', 'admin')",
            (sub,),
        )
    for headers in (bearer({"sub": sub}), issuer.sign(sub, iss=KEYS, aud="third", iat=1)):
        assert status(member, headers) == 200


@pytest.mark.usefixtures("staff_by_claim")
def test_a_member_is_asked_nothing_more_by_a_claim(member: Member, issuer: Issuer) -> None:
    for name, headers in right(member, issuer).items():
        assert status(member, headers) == 200, name


@pytest.mark.usefixtures("staff_by_claim")
@pytest.mark.parametrize(
    "odd",
    [
        {"name": "\ud800"},
        {"name": "a\0"},
        {"name": None, "email": "a\0@example.org"},
        {"name": "n" * 100_000},
        {"app_metadata": {"role": "tokens\0"}},
        {"app_metadata": {"role": ["\udfff"]}},
        {"app_metadata": {"role": "member", "x": float("nan")}},
        {"iat": True},
        {"iat": 1e300},
        {"iat": -1e300},
        {"exp": 10**30},
    ],
)
def test_what_a_person_wrote_about_themselves_is_no_outage(
    member: Member, odd: dict[str, Any]
) -> None:
    """The issuer signed it, and the database could not hold it."""
    said = {"sub": str(member.user), "iss": SUPABASE, "aud": "second", "iat": int(time.time()) - 9}
    assert status(member, bearer(said | odd, SECOND_SECRET)) == 200
