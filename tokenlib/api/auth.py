"""Who calls: a person with a JWT, or a server of the product with an API key.

Both stand in `Authorization: Bearer …`. What the caller may see and do, the database decides; here
it is only settled who it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

import jwt
from fastapi import HTTPException
from fastapi.datastructures import Headers

from tokenlib.claims import StaffClaims
from tokenlib.config import MIN_SECRET_BYTES, JwtIssuer, Settings
from tokenlib.errors import ConfigurationError, PermissionDenied
from tokenlib.keys import PREFIX, digest
from tokenlib.tokens import Tokens

_JWKS_LIFESPAN_SECONDS = 300
_JWKS_TIMEOUT_SECONDS = 5
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `scopes` and `organization_id` are a key's; None: a person, or a key for all."""

    id: UUID
    kind: Literal["person", "key"]
    scopes: tuple[str, ...] = ()
    organization_id: UUID | None = None
    secret: bytes | None = field(default=None, repr=False)  # the digest of what a key has shown


class Authentication:
    """Settles who calls; 401 for whatever is not right in the credentials."""

    def __init__(self, settings: Settings, get_tokens: Callable[[], Tokens]) -> None:
        self._jwt = BearerJwt(settings)
        self._get_tokens = get_tokens
        self._claims = StaffClaims(lambda: get_tokens().database)

    def caller(self, headers: Headers) -> Caller:
        """Who calls, person or key. May ask the database or the issuer: not for the event loop.

        Raises PermissionDenied for whoever is staff by the claims of another issuer.
        """
        shown = _bearer(headers, "a JWT or an API key")
        if not shown.startswith(PREFIX):
            claims = self._jwt.claims(shown)
            user_id = _user_id(claims)
            self._claims.tell(user_id, claims)
            if self._claims.elsewhere(user_id, claims["iss"]):
                raise PermissionDenied(
                    "You are staff by the claims of another issuer. Send a JWT of that one."
                )
            return Caller(user_id, "person")
        tokens = self._get_tokens()
        if tokens.pepper is None:
            raise _unauthorized("This server accepts no API key until TOKENLIB_KEY_PEPPER is set")
        key = tokens.key_of(shown)
        if key is None:
            raise _unauthorized("The API key is not valid here", rejected=True)
        secret = digest(shown, tokens.pepper)
        return Caller(key["id"], "key", tuple(key["scopes"]), key["organization_id"], secret)

    def user_id(self, headers: Headers) -> UUID:
        """The person who calls: the two old endpoints know no other callers."""
        self._jwt.require()
        shown = _bearer(headers, "<JWT>")
        if shown.startswith(PREFIX):
            raise _unauthorized(
                "This call takes the JWT of a person. With an API key call"
                " /api/v1/organizations/{organizationId}/charges, /has-enough or /stats",
                rejected=True,
            )
        return self._jwt.read(shown)

    def known_user(self, shown: str) -> UUID | None:
        """Whose JWT this is, if that can be told at once; `user_id` tells what is wrong with it."""
        return self._jwt.known(shown)


class BearerJwt:
    """Reads the user's id from a JWT of an issuer that is configured.

    The issuer that a JWT names judges it, and no other: by its own secret or JWKS, audience and
    algorithms, which are never the caller's choice. `exp`, `sub`, `iss` and `aud` are required.
    """

    def __init__(self, settings: Settings) -> None:
        secret, jwks_url = settings.jwt_secret, settings.jwt_jwks_url
        issuer, audience = settings.jwt_issuer, settings.jwt_audience
        _check_way(secret, jwks_url)
        issuers = list(settings.jwt_issuers)
        missing = [
            name
            for name, value in (
                ("TOKENLIB_JWT_SECRET", secret or jwks_url),
                ("TOKENLIB_JWT_ISSUER", issuer),
                ("TOKENLIB_JWT_AUDIENCE", audience),
            )
            if value is None
        ]
        self._missing = " and ".join(missing)
        if issuer is not None and audience is not None and (secret or jwks_url):
            issuers.insert(0, JwtIssuer(issuer, audience, secret, jwks_url))
        elif issuers and len(missing) < 3:
            raise ConfigurationError(f"{self._missing} must be set too, beside the other issuers.")
        self._judges = {each.issuer: _Judge(each) for each in issuers}
        if len(self._judges) < len(issuers):
            raise ConfigurationError("Two issuers of JWTs have one name: each may stand once.")

    def require(self) -> None:
        """Raise 401 while JWTs cannot be checked, with what has to be set."""
        if not self._judges:
            verb = "are" if " and " in self._missing else "is"
            raise _unauthorized(f"This server accepts no JWT until {self._missing} {verb} set")

    def read(self, encoded: str) -> UUID:
        """The id of the user whom the JWT speaks of."""
        return _user_id(self.claims(encoded))

    def claims(self, encoded: str) -> dict[str, Any]:
        """What the JWT says, once it is believed."""
        self.require()
        try:
            return self._judge(encoded).claims(encoded)
        except jwt.ExpiredSignatureError:
            raise _unauthorized("The JWT has expired. Sign in again", rejected=True) from None
        except jwt.PyJWKClientConnectionError as error:
            raise HTTPException(
                503, "The issuer of the JWT cannot be asked now.", headers={"Retry-After": "5"}
            ) from error
        except jwt.PyJWTError:
            raise _unauthorized("The JWT is not valid here", rejected=True) from None

    def known(self, encoded: str) -> UUID | None:
        """As `read`, where nobody has to be asked; None for what is not good or not known."""
        try:
            return self.read(encoded) if self._judges and self._judge(encoded).at_once else None
        except (HTTPException, jwt.PyJWTError):
            return None

    def _judge(self, encoded: str) -> _Judge:
        """That of the issuer whom the JWT names; whether it is theirs, the judge finds out."""
        if len(self._judges) == 1:
            return next(iter(self._judges.values()))
        named = jwt.decode(encoded, options={"verify_signature": False}).get("iss")
        if not isinstance(named, str) or named not in self._judges:
            raise jwt.InvalidIssuerError
        return self._judges[named]


