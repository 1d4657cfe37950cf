"""Credentials of every kind, right and wrong."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt

SECRET = "a secret of the tests, so long that HS512 would take it without a word of warning"
PEPPER = "a pepper of the tests, which nobody has but the tests themselves"
ISSUER = "https://id.example.org"
AUDIENCE = "authenticated"
# What an API of the tests is started with, unless a test says otherwise.
SETTINGS: dict[str, Any] = {
    "jwt_secret": SECRET,
    "jwt_issuer": ISSUER,
    "jwt_audience": AUDIENCE,
    "key_pepper": PEPPER,
}


def claims(**changes: Any) -> dict[str, Any]:
    """Right claims, good for a minute, but for the changes; what is None is left out."""
    right = {"exp": int(time.time()) + 60, "iss": ISSUER, "aud": AUDIENCE}
    return {name: value for name, value in {**right, **changes}.items() if value is not None}


def bearer(
    changes: dict[str, Any], secret: str = SECRET, algorithm: str | None = "HS256"
) -> dict[str, str]:
    """An Authorization header with a JWT."""
    return {"Authorization": f"Bearer {jwt.encode(claims(**changes), secret, algorithm)}"}


def signed_by_hand(said: dict[str, Any], secret: bytes, **header: str) -> str:
    """A JWT by HS256 whatever the secret is: a library refuses a public key there."""
    text = unsigned(said, "HS256", **header)
    signature = hmac.digest(secret, text.rstrip(".").encode(), hashlib.sha256)
    return text + base64.urlsafe_b64encode(signature).decode().rstrip("=")


def unsigned(said: dict[str, Any], algorithm: str, **header: str) -> str:
    """A JWT with no signature, whatever its header says."""
    parts = ({"alg": algorithm, "typ": "JWT", **header}, said)
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
    return ".".join([*(text.rstrip("=") for text in texts), ""])
