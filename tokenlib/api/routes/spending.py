"""The path of an AI call: may it run, hold, charge or give back."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Path, Query

from tokenlib import answers
from tokenlib.api import schemas as s
from tokenlib.api.door import Door, OrganizationId, Read, Write, door, named
from tokenlib.api.errors import NotYours, NotYourself
from tokenlib.db import Row
from tokenlib.domain import MAX_UNITS, MOST_OUTPUT_UNITS
from tokenlib.errors import UnknownFeature
from tokenlib.inputs import metadata as checked

router = APIRouter(
    prefix="/v1/organizations/{organizationId}",
    tags=["Spending"],
    route_class=Door,
    generate_unique_id_function=named,
)

ReservationId = Annotated[UUID, Path(alias="reservationId")]
UsageId = Annotated[UUID, Path(alias="usageId")]


@router.get("/has-enough", openapi_extra=door("check"))
def has_enough(
    organization_id: OrganizationId,
    feature: Annotated[str, Query(pattern=s.NAME, examples=["generate_goal"])],
    read: Read,
    units: Annotated[int, s.Decimal, Query(ge=1, le=MAX_UNITS)] = 1,
) -> s.Enough:
    """Whether the balance would pay: for a button, never the decision. `can-use` is the verdict."""
    [row] = read.ask("has_enough", organization_id=organization_id, feature=feature, units=units)
    match row["status"]:
        case "yes" | "no" as said:
            return s.Enough(has_enough=said == "yes")
        case "unknown_feature":
            raise UnknownFeature(feature, read.tokens.catalog().features)
    raise NotYours


@router.get("/can-use", openapi_extra=door("check"))
def can_use(
    organization_id: OrganizationId,
    feature: Annotated[str, Query(pattern=s.NAME, examples=["generate_goal"])],
    read: Read,
    units: Annotated[int, s.Decimal, Query(ge=1, le=MAX_UNITS)] = 1,
    output_units: Annotated[
        int | None,
        s.Decimal,
        Query(
            alias="outputUnits",
            ge=0,
            le=MOST_OUTPUT_UNITS,
            description="What the metadata of the charge would say, for the limits on it.",
        ),
    ] = None,
    user_id: Annotated[
        UUID | None, Query(alias="userId", description="A person asks for themselves.")
    ] = None,
) -> s.Verdict:
    """The whole verdict without charging, and the rule that would refuse."""
    [row] = read.ask(
        "can_use",
        organization_id=organization_id,
        user_id=user_id,
        feature=feature,
        units=units,
        output_units=output_units,
        mode=read.tokens.override,
    )
    if row["status"] == "not_yours":
        raise NotYours
    if row["status"] == "not_yourself":
        raise NotYourself
    error = None if row["status"] == "ok" else _refusal(read, row)
    if error is not None and not hasattr(error, "rule"):
        raise error
    return s.Verdict(
        allowed=error is None,
        rule=None if error is None else row["status"],
        message="Allowed." if error is None else str(error),
        needed=row["needed"],
        available=row["available"],
        token_type=row["token_type"],
        refresh_date=row["until"],
        retry_after=row["retry_after"],
    )


@router.post("/reservations", status_code=201, openapi_extra=door("spend"))
def reserve(
    organization_id: OrganizationId, asked: s.ReservationQuestion, write: Write
) -> s.Reservation:
    """Hold the cost while the AI call runs. Then deduct or release; else it ends by itself."""
    row = write.write(
        "reserve",
        organization_id,
        user=asked.user_id,
        feature=asked.feature,
        units=asked.units,
        metadata=_metadata(asked.metadata),
        hold_seconds=asked.hold_seconds,
        unique={"id": asked.id},
    )
    return s.Reservation.model_validate(answers.reservation(row, asked.units))


@router.post("/reservations/{reservationId}/deduct", openapi_extra=door("spend"))
def deduct(
    organization_id: OrganizationId,
    reservation_id: ReservationId,
    asked: Annotated[s.SettleQuestion, Body()],
    write: Write,
) -> s.Charge:
    """Charge what was used of a hold, at most what was held; the rest goes back."""
    row = write.write(
        "settle",
        organization_id,
        id=reservation_id,
        units=asked.units,
        metadata=_metadata(asked.metadata),
    )
    return s.Charge.model_validate(answers.usage(row))


@router.post("/reservations/{reservationId}/release", openapi_extra=door("spend"))
def release(
    organization_id: OrganizationId,
    reservation_id: ReservationId,
    asked: s.ReleaseQuestion,
    write: Write,
) -> s.Released:
    """Give a hold back. Releasing twice is the same as once."""
    row = write.write("release", organization_id, id=reservation_id, reason=asked.reason)
    return s.Released(
        id=row["id"],
        organization_id=row["organization_id"],
        token_type=row["token_type"],
        remaining_balance=row["balance"],
    )


@router.post("/charges", status_code=201, openapi_extra=door("spend"))
def charge(organization_id: OrganizationId, asked: s.ChargeQuestion, write: Write) -> s.Charge:
    """Charge a feature at once, all or nothing."""
    row = write.write(
        "deduct",
        organization_id,
        user=asked.user_id,
        feature=asked.feature,
        units=asked.units,
        metadata=_metadata(asked.metadata),
    )
    return s.Charge.model_validate(answers.usage(row))


@router.post("/charges/{usageId}/refund", openapi_extra=door("spend"))
def refund(
    organization_id: OrganizationId, usage_id: UsageId, asked: s.ReasonQuestion, write: Write
) -> s.Refund:
    """Give a charge back, once. For a key with `spend`, or an admin; not for members."""
    row = write.write("refund", organization_id, id=usage_id, reason=asked.reason)
    return s.Refund(
        usage_id=row["id"],
        organization_id=row["organization_id"],
        user_id=row["user_id"],
        feature=row["feature"],
        token_type=row["token_type"],
        tokens=row["tokens"],
        remaining_balance=row["balance"],
        created_at=row["created_at"],
    )


def _metadata(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Metadata that the books can keep; InvalidInput otherwise."""
    checked(given)
    return given


def _refusal(read: Read, row: Row) -> Exception:
    if row["status"] == "unknown_feature":
        return UnknownFeature(row["feature"], read.tokens.catalog().features)
    return answers.refusal(row)
