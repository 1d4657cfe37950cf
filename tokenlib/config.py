"""The environment, read once into :class:`Settings`. Nothing else in tokenlib reads it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

from tokenlib.errors import ConfigurationError
from tokenlib.retry import DEADLINE_SECONDS

SwitchOverride = Literal["enforce", "log_only", "off"]

# RFC 7518, section 3.2: an HS256 key is at least as long as the hash.
MIN_SECRET_BYTES = 32

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_SCHEMES = ("postgres", "postgresql", "postgresql+psycopg")


CALLBACK = "/oauth2callback"
_OIDC = (
    "TOKENLIB_OIDC_ISSUER",
    "TOKENLIB_OIDC_CLIENT_ID",
    "TOKENLIB_OIDC_CLIENT_SECRET",
    "TOKENLIB_OIDC_REDIRECT_URI",
    "TOKENLIB_OIDC_COOKIE_SECRET",
)
_JWT = (
    "TOKENLIB_JWT_ISSUER",
    "TOKENLIB_JWT_AUDIENCE",
    "TOKENLIB_JWT_SECRET",
    "TOKENLIB_JWT_JWKS_URL",
)
_NUMBERED = re.compile(f"(?:{'|'.join(_JWT)})_([1-9][0-9]*)")


@dataclass(frozen=True)
class SignIn:
    """The OpenID Connect provider that people sign in with, and what is believed of it."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    cookie_secret: str = field(repr=False)
    trust_email: bool = False  # the provider verifies every address, and does not say so
    user_claim: str | None = None  # what holds the user's id; None: people are their e-mail address
    session_minutes: int = 480

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> SignIn | None:
        """What TOKENLIB_OIDC_* says; None without any. ConfigurationError names what lacks."""
        said = {name: text for name in _OIDC if (text := _text(environ, name))}
        if not said:
            return None
        if missing := [name for name in _OIDC if name not in said]:
            raise ConfigurationError(
                f"Sign-in needs {', '.join(_OIDC)} together; {', '.join(missing)} is not set."
            )
        issuer, client_id, client_secret, redirect_uri, _ = said.values()
        _secure_url(issuer, "TOKENLIB_OIDC_ISSUER")
        _secure_url(redirect_uri, "TOKENLIB_OIDC_REDIRECT_URI")
        if not redirect_uri.endswith(CALLBACK):
            raise ConfigurationError(f"TOKENLIB_OIDC_REDIRECT_URI must end with {CALLBACK}.")
        return cls(
            issuer=issuer,
            client_id=client_id,
            client_secret=client_secret,
            redirect_uri=redirect_uri,
            cookie_secret=cast(str, _secret(environ, "TOKENLIB_OIDC_COOKIE_SECRET")),
            trust_email=bool(_boolean(environ, "TOKENLIB_OIDC_TRUST_EMAIL", False)),
            user_claim=_text(environ, "TOKENLIB_OIDC_USER_CLAIM"),
            session_minutes=_integer(
                environ, "TOKENLIB_OIDC_SESSION_MINUTES", cls.session_minutes, 1, 43_200
            ),
        )


@dataclass(frozen=True)
class JwtIssuer:
    """Who signs JWTs: by HS256 with a secret, or by RS256 and ES256 with the keys of its JWKS."""

    issuer: str
    audience: str
    secret: str | None = field(default=None, repr=False)
    jwks_url: str | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> tuple[JwtIssuer, ...]:
        """The issuers beside the first: the same variables with a number behind.

        Raises ConfigurationError for one that is not whole, and for a name that nobody reads.
        """
        for name in sorted(environ):
            ours = name in _JWT or _NUMBERED.fullmatch(name)
            if name.startswith("TOKENLIB_JWT_") and not ours and _text(environ, name):
                raise ConfigurationError(
                    f"{name} is not known, so nobody would read it. Known are {', '.join(_JWT)},"
                    " and for further issuers the same with a number behind, such as"
                    " TOKENLIB_JWT_ISSUER_2."
                )
        numbers = {found[1] for name in environ if (found := _NUMBERED.fullmatch(name))}
        issuers = []
        for number in sorted(numbers, key=lambda number: (len(number), number)):
            names = [f"{name}_{number}" for name in _JWT]
            said = [_text(environ, name) for name in names]
            if not any(said):
                continue
            issuer, audience, secret, jwks_url = said
            if issuer is None or audience is None or (secret is None) == (jwks_url is None):
                raise ConfigurationError(
                    f"Issuer {number} of JWTs needs {names[0]}, {names[1]}"
                    f" and one of {names[2]} and {names[3]}."
                )
            if jwks_url is not None:
                _secure_url(jwks_url, names[3])
            issuers.append(cls(issuer, audience, _secret(environ, names[2]), jwks_url))
        return tuple(issuers)


