"""What TOKENLIB_SWITCH lets through while the database cannot answer.

Such an answer stands on no book: no balance moved and no log row was written, which `booked` says.
It waives the feature's cost where the catalog has been read before, else 0.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from tokenlib.domain import Catalog, Feature, Mode, Reservation, Usage, Verdict
from tokenlib.errors import (
    DatabaseUnavailable,
    InvalidInput,
    LoginRefused,
    NotMigrated,
    PermissionDenied,
    UnknownFeature,
)

# A server that is down, one that is being restored, and one without its logins or grants yet.
CANNOT_ANSWER = (DatabaseUnavailable, LoginRefused, NotMigrated, PermissionDenied)

_HOLD_LIFE = timedelta(minutes=10)
_UNKNOWN_TYPE = "unknown"


def lets_through(override: Mode | None) -> bool:
    """Whether an operator said that the answer is yes while the database has none."""
    return override in ("log_only", "off")


def usage(
    organization_id: UUID, user_id: UUID, feature: str, units: int, catalog: Catalog | None
) -> Usage:
    """A charge that is none. Raises UnknownFeature where the catalog is known."""
    known = _feature(feature, catalog)
    return Usage(
        id=uuid4(),
        organization_id=organization_id,
        user_id=user_id,
        feature=feature,
        token_type=known.token_type,
        tokens_deducted=0,
        tokens_waived=known.cost * units,
        remaining_balance=0,
        created_at=datetime.now(UTC),
        booked=False,
    )


def settled(held: Reservation, units: int | None, catalog: Catalog | None) -> Usage:
    """The end of a hold, as a charge that is none."""
    if units is not None and units > held.units:
        raise InvalidInput("units", f"must be at most the {held.units} that are held, not {units}")
    return usage(held.organization_id, held.user_id, held.feature, units or held.units, catalog)


def reservation(
    organization_id: UUID,
    user_id: UUID,
    feature: str,
    units: int,
    life: timedelta | None,
    catalog: Catalog | None,
) -> Reservation:
    """A hold that holds nothing. Raises UnknownFeature where the catalog is known."""
    return Reservation(
        id=uuid4(),
        organization_id=organization_id,
        user_id=user_id,
        feature=feature,
        token_type=_feature(feature, catalog).token_type,
        units=units,
        tokens=0,
        remaining_balance=0,
        expires_at=datetime.now(UTC) + (life or _HOLD_LIFE),
        booked=False,
    )


def verdict(feature: str, units: int, override: Mode | None, catalog: Catalog | None) -> Verdict:
    """Yes, and why."""
    known = _feature(feature, catalog)
    return Verdict(
        allowed=True,
        rule=None,
        message=f"Allowed: the database does not answer, and TOKENLIB_SWITCH is {override}.",
        needed=known.cost * units,
        available=0,
        token_type=known.token_type,
        refresh_date=None,
    )


def _feature(name: str, catalog: Catalog | None) -> Feature:
    if catalog is None:
        return Feature(name, name, _UNKNOWN_TYPE, 0)
    if name not in catalog.features:
        raise UnknownFeature(name, catalog.features)
    return catalog.features[name]
