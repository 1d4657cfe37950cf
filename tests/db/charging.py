"""What the tests of charges that share a commit have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import psycopg

from tokenlib import (
    Tokens,
    Usage,
)
from tokenlib.retry import Retry

Person = tuple[UUID, UUID]
Join = Callable[[str], Person]
PATIENT = Retry(deadline=60)
WHO: dict[str, Any] = {"actor": "an operator", "reason": "a drill"}
GOAL, INSIGHT, STRATEGY = "generate_goal", "generate_insight", "analyze_strategy"


def commits(owner: psycopg.Connection) -> list[int]:
    """How many charges each transaction made, in its order."""
    rows = owner.execute(
        "select count(*)::int from ai_token_usage_log group by xmin::text order by min(created_at)"
    )
    return [count for (count,) in rows.fetchall()]


def charge(gate: Tokens, person: Person, *args: Any, **kwargs: Any) -> Callable[[], Usage]:
    return partial(gate.deduct_tokens, *person, *args, **kwargs)


def seen(answer: Any) -> Any:
    """A charge or a refusal, without what differs from organization to organization."""
    if isinstance(answer, Usage):
        return (answer.token_type, answer.tokens_deducted, answer.tokens_waived,
            answer.remaining_balance, answer.replayed)  # fmt: skip
    return type(answer), getattr(answer, "rule", None), getattr(answer, "limit", None)


Setting = Callable[[Tokens, Person, psycopg.Connection], Any]


def limit(**limits: object) -> Setting:
    """Limits of this organization; what is not named is off."""
    row = {
        "requests_per_minute": None,
        "seconds_between_requests": None,
        "tokens_per_request": None,
        "output_units_per_request": None,
        "failed_attempts": None,
        **limits,
    }
    columns = ", ".join(row)

    def setting(tokens: Tokens, person: Person, owner: psycopg.Connection) -> None:
        owner.execute(
            f"insert into ai_token_limits (organization_id, {columns})"  # noqa: S608 - our names
            f" values (%s, {', '.join(['%s'] * len(row))})",
            (person[0], *row.values()),
        )

    return setting
