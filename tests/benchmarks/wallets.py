"""The wallets that are charged, the same for every side, and which of them a caller takes next."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

import psycopg

FEATURE, TOKEN_TYPE = "generate_insight", "general"
ORGANIZATIONS = 1_000
MEMBERS = 64
"""People of the busy organization: each caller is somebody of his own."""

Choose = Callable[[], tuple[UUID, UUID]]
"""Whom to charge next: an organization and its member."""

# An allowance and limits above the load; the limits are asked all the same.
_PREPARE = """
update ai_token_allowances set allowance = 1000000000 where plan = 'enterprise';
update ai_token_limits set requests_per_minute = 100000000, seconds_between_requests = 0,
    tokens_per_request = 1000;
insert into organizations (id, name, plan) select id, 'Sample company', 'enterprise'
from bench_people group by id;
insert into user_profiles (id, organization_id, full_name, email)
select member, id, 'Sample person', member || '@example.org' from bench_people;
drop table bench_people;
"""


@dataclass(frozen=True)
class World:
    """Organizations with a member each, and one with many."""

    spread: Sequence[tuple[UUID, UUID]]
    busy: UUID
    members: Sequence[UUID]

    @property
    def organizations(self) -> list[UUID]:
        """Every organization."""
        return [*(organization for organization, _ in self.spread), self.busy]

    def anyone(self, number: int) -> Choose:
        """Caller `number` takes any of the thousand."""
        chance = random.Random(number)  # noqa: S311 - which wallet is no secret
        return lambda: chance.choice(self.spread)

    def the_one(self, number: int) -> Choose:
        """Caller `number` takes the busy wallet, as a member of his own."""
        who = (self.busy, self.members[number % MEMBERS])
        return lambda: who


def prepare(owner: psycopg.Connection[object]) -> World:
    """Add them, as the owner."""
    world = World(
        spread=[(uuid4(), uuid4()) for _ in range(ORGANIZATIONS)],
        busy=uuid4(),
        members=[uuid4() for _ in range(MEMBERS)],
    )
    people = [*world.spread, *((world.busy, member) for member in world.members)]
    owner.execute("create temporary table bench_people (id uuid, member uuid)")
    with owner.cursor() as cursor:
        cursor.executemany("insert into bench_people values (%s, %s)", people)
    for statement in _PREPARE.split(";\n"):
        owner.execute(statement.encode())
    return world
