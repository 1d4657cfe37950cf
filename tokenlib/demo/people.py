"""The organizations by name and id, and their members. Names are made of words, plainly made up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from uuid import UUID

from tokenlib.demo.cast import PERSONAS, SCENARIOS, fixed_id
from tokenlib.demo.chance import chance
from tokenlib.demo.roles import Role, roles

FIRST = ("Maple", "Cedar", "Amber", "Granite", "Willow", "Copper", "Juniper", "Slate", "Birch")
SECOND = ("Roofing", "Plumbing", "Gardens", "Cleaning", "Joinery", "Glazing", "Paving", "Painting")
GIVEN = ("Alex", "Robin", "Sam", "Kim", "Noor", "Jo", "Max", "Ira", "Toni", "Lee", "Sasha", "Mika")
_LEAST_HEAVY = 20


@dataclass(frozen=True, slots=True)
class Member:
    """A user of an organization."""

    id: UUID
    name: str
    email: str
    role: str


@dataclass(frozen=True, slots=True)
class Organization:
    """An organization with its members, and its role in the demo."""

    id: UUID
    name: str
    members: tuple[Member, ...]
    role: Role


def organizations(seed: int, now: int, count: int, users: int) -> list[Organization]:
    """`count` organizations with `users` members in all; the same for the same seed and now.

    The heavy organization takes the members that the others leave, 20 at the least.
    """
    random = chance("people", seed)
    parts = roles(random, now, count)
    others = sum(part.members for part in parts if part.situation != "heavy")
    parts = [
        replace(part, members=max(_LEAST_HEAVY, users - others))
        if part.situation == "heavy"
        else part
        for part in parts
    ]
    return [_organization(random, number, part) for number, part in enumerate(parts, start=1)]


def name(number: int) -> str:
    """The name of the organization with this number, different for every number below 100."""
    return f"{FIRST[number % len(FIRST)]} {SECOND[number % len(SECOND)]} {number:02d}"


def member(random: Random, member_id: UUID, number: int, place: int) -> Member:
    """The member at this place of the organization with this number."""
    given = random.choice(GIVEN)
    return Member(
        member_id,
        f"{given} {number:02d}-{place}",
        f"{given.lower()}.{number:02d}-{place}@example.org",
        "owner" if place == 1 else "member",
    )


def _organization(random: Random, number: int, role: Role) -> Organization:
    key = role.situation or f"number {number}"
    members = [
        member(random, fixed_id(f"user {key} {place}"), number, place)
        for place in range(1, role.members + 1)
    ]
    scenario = SCENARIOS.get(role.situation)
    if scenario is not None:
        members[0] = replace(members[0], id=scenario.user_id)
        members[1] = replace(members[1], id=scenario.colleague_id)
    if role.situation == "healthy":
        persona = PERSONAS["member"]
        members[0] = Member(persona.user_id, persona.name, persona.email, "member")
    return Organization(fixed_id(f"organization {key}"), name(number), tuple(members), role)
