"""An issuer that signs by RS256 or ES256: a real HTTP server on loopback, whose keys change."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.api.callers import SECRET, claims, signed_by_hand, unsigned
from tokenlib.api import create_app
from tokenlib.config import Settings
from tokenlib.errors import ConfigurationError
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from tests.api.conftest import Join, Member, Serve


@dataclass
class Issuer:
    """Signs JWTs, and says by which public keys."""

    keys: dict[str, Any] = field(default_factory=dict)
    fetches: int = 0
    broken: bool = False
    url: str = ""
    asked: threading.Event = field(default_factory=threading.Event)
    answers: threading.Event = field(default_factory=threading.Event)  # else it hangs

    def rotate(self, name: str, kind: str) -> None:
        """From now on there is this key alone."""
        made: Any = (
            rsa.generate_private_key(65537, 2048)
            if kind == "RS256"
            else ec.generate_private_key(ec.SECP256R1())
        )
        self.keys = {name: (kind, made)}

    def public(self) -> bytes:
        """The JWKS document."""
        documents = []
        for name, (kind, key) in self.keys.items():
            algorithm = jwt.get_algorithm_by_name(kind)
            document = json.loads(algorithm.to_jwk(key.public_key()))
            documents.append(document | {"kid": name, "use": "sig", "alg": kind})
        return json.dumps({"keys": documents}).encode()

    def sign(self, sub: object, name: str | None = None, **changes: Any) -> dict[str, str]:
        """An Authorization header."""
        [(known, (kind, key))] = self.keys.items()
        said = claims(**{"sub": str(sub), **changes})
        encoded = jwt.encode(said, key, kind, headers={"kid": name or known})
        return {"Authorization": f"Bearer {encoded}"}


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """A running issuer."""
    issuer = Issuer()
    issuer.answers.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.fetches += 1
            issuer.asked.set()
            issuer.answers.wait()
            self.send_response(503 if issuer.broken else 200)
            self.end_headers()
            self.wfile.write(b"" if issuer.broken else issuer.public())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        issuer.url = f"http://127.0.0.1:{server.server_port}/jwks.json"
        yield issuer
        server.shutdown()


@pytest.fixture
def member(serve: Serve, join: Join, issuer: Issuer) -> Member:
    issuer.rotate("first", "ES256")
    return join(client=serve(jwt_secret=None, jwt_jwks_url=issuer.url))


def status(member: Member, headers: dict[str, str]) -> int:
    client: TestClient = member.client
    path = f"/api/v1/organizations/{member.organization}/balances"
    return client.get(path, headers=headers).status_code


@pytest.mark.parametrize("kind", ["RS256", "ES256"])
def test_a_key_of_the_issuer_signs(member: Member, issuer: Issuer, kind: str) -> None:
    issuer.rotate("first", kind)
    headers = issuer.sign(member.user)
    assert [status(member, headers) for _ in range(3)] == [200] * 3
    assert issuer.fetches == 1
    assert status(member, issuer.sign(member.user, iss="https://id.example.com")) == 401
    assert status(member, issuer.sign(member.user, aud="anon")) == 401
    assert status(member, issuer.sign(member.user, exp=1)) == 401


def test_keys_change(member: Member, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    old = issuer.sign(member.user)
    assert status(member, old) == 200
    issuer.rotate("second", "ES256")
    new = issuer.sign(member.user)
    # Whoever invents names of keys does not make us ask the issuer each time.
    for number in range(20):
        assert status(member, issuer.sign(member.user, f"invented {number}")) == 401
    assert issuer.fetches == 1
    clock = jwt.jwks_client.time.monotonic  # type: ignore[attr-defined]
    monkeypatch.setattr("jwt.jwks_client.time.monotonic", lambda: clock() + 31)
    assert status(member, new) == 200
    assert issuer.fetches == 2
    assert status(member, old) == 401


def test_a_slow_issuer_keeps_nobody_waiting_whose_key_is_known(
    member: Member, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, invented = issuer.sign(member.user), issuer.sign(member.user, "invented")
    assert status(member, known) == 200
    clock = jwt.jwks_client.time.monotonic  # type: ignore[attr-defined]
    monkeypatch.setattr("jwt.jwks_client.time.monotonic", lambda: clock() + 31)
    issuer.asked.clear()
    issuer.answers.clear()
    with ThreadPoolExecutor(1) as somebody:
        waits = somebody.submit(status, member, invented)
        assert issuer.asked.wait(30)
        assert status(member, known) == 200
        assert not waits.done()
        issuer.answers.set()
        assert waits.result() == 401


def test_the_algorithm_is_not_the_caller_s_choice(member: Member, issuer: Issuer) -> None:
    assert status(member, issuer.sign(member.user)) == 200
    [(_, key)] = issuer.keys.values()
    said = claims(sub=str(member.user))
    public = [
        key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        for encoding in (Encoding.DER, Encoding.PEM)
    ]
    for secret in (*public, SECRET.encode(), b""):
        encoded = signed_by_hand(said, secret, kid="first")
        assert status(member, {"Authorization": f"Bearer {encoded}"}) == 401
    encoded = unsigned(said, "none", kid="first")
    assert status(member, {"Authorization": f"Bearer {encoded}"}) == 401
    other = ec.generate_private_key(ec.SECP256R1())
    encoded = jwt.encode(claims(sub=str(member.user)), other, "ES256", headers={"kid": "first"})
    assert status(member, {"Authorization": f"Bearer {encoded}"}) == 401
    assert issuer.fetches == 1


def test_an_issuer_that_does_not_answer_is_no_yes(member: Member, issuer: Issuer) -> None:
    issuer.broken = True
    path = f"/api/v1/organizations/{member.organization}/balances"
    answer = member.client.get(path, headers=issuer.sign(member.user))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert issuer.url not in answer.text
    issuer.broken = False
    assert status(member, issuer.sign(member.user)) == 200


def test_settings_that_cannot_be_meant(tokens: Tokens, tmp_path: Path) -> None:
    url = "https://id.example.org/jwks.json"
    with pytest.raises(ConfigurationError, match="one way"):
        create_app(lambda: tokens, Settings(data_dir=tmp_path, jwt_secret=SECRET, jwt_jwks_url=url))
    with pytest.raises(ConfigurationError, match="https"):
        create_app(
            lambda: tokens,
            Settings(data_dir=tmp_path, jwt_jwks_url="http://id.example.org/jwks.json"),
        )
