"""API keys over the API: the one that calls acts as the admin who made it, and makes none that may
do more than itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from tokenlib import inputs
from tokenlib.client.calling import Calling, not_understood, read
from tokenlib.db import as_uuid
from tokenlib.domain import ApiKey, Scope, plain
from tokenlib.errors import InvalidInput

Id = UUID | str


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as it stands. `organization_id` None: for every organization.

    `start` is what it begins with. Until `old_until` the secret from before a rotation works, too.
    `last_used_at` is to the minute.
    """

    id: UUID
    organization_id: UUID | None
    name: str
    start: str
    scopes: tuple[str, ...]
    owner_id: UUID
    requests_per_minute: int | None
    seconds_between_requests: float | None
    tokens_per_request: int | None
    output_units_per_request: int | None
    limit_users: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    old_until: datetime | None
    revoked_at: datetime | None


class KeyVerbs(Calling):
    """Make, list, rotate and revoke.

    A secret is in one answer and nowhere else. So when that answer is lost nothing is asked again:
    DatabaseUnavailable with the outcome "unknown"; `keys()` tells what came of it.
    """

    def keys(self) -> tuple[KeyRow, ...]:
        """The keys that this one manages, the latest first; never a secret."""
        reply = self._get("/keys")
        said = (reply.document or {}).get("keys")
        if not isinstance(said, list):
            raise not_understood()
        return tuple(read(KeyRow, replace(reply, document=each)) for each in said)

    def staff_create_key(
        self,
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

        Over HTTP `seconds_between_requests` are whole ones.
        """
        if isinstance(scopes, str | bytes) or not isinstance(scopes, Iterable):
            raise InvalidInput("scopes", f"must be a list of scopes, not {scopes!r}")
        wanted = tuple(inputs.text(scope, "scopes") for scope in scopes)
        place = None if organization is None else as_uuid(organization, "organization")
        body = {
            "name": inputs.text(name, "name"),
            "scopes": list(wanted),
            "organizationId": plain(place),
            "expiresAt": plain(inputs.moment(expires_at, "expires_at")),
            "requestsPerMinute": requests_per_minute,
            "secondsBetweenRequests": _whole(seconds_between_requests),
            "tokensPerRequest": tokens_per_request,
            "outputUnitsPerRequest": output_units_per_request,
            "limitUsers": inputs.truth(limit_users, "limit_users"),
            "reason": inputs.said(reason, "reason"),
        }
        reply = self._post("/keys", body, repeatable=False)
        return read(ApiKey, reply, name=name.strip(), scopes=list(wanted))

    def staff_rotate_key(
        self, key: Id, *, overlap: timedelta = timedelta(days=1), reason: str
    ) -> str:
        """Give a key a new secret, and return it. The one before it is good for `overlap` more."""
        if inputs.duration(overlap, "overlap") is None or overlap % timedelta(seconds=1):
            raise InvalidInput("overlap", f"must be a timedelta of whole seconds, not {overlap!r}")
        body = {
            "overlapSeconds": overlap // timedelta(seconds=1),
            "reason": inputs.said(reason, "reason"),
        }
        reply = self._post(f"/keys/{as_uuid(key, 'key')}/rotate", body, repeatable=False)
        secret = (reply.document or {}).get("secret")
        if not isinstance(secret, str):
            raise not_understood()
        return secret

    def staff_revoke_key(self, key: Id, *, reason: str) -> None:
        """End a key at once. Twice is the same as once."""
        body = {"reason": inputs.said(reason, "reason")}
        self._post(f"/keys/{as_uuid(key, 'key')}/revoke", body)


def _whole(seconds: Any) -> int | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or seconds % 1:
        raise InvalidInput("seconds_between_requests", f"must be whole over HTTP, not {seconds!r}")
    return int(seconds)
