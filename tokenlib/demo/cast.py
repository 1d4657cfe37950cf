"""Who plays in the demo under a fixed id: three personas and the scenarios of a presentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal
from uuid import UUID, uuid5

from tokenlib.domain import OrganizationStatus, Plan

_NAMESPACE = UUID("5f0a1c52-6d6e-4f3a-9c1b-7d3e2a9b4c80")


def fixed_id(name: str) -> UUID:
    """The id that this name has in every demo database."""
    return uuid5(_NAMESPACE, name)


@dataclass(frozen=True, slots=True)
class Persona:
    """Somebody to sign in as without a password, on the bundled database only."""

    user_id: UUID
    name: str
    email: str
    role: Literal["admin", "support", "member"]
    organization_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """An organization in a known state, and the user who acts in it.

    `quest_tokens` is what its `goal_generation` wallet has left at the start; None where the
    scenario does not depend on it.
    """

    organization_id: UUID
    user_id: UUID
    colleague_id: UUID  # what the start state needs charged is theirs, so no limit hits the user
    title: str
    description: str
    plan: Plan
    status: OrganizationStatus = "active"
    quest_tokens: int | None = None
    goodwill: int = 0  # goal_generation tokens granted beside the allowance
    unlimited: bool = False


def _scenario(
    name: str,
    title: str,
    description: str,
    plan: Plan,
    *,
    status: OrganizationStatus = "active",
    quest_tokens: int | None = None,
    goodwill: int = 0,
    unlimited: bool = False,
) -> tuple[str, Scenario]:
    return name, Scenario(
        fixed_id(f"organization {name}"),
        fixed_id(f"user {name}"),
        fixed_id(f"colleague {name}"),
        title,
        description,
        plan,
        status,
        quest_tokens,
        goodwill,
        unlimited,
    )


SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    dict(
        (
            _scenario(
                "healthy",
                "Healthy",
                "Pro with every wallet full: six quests, and the seventh is refused.",
                "pro",
                quest_tokens=20,
            ),
            _scenario(
                "low",
                "Low",
                "Pro with 3 of 21 quest tokens: one quest left.",
                "pro",
                quest_tokens=3,
                goodwill=1,
            ),
            _scenario(
                "empty",
                "Empty",
                "Pro with 2 of 20 quest tokens: too few for a quest.",
                "pro",
                quest_tokens=2,
            ),
            _scenario(
                "starter",
                "Starter",
                "A plan without AI features: every request meets the upgrade prompt.",
                "starter",
            ),
            _scenario(
                "paused",
                "Paused",
                "Suspended by an operator: AI is off, balances are kept.",
                "pro",
                status="suspended",
            ),
            _scenario(
                "payment_failed",
                "Payment failed",
                "The last payment failed: AI is off until it is made, balances are kept.",
                "pro",
                status="limited",
            ),
            _scenario(
                "unlimited",
                "Unlimited",
                "A contract without a limit: the wallet is topped up as it is used.",
                "enterprise",
                unlimited=True,
            ),
        )
    )
)

PERSONAS: Mapping[str, Persona] = MappingProxyType(
    {
        "admin": Persona(fixed_id("user admin"), "Demo admin", "admin@example.org", "admin"),
        "support": Persona(
            fixed_id("user support"), "Demo support", "support@example.org", "support"
        ),
        "member": Persona(
            SCENARIOS["healthy"].user_id,
            "Demo member",
            "member@example.org",
            "member",
            SCENARIOS["healthy"].organization_id,
        ),
    }
)
