"""Who calls: the `sub` of a bearer JWT is the user's id. What it may see, the database decides."""

from __future__ import annotations

from uuid import UUID

import jwt
from fastapi import HTTPException
from fastapi.datastructures import Headers

from tokenlib.config import MIN_SECRET_BYTES, Settings
from tokenlib.errors import ConfigurationError


class BearerJwt:
    """Reads the user's id from the Authorization header; 401 for whatever is not right in it."""

    def __init__(self, settings: Settings) -> None:
        secret = settings.jwt_secret
        if secret is not None and len(secret.encode()) < MIN_SECRET_BYTES:
            raise ConfigurationError(f"jwt_secret must be at least {MIN_SECRET_BYTES} bytes long.")
        self._secret = secret
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience

    def user_id(self, headers: Headers) -> UUID:
        """The id of the user who calls."""
        if self._secret is None:
            raise _unauthorized("This server accepts no API calls until TOKENLIB_JWT_SECRET is set")
        values = headers.getlist("authorization")
        scheme, _, encoded = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not encoded.strip():
            raise _unauthorized("Sign in: send the header Authorization: Bearer <JWT>")
        return self._read(encoded.strip(), self._secret)

    def _read(self, encoded: str, secret: str) -> UUID:
        try:
            claims = jwt.decode(
                encoded,
                secret,
                # One algorithm, never the caller's choice.
                algorithms=["HS256"],
                audience=self._audience,
                issuer=self._issuer,
                # An audience or issuer that is asked for is also required.
                options={
                    "require": ["exp", "sub"],
                    "verify_aud": self._audience is not None,
                    # An issuer whose clock is a second ahead is no attack; exp and nbf hold.
                    "verify_iat": False,
                },
            )
        except jwt.ExpiredSignatureError:
            raise _unauthorized("The JWT has expired. Sign in again", rejected=True) from None
        except jwt.PyJWTError:
            raise _unauthorized("The JWT is not valid here", rejected=True) from None
        try:
            return UUID(claims["sub"])
        except ValueError:
            problem = "The JWT's sub must be the user's id, a UUID"
            raise _unauthorized(problem, rejected=True) from None


def _unauthorized(problem: str, *, rejected: bool = False) -> HTTPException:
    challenge = 'Bearer error="invalid_token"' if rejected else "Bearer"
    return HTTPException(401, f"{problem}.", headers={"WWW-Authenticate": challenge})
