"""What is there, what was used, and how it came to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import APIRouter, Path, Query

from tokenlib import answers
from tokenlib.api import schemas as s
from tokenlib.api.cursors import ChargePlace, EntryPlace
from tokenlib.api.door import Door, OrganizationId, Read, door, named
from tokenlib.api.errors import NoStory
from tokenlib.errors import InvalidInput, UnknownFeature, UnknownTokenType

router = APIRouter(
    prefix="/v1", tags=["Reading"], route_class=Door, generate_unique_id_function=named
)

T = TypeVar("T")

TokenType = Annotated[str, Path(alias="tokenType", pattern=s.NAME, examples=["goal_generation"])]
# What lists are filtered by, and gone through.
OfFeature = Annotated[str | None, Query(alias="feature", pattern=s.NAME)]
OfTokenType = Annotated[str | None, Query(alias="tokenType", pattern=s.NAME)]
OfUser = Annotated[UUID | None, Query(alias="userId")]
Since = Annotated[s.Moment | None, Query(description="From this time on.")]
Until = Annotated[s.Moment | None, Query(description="Before this time.")]
Limit = Annotated[int, s.Decimal, Query(ge=1, le=1000)]
Cursor = Annotated[
    str | None, Query(max_length=300, description="`nextCursor` of the page before.")
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
        _known(read, token_type=token_type)
        raise InvalidInput("token_type", answers.NO_PACK)
    return s.Wallet.model_validate(wallets[0])


@router.get("/organizations/{organizationId}/stats", openapi_extra=door("read"))
def stats(organization_id: OrganizationId, read: Read) -> s.Totals:
    """Totals over the wallets, each wallet, and the next refresh."""
    return s.Totals.of(organization_id, read.balances(organization_id))


@router.get("/organizations/{organizationId}/history", openapi_extra=door("read"))
def history(
    organization_id: OrganizationId,
    read: Read,
    feature: OfFeature = None,
    token_type: OfTokenType = None,
    user_id: OfUser = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> s.History:
    """Charges, the latest first. Ask with the same filters and `nextCursor` to go on."""
    place = ChargePlace.read(cursor)
    rows = read.reports(organization_id).usage_rows(
        since,
        until,
        limit + 1,
        place,
        organization_id=organization_id,
        user_id=user_id,
        feature=feature,
        token_type=token_type,
    )
    if not rows:
        _known(read, feature, token_type)
    page, last = _page(rows, limit)
    return s.History.of(page, ChargePlace.of(last).text() if last else None)


@router.get("/organizations/{organizationId}/entries", openapi_extra=door("read"))
def entries(
    organization_id: OrganizationId,
    read: Read,
    kind: Annotated[s.EntryKind | None, Query(description="Entries of this kind alone.")] = None,
    feature: OfFeature = None,
    token_type: OfTokenType = None,
    user_id: OfUser = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> s.Entries:
    """All that moved the wallets, the latest first: charges, grants, holds, refunds, refreshes …

    `userId` is who caused an entry, or whose charge was given back. Ask with the same filters and
    `nextCursor` to go on.
    """
    place = EntryPlace.read(cursor)
    rows = read.reports(organization_id).ledger(
        organization_id,
        token_type,
        limit + 1,
        place,
        kind=kind,
        feature=feature,
        user_id=user_id,
        since=since,
        until=until,
    )
    if not rows:
        _known(read, feature, token_type)
    page, last = _page(rows, limit)
    return s.Entries.of(page, EntryPlace.of(last).text() if last else None)


def _known(read: Read, feature: str | None = None, token_type: str | None = None) -> None:
    """Raise UnknownFeature or UnknownTokenType for what is not in the catalog.

    Asked where nothing was found: an adopted log has features that no catalog ever had.
    """
    catalog = read.tokens.catalog()
    if feature is not None and feature not in catalog.features:
        raise UnknownFeature(feature, catalog.features)
    if token_type is not None and token_type not in catalog.token_types:
        raise UnknownTokenType(token_type, catalog.token_types)


def _page(rows: Sequence[T], limit: int) -> tuple[Sequence[T], T | None]:
    """A page, and its last row where there are more."""
    return rows[:limit], rows[limit - 1] if len(rows) > limit else None


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
        _known(read, token_type=token_type)
        raise NoStory
    return s.Explanation.of(story)
