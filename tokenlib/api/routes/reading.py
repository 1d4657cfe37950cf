"""What is there, what was used, and how it came to be."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query

from tokenlib.api import schemas as s
from tokenlib.api.door import Door, OrganizationId, Read, door, named
from tokenlib.api.errors import NotYours
from tokenlib.errors import InvalidInput

router = APIRouter(
    prefix="/v1", tags=["Reading"], route_class=Door, generate_unique_id_function=named
)

TokenType = Annotated[
    str,
    Path(alias="tokenType", pattern=r"^[A-Za-z0-9_.:-]{1,100}$", examples=["goal_generation"]),
]


@router.get("/catalog", openapi_extra=door("anybody"))
def catalog(read: Read) -> s.CatalogAnswer:
    """Plans, token types, features, costs and allowances as they stand now."""
    found = read.tokens.catalog()
    return s.CatalogAnswer(
        features=[s.CatalogFeature.model_validate(each) for each in found.features.values()],
        token_types=list(found.token_types),
        plans=list(found.plans),
        allowances=[
            s.Allowance(plan=plan, token_type=token_type, allowance=allowance)
            for (plan, token_type), allowance in sorted(found.allowances.items())
        ],
    )


@router.get("/organizations/{organizationId}/balances", openapi_extra=door("read"))
def balances(organization_id: OrganizationId, read: Read) -> s.Balances:
    """Every wallet, current: a period that has ended is already refreshed."""
    wallets = read.balances(organization_id)
    return s.Balances(
        organization_id=organization_id,
        wallets=[s.Wallet.model_validate(wallet) for wallet in wallets],
    )


@router.get("/organizations/{organizationId}/balances/{tokenType}", openapi_extra=door("read"))
def balance(organization_id: OrganizationId, token_type: TokenType, read: Read) -> s.Wallet:
    """One wallet, current."""
    wallets = read.balances(organization_id, token_type)
    if not wallets:
        raise NotYours
    return s.Wallet.model_validate(wallets[0])


@router.get("/organizations/{organizationId}/stats", openapi_extra=door("read"))
def stats(organization_id: OrganizationId, read: Read) -> s.Totals:
    """Totals over the wallets, each wallet, and the next refresh."""
    return s.Totals.of(organization_id, read.balances(organization_id))


@router.get("/organizations/{organizationId}/history", openapi_extra=door("read"))
def history(
    organization_id: OrganizationId,
    read: Read,
    feature: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_.:-]{1,100}$")] = None,
    user_id: Annotated[UUID | None, Query(alias="userId")] = None,
    since: Annotated[s.Moment | None, Query(description="From this time on.")] = None,
    until: Annotated[s.Moment | None, Query(description="Before this time.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[
        str | None, Query(max_length=200, description="`nextCursor` of the page before.")
    ] = None,
) -> s.History:
    """Charges, the latest first. Ask with the same filters and `nextCursor` to go on."""
    rows = read.reports(organization_id).usage_rows(
        since,
        until,
        limit + 1,
        None if cursor is None else _Position.read(cursor, organization_id),
        organization_id=organization_id,
        user_id=user_id,
        feature=feature,
    )
    more = len(rows) > limit
    return s.History.of(rows[:limit], _Position.of(rows[limit - 1]).text() if more else None)


@router.get("/organizations/{organizationId}/explain/{tokenType}", openapi_extra=door("read"))
def explain(
    organization_id: OrganizationId,
    token_type: TokenType,
    read: Read,
    at: Annotated[s.Moment | None, Query(description="As it stood then.")] = None,
) -> s.Explanation:
    """How a balance came to be, now or at a past moment."""
    story = read.reports(organization_id).explain(organization_id, token_type, at)
    if story is None:
        raise NotYours
    return s.Explanation.of(story)


@dataclass(frozen=True, slots=True)
class _Position:
    """A place in the log. It only says where: what may be read there, the database decides."""

    created_at: datetime
    organization_id: UUID
    id: UUID

    @classmethod
    def of(cls, row: object) -> _Position:
        return cls(row.created_at, row.organization_id, row.id)  # type: ignore[attr-defined]

    @classmethod
    def read(cls, cursor: str, organization_id: UUID) -> _Position:
        try:
            moment, _, name = base64.urlsafe_b64decode(cursor.encode()).decode().partition(" ")
            created_at = datetime.fromisoformat(moment)
            if created_at.tzinfo is None:
                raise ValueError
            return cls(created_at, organization_id, UUID(name))
        except (ValueError, binascii.Error):
            raise InvalidInput("cursor", "must be the nextCursor of a page") from None

    def text(self) -> str:
        plain = f"{self.created_at.isoformat()} {self.id}"
        return base64.urlsafe_b64encode(plain.encode()).decode()