class _Judge:
    """What one issuer's JWTs are checked by."""

    def __init__(self, issuer: JwtIssuer) -> None:
        _check_way(issuer.secret, issuer.jwks_url)
        self._issuer = issuer
        self._jwks: jwt.PyJWKClient | None = None
        if issuer.jwks_url is not None:
            self._jwks = jwt.PyJWKClient(
                issuer.jwks_url, lifespan=_JWKS_LIFESPAN_SECONDS, timeout=_JWKS_TIMEOUT_SECONDS
            )
        self.at_once = self._jwks is None
        self._algorithms = ["HS256"] if self.at_once else ["RS256", "ES256"]

    def claims(self, encoded: str) -> dict[str, Any]:
        """What a JWT says; PyJWTError unless this issuer made it, for us, and it still holds."""
        claims: dict[str, Any] = jwt.decode(
            encoded,
            self._key(encoded),
            algorithms=self._algorithms,
            audience=self._issuer.audience,
            issuer=self._issuer.issuer,
            options={
                "require": ["exp", "sub", "aud", "iss"],
                # An issuer whose clock is a second ahead is no attack; exp and nbf hold.
                "verify_iat": False,
            },
        )
        return claims

    def _key(self, encoded: str) -> Any:
        if self._jwks is None:
            return self._issuer.secret
        # The header is the caller's: what it asks for is looked at before anything is fetched.
        header = jwt.get_unverified_header(encoded)
        if header.get("alg") not in self._algorithms:
            raise jwt.InvalidAlgorithmError
        # A key that is kept waits for nobody: a stranger's unknown one may wait for a slow issuer.
        kept = self._jwks.jwk_set_cache and self._jwks.jwk_set_cache.get()
        for key in kept.keys if kept else ():
            if key.key_id == header.get("kid") and key.public_key_use in ("sig", None):
                return key
        return self._jwks.get_signing_key_from_jwt(encoded)  # one fetch, however many ask


def _user_id(claims: dict[str, Any]) -> UUID:
    try:
        return UUID(claims["sub"])
    except ValueError:
        problem = "The JWT's sub must be the user's id, a UUID"
        raise _unauthorized(problem, rejected=True) from None


def _check_way(secret: str | None, jwks_url: str | None) -> None:
    """Raise ConfigurationError for a way to sign that cannot be meant."""
    if secret is not None and len(secret.encode()) < MIN_SECRET_BYTES:
        raise ConfigurationError(f"jwt_secret must be at least {MIN_SECRET_BYTES} bytes long.")
    if secret is not None and jwks_url is not None:
        raise ConfigurationError(
            "Set TOKENLIB_JWT_SECRET or TOKENLIB_JWT_JWKS_URL: one issuer signs in one way."
        )
    parts = urlsplit(jwks_url or "https:")
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise ConfigurationError("TOKENLIB_JWT_JWKS_URL must start with https://.")


def _bearer(headers: Headers, what: str) -> str:
    values = headers.getlist("authorization")
    scheme, _, shown = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not shown.strip():
        raise _unauthorized(f"Sign in: send the header Authorization: Bearer {what}")
    return shown.strip()


def _unauthorized(problem: str, *, rejected: bool = False) -> HTTPException:
    challenge = 'Bearer error="invalid_token"' if rejected else "Bearer"
    return HTTPException(401, f"{problem}.", headers={"WWW-Authenticate": challenge})
