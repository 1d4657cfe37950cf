"""API keys: how a secret looks, what is kept of it, and the verbs that make, rotate and revoke.

A key is `tkl_`, 256 random bits and a checksum, so that a typo is told from a wrong key without the
database, and a leaked one is found by a search. The database has an HMAC of it and no more.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

from tokenlib import answers, inputs
from tokenlib.catalog import CatalogVerbs
from tokenlib.db import Kind, Row, as_uuid, statements
from tokenlib.domain import ApiKey, Scope
from tokenlib.errors import ConfigurationError, InvalidInput

Id = UUID | str

MIN_PEPPER_BYTES = 32
PREFIX = "tkl_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM = re.compile(rf"{PREFIX}([0-9A-Za-z]{{43}})([0-9A-Za-z]{{6}})")
_SHOWN = len(PREFIX) + 6  # of the 43 random letters; the others stay secret


def new_secret() -> str:
    """A new key as its caller shows it."""
    letters = _base62(secrets.randbits(256), 43)
    return f"{PREFIX}{letters}{_checksum(letters)}"


def well_formed(secret: str) -> bool:
    """Whether this can be a key at all; a key with a typo is not."""
    found = _FORM.fullmatch(secret)
    return found is not None and hmac.compare_digest(_checksum(found[1]), found[2])


def start(secret: str) -> str:
    """What people know a key by."""
    return secret[:_SHOWN]


def digest(secret: str, pepper: str | None) -> bytes:
    """What is kept of a secret. Raises ConfigurationError without a pepper."""
    if pepper is None:
        raise ConfigurationError("API keys need TOKENLIB_KEY_PEPPER, a secret of your own.")
    return hmac.digest(pepper.encode(), secret.encode(), hashlib.sha256)


def _checksum(letters: str) -> str:
    return _base62(zlib.crc32(letters.encode()), 6)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


class KeyVerbs(CatalogVerbs):
    """Keys of the HTTP API. Who acts is an admin; each action is on record with its reason."""

    pepper: str | None = None

    def staff_create_key(
        self,
        actor: Id,
        name: str,
        scopes: Iterable[Scope],
        organization: Id | None = None,
        *,
        expires_at: datetime | None = None,
        requests_per_minute: int | None = None,
        seconds_between_requests: Decimal | float | None = None,
        tokens_per_request: int | None = None,
        output_units_per_request: int | None = None,
        limit_users: bool = False,
        reason: str,
    ) -> ApiKey:
        """Make a key for one organization, or (None) for all; its secret is shown here alone.

        Limits are its own, None is off; `limit_users` also holds those of users for what it sends.
        A key with `admin` acts as the person who made it. Raises PermissionDenied, InvalidInput,
        UnknownOrganization, and ConfigurationError without TOKENLIB_KEY_PEPPER.
        """
        if isinstance(scopes, str | bytes) or not isinstance(scopes, Iterable):
            raise InvalidInput("scopes", f"must be a list of scopes, not {scopes!r}")
        secret, wanted, key_id = new_secret(), tuple(scopes), uuid4()
        organization_id = None if organization is None else as_uuid(organization, "organization")
        params = {
            "id": key_id,
            "organization_id": organization_id,
            "name": inputs.text(name, "name"),
            "start": start(secret),
            "digest": digest(secret, self.pepper),
            "scopes": [inputs.text(scope, "scopes") for scope in wanted],
            "expires_at": inputs.moment(expires_at, "expires_at"),
            "requests_per_minute": _limit(requests_per_minute, "requests_per_minute"),
            "seconds_between_requests": _seconds(seconds_between_requests),
            "tokens_per_request": _limit(tokens_per_request, "tokens_per_request"),
            "output_units_per_request": _limit(
                output_units_per_request, "output_units_per_request"
            ),
            "limit_users": inputs.truth(limit_users, "limit_users"),
        }
        self._key_call("create", actor, reason, params)
        return ApiKey(
            id=key_id,
            organization_id=organization_id,
            name=name.strip(),
            start=start(secret),
            scopes=wanted,
            secret=secret,
        )

    def staff_rotate_key(
        self, actor: Id, key: Id, *, overlap: timedelta = timedelta(days=1), reason: str
    ) -> str:
        """Give a key a new secret, and return it. The one before it is good for `overlap` more.

        Name, scopes and limits stay. Raises NotFound, or ApiKeyOver when it is revoked or expired.
        """
        if not isinstance(overlap, timedelta):
            raise InvalidInput("overlap", f"must be a timedelta, not {overlap!r}")
        secret = new_secret()
        params = {
            "id": as_uuid(key, "key"),
            "start": start(secret),
            "digest": digest(secret, self.pepper),
            "overlap": overlap,
        }
        self._key_call("rotate", actor, reason, params)
        return secret

    def staff_revoke_key(self, actor: Id, key: Id, *, reason: str) -> None:
        """End a key at once. Twice is the same as once."""
        self._key_call("revoke", actor, reason, {"id": as_uuid(key, "key")})

    def staff_set_request_limit(
        self,
        actor: Id,
        organization: Id | None,
        requests_per_minute: int | None,
        *,
        reason: str,
    ) -> None:
        """How many charges and holds a minute the HTTP API takes from an organization as a whole.

        Organization None: from each. None is no limit for everyone, and as for everyone for one.
        """
        organization_id = None if organization is None else as_uuid(organization, "organization")
        params = {
            "organization_id": organization_id,
            "requests_per_minute": _limit(requests_per_minute, "requests_per_minute"),
        }
        self._key_call("set_request_limit", actor, reason, params, "once")

    def key_of(self, secret: str) -> Row | None:
        """The key that a secret opens now: `id`, `organization_id`, `name`, `scopes`; else None."""
        if self.pepper is None or not well_formed(secret):
            return None
        params = {"digest": digest(secret, self.pepper)}
        rows = self.database.call_all(statements("api")["authenticate"], params, "question")
        return rows[0] if rows else None

    def _key_call(
        self, verb: str, actor: Id, reason: str, params: Row, kind: Kind = "repeatable"
    ) -> None:
        params |= {"actor": as_uuid(actor, "actor"), "reason": inputs.text(reason, "reason")}
        row = self.database.call(statements("keys")[verb], params, kind)
        if row["status"] != "ok":
            raise answers.refusal({"organization_id": None, **params, **row})


def _limit(value: object, field: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise InvalidInput(field, f"must be a whole number or None, not {value!r}")


def _seconds(value: object) -> Decimal | float | None:
    if value is None or (isinstance(value, Decimal | float | int) and not isinstance(value, bool)):
        return value
    raise InvalidInput("seconds_between_requests", f"must be a number or None, not {value!r}")
