"""What staff do: grants, plans, states, the switch. The database decides who may.

A person needs a row in `tokenlib_staff`, a key the scope `admin`, with which it acts as the admin
who made it. Everything needs a reason and is on record.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path

from tokenlib import answers
from tokenlib.api import schemas as s
from tokenlib.api.door import Door, OrganizationId, Write, door, named

router = APIRouter(
    prefix="/v1", tags=["Staff"], route_class=Door, generate_unique_id_function=named
)

UserId = Annotated[UUID, Path(alias="userId")]


@router.post("/organizations/{organizationId}/grants", status_code=201, openapi_extra=door("admin"))
def grant(organization_id: OrganizationId, asked: s.GrantQuestion, write: Write) -> s.GrantAnswer:
    """Add tokens. Support: gifts that take effect at once, up to their limit of the day."""
    row = write.write("grant", organization_id, **asked.model_dump())
    return s.GrantAnswer.model_validate(answers.grant(row, asked.kind, asked.source))


@router.post("/organizations/{organizationId}/plan", openapi_extra=door("admin"))
def change_plan(organization_id: OrganizationId, asked: s.PlanQuestion, write: Write) -> s.Done:
    """Move to another plan: the new allowance less what was used, never a refill."""
    write.write("change_plan", organization_id, **asked.model_dump())
    return s.Done(organization_id=organization_id)


@router.post("/organizations/{organizationId}/status", openapi_extra=door("admin"))
def set_status(organization_id: OrganizationId, asked: s.StatusQuestion, write: Write) -> s.Done:
    """Set the payment state; AI runs only while it is `active`, and `suspended` pauses it."""
    write.write("set_status", organization_id, **asked.model_dump())
    return s.Done(organization_id=organization_id)


@router.post("/organizations/{organizationId}/users/{userId}/pause", openapi_extra=door("admin"))
def pause_user(
    organization_id: OrganizationId, user_id: UserId, asked: s.PauseQuestion, write: Write
) -> s.Done:
    """Pause or resume one user of an organization."""
    write.write("pause_user", organization_id, user_id=user_id, **asked.model_dump())
    return s.Done(organization_id=organization_id)


@router.post("/organizations/{organizationId}/request-limit", openapi_extra=door("admin"))
def set_request_limit(
    organization_id: OrganizationId, asked: s.RequestLimitQuestion, write: Write
) -> s.Done:
    """How many charges and holds a minute are taken from the organization as a whole."""
    write.write("set_request_limit", organization_id, **asked.model_dump())
    return s.Done(organization_id=organization_id)


@router.post("/switch", openapi_extra=door("admin"))
def set_mode(asked: s.SwitchQuestion, write: Write) -> s.Done:
    """The emergency switch, for one organization or everyone; no balance moves."""
    args = asked.model_dump(exclude={"organization_id"})
    write.write("set_mode", asked.organization_id, **args)
    return s.Done(organization_id=asked.organization_id)
