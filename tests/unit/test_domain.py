"""The words of the product: frozen records, and the arithmetic that needs no database."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenlib import domain
from tokenlib.domain import Balance, Level, Problem, Usage, level, plain, uses_left

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def wallet(balance: int, allocated: int, allowance: int | None = 20) -> Balance:
    return Balance(
        organization_id=uuid4(),
        token_type="goal_generation",
        balance=balance,
        reserved=0,
        total_used=allocated - balance,
        total_allocated=allocated,
        allowance=allowance,
        period_start=NOON,
        refresh_date=NOON,
        last_used_at=None,
    )


@pytest.mark.parametrize(
    ("balance", "allocated", "colour"),
    [
        (20, 20, "green"),
        (11, 20, "green"),
        (10, 20, "yellow"),  # 50 % is not above it
        (4, 20, "yellow"),  # 20 % is not below it
        (3, 20, "red"),
        (0, 20, "red"),
        (0, 0, "none"),
        (25, 20, "green"),
        (50_000_000_000_000_001, 100_000_000_000_000_000, "green"),
        (50_000_000_000_000_000, 100_000_000_000_000_000, "yellow"),
        (19_999_999_999_999_999, 100_000_000_000_000_000, "red"),
    ],
)
def test_colour_by_what_is_left(balance: int, allocated: int, colour: Level) -> None:
    assert level(balance, allocated) == colour
    assert wallet(balance, allocated).level == colour


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_colours_are_the_shares_they_stand_for(balance: int, allocated: int) -> None:
    share = {"green": (50, 10**15), "yellow": (20, 50), "red": (-1, 20)}[level(balance, allocated)]
    percent = 100 * balance
    assert share[0] * allocated <= percent
    assert percent <= share[1] * allocated


@pytest.mark.parametrize(
    ("balance", "cost", "uses"), [(20, 3, 6), (2, 3, 0), (0, 1, 0), (3, 3, 1), (-4, 3, 0)]
)
def test_what_a_balance_buys(balance: int, cost: int, uses: int) -> None:
    assert uses_left(balance, cost) == uses


def test_unlimited_is_no_allowance_and_zero_is_one() -> None:
    assert wallet(1, 1, allowance=None).unlimited
    assert not wallet(0, 0, allowance=0).unlimited


def test_plain_is_ready_for_json() -> None:
    usage = Usage(uuid4(), uuid4(), None, "generate_goal", "goal_generation", 3, 0, 17, NOON)
    document = {"usage": usage, UUID(int=1): [NOON, (1, None, True, "é")]}
    assert json.loads(json.dumps(plain(document))) == {
        "usage": {
            "id": str(usage.id),
            "organization_id": str(usage.organization_id),
            "user_id": None,
            "feature": "generate_goal",
            "token_type": "goal_generation",
            "tokens_deducted": 3,
            "tokens_waived": 0,
            "remaining_balance": 17,
            "created_at": "2026-03-01T12:00:00Z",
            "replayed": False,
            "booked": True,
        },
        "00000000-0000-0000-0000-000000000001": ["2026-03-01T12:00:00Z", [1, None, True, "é"]],
    }


def test_every_record_is_frozen_and_can_be_sent_to_another_process() -> None:
    records = [
        record
        for _, record in inspect.getmembers(domain, dataclasses.is_dataclass)
        if record.__module__ == domain.__name__
    ]
    assert Balance in records
    for record in records:
        assert vars(record)["__dataclass_params__"].frozen, record
        assert record.__doc__
    problem = Problem(uuid4(), "general", "kind", "log 1", "detail")
    assert pickle.loads(pickle.dumps(problem)) == problem  # noqa: S301 - our own bytes
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.kind = "another"  # type: ignore[misc]
