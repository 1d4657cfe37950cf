"""What is asked, as the API takes it; checked by the library's own rules before it is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

from tokenlib import inputs
from tokenlib.db import as_uuid
from tokenlib.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


def spending(
    user: UUID | str, feature: str, units: int, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A feature, how often, and who for."""
    return {
        "feature": inputs.text(feature, "feature"),
        "units": inputs.units(units),
        "userId": str(as_uuid(user, "user")),
        "metadata": metadata(given),
    }


def metadata(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A JSON object that fits, or None."""
    inputs.metadata(given)
    return None if given is None else dict(given)


def name(given: str, field: str) -> str:
    """A name that a path can have: of others no server says where they lead."""
    if not _NAME.fullmatch(inputs.text(given, field)) or given in (".", ".."):
        raise InvalidInput(field, "must be a name: 1 to 100 letters, digits and _ . : -")
    return given


def places(path: str) -> dict[str, str]:
    """The ids that a path names, as the errors call them: a problem does not repeat them."""
    parts = path.partition("?")[0].split("/")
    names = {"organizations": "organization_id", "users": "user_id", "charges": "usage_id"}
    names["reservations"] = "reservation_id"
    return {names[part]: name for part, name in pairwise(parts) if part in names}


def key(given: str | None) -> str:
    """The caller's key, or one that nobody else has."""
    chosen = inputs.key(given) or str(uuid4())
    # A header has no room for others, and blanks at its ends are lost.
    if chosen != chosen.strip() or not all(" " <= each <= "~" for each in chosen):
        raise InvalidInput("idempotency_key", "must be printable ASCII over HTTP")
    return chosen


def seconds(hold_for: timedelta | None) -> int | None:
    """The life of a hold."""
    life = inputs.duration(hold_for, "hold_for")
    if life is None:
        return None
    if life % timedelta(seconds=1) or not timedelta(0) < life <= timedelta(days=1):
        raise InvalidInput("hold_for", "must be whole seconds, at most 1 day")
    return life // timedelta(seconds=1)
