"""Finding an organization, and what stands around its wallets: members and quests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

from tokenlib.db import as_uuid
from tokenlib.domain import Level
from tokenlib.errors import InvalidInput
from tokenlib.reports.asking import (
    Asking,
    Id,
    Page,
    caseless,
    contains,
    rows_at_most,
    whole,
)

MAX_OFFSET = 10_000_000

OrganizationSort = Literal[
    "name",
    "plan",
    "status",
    "level",
    "balance",
    "total_used",
    "refresh_date",
    "last_used_at",
    "run_out",
]


_BY_WALLETS = ("level", "balance", "total_used", "refresh_date", "last_used_at", "run_out")


@dataclass(frozen=True, slots=True)
class OrganizationRow:
    """One organization with the sums over its wallets, as stored.

    `level` is the worst of its wallets; packs do not count for it, unlimited is green, "none" means
    that its plan includes nothing. `refresh_date` is the next of any wallet. `mode` is its own
    switch while it is in force, else None.
    """

    organization_id: UUID
    name: str
    plan: str | None
    status: str
    mode: str | None
    level: Level
    members: int
    balance: int
    reserved: int
    total_used: int
    total_allocated: int
    unlimited: bool
    refresh_date: datetime | None
    refresh_due: bool
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One user of an organization; `calls` and `tokens` (gross) of the last 30 days."""

    organization_id: UUID
    user_id: UUID
    user: str
    email: str | None
    role: str | None
    paused_at: datetime | None
    calls: int
    tokens: int
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class QuestRow:
    """A generated quest; `metadata` has its steps and rewards."""

    id: UUID
    organization_id: UUID
    title: str
    description: str
    quarter: str
    target_amount: int
    progress: int
    status: str
    metadata: Mapping[str, Any]
    created_by: UUID | None
    created_at: datetime


class OrganizationReports(Asking):
    """Questions about organizations and the people in them."""

    def organizations(
        self,
        search: str | None = None,
        plan: str | None = None,
        status: str | None = None,
        level: str | None = None,
        limit: int = 50,
        offset: int = 0,
        *,
        near: Literal[80, 100] | None = None,
        sort: OrganizationSort = "name",
        descending: bool = False,
    ) -> Page[OrganizationRow]:
        """Organizations; `search` is part of a name or of a member's e-mail, or begins an id.

        `near` is for those with a wallet that has used 80 %, or all, of its allocation; unlimited
        ones never.

        Sorted by `sort`, then by name; what has no value comes last. "run_out" is when the first of
        its wallets ends, as `run_outs` within a year has it.
        """
        id_from, id_to = _ids_that_begin(search)
        return self._organizations(
            None,
            pattern=contains(search),
            id_from=id_from,
            id_to=id_to,
            sort=_one_of(sort),
            descending=descending,
            plan=plan,
            status=status,
            level=level,
            near=near,
            limit=rows_at_most(limit),
            offset=whole(offset, "offset", 0, MAX_OFFSET),
        )

    def organization(self, organization_id: Id) -> OrganizationRow | None:
        """One organization, or None when there is none that the viewer may see."""
        found = self._organizations(as_uuid(organization_id, "organization_id"))
        return found.rows[0] if found.rows else None

    def members(self, organization_id: Id) -> list[MemberRow]:
        """The users of an organization, those that used the most tokens first."""
        rows = self._ask(
            "organizations",
            f"members{self._closed}",
            organization_id=as_uuid(organization_id, "organization_id"),
        )
        return [MemberRow(**row) for row in rows]

    def quests(self, organization_id: Id, limit: int = 100) -> list[QuestRow]:
        """The quests of an organization, the latest first."""
        rows = self._ask(
            "organizations",
            "quests",
            organization_id=as_uuid(organization_id, "organization_id"),
            limit=rows_at_most(limit),
        )
        return [QuestRow(**row) for row in rows]

    def _organizations(
        self,
        organization_id: UUID | None,
        *,
        pattern: str | None = None,
        id_from: UUID | None = None,
        id_to: UUID | None = None,
        plan: str | None = None,
        status: str | None = None,
        level: str | None = None,
        near: Literal[80, 100] | None = None,
        limit: int = 1,
        offset: int = 0,
        sort: OrganizationSort = "name",
        descending: bool = False,
    ) -> Page[OrganizationRow]:
        question = "organizations"
        if self._closed and (sort in _BY_WALLETS or level is not None or near is not None):
            narrowed = sort == "run_out" or any((pattern, plan, status, level, near))
            question = "organizations_closed" if narrowed else "organizations_sorted"
        rows = self._ask(
            "organizations",
            question,
            organization_id=organization_id,
            pattern=pattern,
            caseless=caseless(pattern),
            id_from=id_from,
            id_to=id_to,
            sort=sort,
            descending=descending,
            plan=plan,
            status=status,
            level=level,
            near=near,
            limit=limit,
            offset=offset,
        )
        names = [field.name for field in fields(OrganizationRow)]
        return Page(
            rows=tuple(
                OrganizationRow(**{name: row[name] for name in names})
                for row in rows
                if row["organization_id"] is not None  # the total of a page past the end
            ),
            total=rows[0]["total"],
        )


def _ids_that_begin(search: str | None) -> tuple[UUID | None, UUID | None]:
    """The first and the last id that begin with what was typed; none for what begins no id."""
    digits = (search or "").strip().lower().replace("-", "")
    if not re.fullmatch(r"[0-9a-f]{4,32}", digits):
        return None, None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def _one_of(sort: OrganizationSort) -> OrganizationSort:
    if sort not in (known := get_args(OrganizationSort)):
        raise InvalidInput("sort", f"must be one of: {', '.join(known)}")
    return sort