@dataclass(frozen=True)
class Settings:
    """What the environment says, checked. An unset or empty variable takes its default.

    Raises ConfigurationError from :meth:`from_env`, naming the variable and what is allowed.
    Its repr shows no secret and no database URL, since a URL may carry a password.
    """

    data_dir: Path
    database_url: str | None = field(default=None, repr=False)
    migration_url: str | None = field(default=None, repr=False)
    jwt_secret: str | None = field(default=None, repr=False)
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_jwks_url: str | None = None
    jwt_issuers: tuple[JwtIssuer, ...] = ()  # those beside the first
    key_pepper: str | None = field(default=None, repr=False)
    switch: SwitchOverride | None = None
    pool_size: int = 10
    prepare: bool | None = None  # None: unless there is a pooler in between
    deadline: float = DEADLINE_SECONDS
    shared_commit: bool = True
    llm_base_url: str | None = None
    llm_api_key: str | None = field(default=None, repr=False)
    llm_model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8501
    api_places: int = 100
    sign_in: SignIn | None = None
    open_demo: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read and check every TOKENLIB_ variable; ConfigurationError names the first bad one."""
        database_url = _database_url(environ, "TOKENLIB_DATABASE_URL")
        return cls(
            data_dir=_data_dir(environ),
            database_url=database_url,
            migration_url=_database_url(environ, "TOKENLIB_MIGRATION_URL") or database_url,
            jwt_secret=_secret(environ, "TOKENLIB_JWT_SECRET"),
            jwt_issuer=_text(environ, "TOKENLIB_JWT_ISSUER"),
            jwt_audience=_text(environ, "TOKENLIB_JWT_AUDIENCE"),
            jwt_jwks_url=_http_url(environ, "TOKENLIB_JWT_JWKS_URL"),
            jwt_issuers=JwtIssuer.from_env(environ),
            key_pepper=_secret(environ, "TOKENLIB_KEY_PEPPER"),
            switch=_switch(environ, "TOKENLIB_SWITCH"),
            pool_size=_integer(environ, "TOKENLIB_POOL_SIZE", cls.pool_size, 1, 1000),
            prepare=_boolean(environ, "TOKENLIB_PREPARE", cls.prepare),
            deadline=_seconds(environ, "TOKENLIB_DEADLINE", cls.deadline, 0.1, 300),
            shared_commit=bool(_boolean(environ, "TOKENLIB_SHARED_COMMIT", cls.shared_commit)),
            llm_base_url=_http_url(environ, "TOKENLIB_LLM_BASE_URL"),
            llm_api_key=_text(environ, "TOKENLIB_LLM_API_KEY"),
            llm_model=_text(environ, "TOKENLIB_LLM_MODEL"),
            host=_text(environ, "TOKENLIB_HOST") or cls.host,
            port=_integer(environ, "TOKENLIB_PORT", cls.port, 1, 65535),
            api_places=_integer(environ, "TOKENLIB_API_PLACES", cls.api_places, 1, 100_000),
            sign_in=SignIn.from_env(environ),
            open_demo=bool(_boolean(environ, "TOKENLIB_OPEN_DEMO", cls.open_demo)),
        )

    @property
    def embedded(self) -> bool:
        """Whether the bundled PostgreSQL serves, because no database URL is set."""
        return self.database_url is None

    @property
    def demo_people(self) -> bool:
        """Whether people choose who they are: on the bundled PostgreSQL without a sign-in."""
        return self.embedded and self.sign_in is None

    @property
    def sqlalchemy_url(self) -> str | None:
        """The database URL with SQLAlchemy's psycopg driver, or None for the bundled server."""
        return self.database_url and sqlalchemy_url(self.database_url)

    @property
    def sqlalchemy_migration_url(self) -> str | None:
        """The owner's URL with SQLAlchemy's psycopg driver, or None for the bundled server."""
        return self.migration_url and sqlalchemy_url(self.migration_url)


