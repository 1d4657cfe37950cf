"""Staff by a claim: what a verified identity token says of somebody is told to the database.

Which claims of which issuers make staff stands in `tokenlib_staff_claims`, which only the owner of
the database writes. The database decides, and asks its own table in every call afterwards.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from tokenlib.db import Database, statements

LOOK_SECONDS = 30.0
"""How long a change of which claims count may go unseen."""

TELL_SECONDS = 60.0
"""How often the same token is told again, while it is used: rights by a claim last an hour."""

_MOST = 10_000
_YEAR_3000 = 32_503_680_000
_NAME_LENGTH = 200


class StaffClaims:
    """Tells one database what tokens claim. For threads; each token once a minute at most."""

    def __init__(
        self, database: Callable[[], Database], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._get_database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._names: dict[str, list[str]] = {}
        self._looked = 0.0
        self._told: dict[bytes, float] = {}

    def tell(self, user_id: UUID, claims: Mapping[str, Any], email: str | None = None) -> None:
        """Let the claims of a verified token give or end the rights of staff.

        `email` is an address by which the person is found later, if they are. A token without `iat`
        gives none: it cannot be told from one that was signed before the rights ended. Raises what
        the database raises.
        """
        issuer, issued, until = claims.get("iss"), claims.get("iat"), claims.get("exp")
        names = self._looked_at(str(issuer))
        if not names or not _is_moment(issued) or not _is_moment(until):
            return
        name = str(claims.get("name") or claims.get("email") or claims.get("sub"))
        params = {
            "issuer": issuer,
            "user_id": user_id,
            "claims": {one: claims[one] for one in names if _can_be_kept(claims.get(one))},
            "email": email if _can_be_kept(email) else None,
            "name": name[:_NAME_LENGTH] if _can_be_kept(name) else str(user_id),
            "issued": issued,
            "until": until,
        }
        said = json.dumps(params, default=str, sort_keys=True).encode()
        key = hashlib.sha256(said).digest()
        with self._lock:
            if self._clock() < self._told.get(key, 0.0):
                return
        params["claims"] = Jsonb(params["claims"])
        self._get_database().call(statements("system")["staff_by_claim"], params, "repeatable")
        with self._lock:
            if len(self._told) >= _MOST:
                self._told.clear()
            self._told[key] = self._clock() + TELL_SECONDS

    def elsewhere(self, user_id: UUID, issuer: object) -> bool:
        """Whether somebody is staff by the claims of another issuer than that of their token.

        Then this token has none of those rights: whoever can sign as one issuer would have the
        staff of the others. Raises what the database raises.
        """
        self._looked_at(str(issuer))
        if not self._names:
            return False
        asked = {"user_id": user_id, "issuer": str(issuer)}
        return bool(self._get_database().rows(statements("system")["staff_elsewhere"], asked))

    def _looked_at(self, issuer: str) -> list[str]:
        """The claims of the issuer that count for something."""
        database = self._get_database()
        with self._lock:
            if database is self._database and self._clock() < self._looked:
                return self._names.get(issuer, [])
        rows = database.rows(statements("system")["staff_claims"])
        with self._lock:
            if database is not self._database:
                self._told.clear()
            self._database, self._looked = database, self._clock() + LOOK_SECONDS
            self._names = {row["issuer"]: row["names"] for row in rows}
            return self._names.get(issuer, [])


def _is_moment(value: object) -> bool:
    """Whether it is a time of our days, in seconds: an issuer may sign what its users wrote."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value < _YEAR_3000


def _can_be_kept(value: object) -> bool:
    """Whether the database can hold it: NUL, half a character and NaN it cannot. None: nothing."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        return False
    return value is not None and "\\u0000" not in text
