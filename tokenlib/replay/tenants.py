"""Whose requests the rows of a trace are: organizations made for a replay, or one that exists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

from tokenlib.db import statements
from tokenlib.errors import InvalidInput
from tokenlib.tokens import Tokens

MEMBERS = 4
MAX_ORGANIZATIONS = 1000

# Of each five organizations two can pay for much, two run out, and one may not use AI at all.
_PLANS = ("enterprise", "pro", "enterprise", "pro", "starter")
_MEMBERS_TAKEN = 100


@dataclass(frozen=True)
class Tenants:
    """Organizations, and the members of each."""

    organizations: tuple[UUID, ...]
    members: tuple[tuple[UUID, ...], ...]

    def of(self, line: int) -> tuple[UUID, UUID]:
        """The organization and user of a line: taken in turn, by the line's number alone."""
        turn, place = divmod(line, len(self.organizations))
        members = self.members[place]
        return self.organizations[place], members[turn % len(members)]


def check_run(run: str) -> str:
    """The name of a run, if it is one. Raises InvalidInput."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", run):
        raise InvalidInput("run", "must be 1 to 40 letters, digits, dots, hyphens or underscores.")
    return run


def replay_organizations(tokens: Tokens, run: str, count: int) -> Tenants:
    """The organizations of this run, found by name or created, each with its members.

    Raises InvalidInput when the run was begun with another number of organizations, since its rows
    would then be charged again elsewhere.
    """
    if not 1 <= count <= MAX_ORGANIZATIONS:
        raise InvalidInput("organizations", f"must be from 1 to {MAX_ORGANIZATIONS}, not {count}")
    named = statements("replay")
    prefix = f"Replay {check_run(run)} "
    names = [f"{prefix}{number} of {count}" for number in range(1, count + 1)]
    organizations, members = [], []
    with tokens.database.transaction() as connection:
        connection.exec_driver_sql(named["alone"], {"run": run})
        rows = connection.exec_driver_sql(named["organizations"], {"prefix": prefix})
        found = {row.name: row.id for row in rows}
        others = sorted(set(found) - set(names))
        if others:
            raise InvalidInput(
                "organizations",
                f"must be {others[0].rpartition(' ')[2]}, as when run {run} was begun. Give that"
                " number, or another name to --run.",
            )
        for place, name in enumerate(names):
            organization = found.get(name) or tokens.create_organization(
                name, _PLANS[place % len(_PLANS)]
            )
            # On this connection also because a transaction that idles is ended.
            params = {"organization_id": organization, "limit": _MEMBERS_TAKEN}
            rows = connection.exec_driver_sql(named["members"], params)
            present = {row.email: row.id for row in rows}
            organizations.append(organization)
            members.append(tuple(_members(tokens, organization, present)))
    return Tenants(tuple(organizations), tuple(members))


def own_organization(tokens: Tokens, organization: UUID | str) -> Tenants:
    """One organization that exists, with its members (the first hundred by e-mail address)."""
    organization_id = tokens.known_organization(organization)
    params = {"organization_id": organization_id, "limit": _MEMBERS_TAKEN}
    rows = tokens.database.rows(statements("replay")["members"], params)
    members = tuple(row["id"] for row in rows)
    if not members:
        raise InvalidInput("organization", "has no members, and a charge needs one. Add one first.")
    return Tenants((organization_id,), (members,))


def _members(tokens: Tokens, organization: UUID, present: dict[str, UUID]) -> list[UUID]:
    wanted = [(number, f"user-{number}@replay.example") for number in range(1, MEMBERS + 1)]
    return [
        present.get(email) or tokens.add_member(organization, f"Replay user {number}", email)
        for number, email in wanted
    ]