def sqlalchemy_url(url: str, name: str = "The database URL") -> str:
    """`postgres://` and `postgresql://` in the form that selects SQLAlchemy's psycopg driver.

    Raises ConfigurationError, which begins with `name` and does not repeat the URL.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"{name} must be text, not {type(url).__name__}.")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{name} must start with postgresql:// (or postgres://), for example"
            " postgresql://user:password@host:5432/database."
        )
    return f"postgresql+psycopg://{rest}"


def own_machine(host: str) -> bool:
    """Whether only this machine reaches the address."""
    found = socket.getaddrinfo(host, None)
    return all(is_loopback(str(place[0])) for *_, place in found)


def is_loopback(address: str) -> bool:
    """Whether an IP address is this machine's own. Raises ValueError for what is none."""
    found = ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _text(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name, "").strip() or None


def _database_url(environ: Mapping[str, str], name: str) -> str | None:
    url = _text(environ, name)
    if url is not None:
        sqlalchemy_url(url, name)
    return url


def _secret(environ: Mapping[str, str], name: str) -> str | None:
    secret = environ.get(name) or None
    if secret is not None and len(secret.encode()) < MIN_SECRET_BYTES:
        raise ConfigurationError(f"{name} must be at least {MIN_SECRET_BYTES} bytes long.")
    return secret


def _switch(environ: Mapping[str, str], name: str) -> SwitchOverride | None:
    value = _text(environ, name)
    if value is not None and value not in get_args(SwitchOverride):
        raise ConfigurationError(f"{name} must be enforce, log_only or off, or unset.")
    return cast(SwitchOverride | None, value)


def _integer(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    value = _text(environ, name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
        raise ConfigurationError(f"{name} must be a whole number from {low} to {high}.")
    return int(value)


def _seconds(
    environ: Mapping[str, str], name: str, default: float, low: float, high: float
) -> float:
    value = _text(environ, name)
    if value is None:
        return default
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value) or not low <= float(value) <= high:
        raise ConfigurationError(f"{name} must be seconds, from {low:g} to {high:g}.")
    return float(value)


def _boolean(environ: Mapping[str, str], name: str, default: bool | None) -> bool | None:
    value = _text(environ, name)
    if value is None:
        return default
    if value.lower() not in _TRUE + _FALSE:
        raise ConfigurationError(f"{name} must be true or false.")
    return value.lower() in _TRUE


def _http_url(environ: Mapping[str, str], name: str) -> str | None:
    value = _text(environ, name)
    if value is not None and not value.startswith(("http://", "https://")):
        raise ConfigurationError(f"{name} must start with http:// or https://.")
    return value


def _secure_url(url: str, name: str) -> str:
    """An https URL, or http on this machine: what goes by plain http can be read on the way."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    else:
        local = host == "localhost" or host == "::1" or re.fullmatch(r"127(\.\d+){3}", host)
        if host and (parts.scheme == "https" or (parts.scheme == "http" and local)):
            return url
    raise ConfigurationError(f"{name} must start with https:// (http:// for this machine only).")


def _data_dir(environ: Mapping[str, str]) -> Path:
    value = _text(environ, "TOKENLIB_DATA_DIR")
    if value is not None:
        try:
            return Path(value).expanduser().absolute()
        except RuntimeError as error:
            raise ConfigurationError(
                "TOKENLIB_DATA_DIR names the home folder of a user that does not exist."
            ) from error
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # PostgreSQL refuses to run as root, and the user that runs it instead cannot enter HOME.
        return Path("/var/lib/tokenlib")
    # The XDG rules ignore a relative path.
    shared = Path(environ.get("XDG_DATA_HOME", ""))
    base = shared if shared.is_absolute() else Path.home() / ".local" / "share"
    return base / "tokenlib"
