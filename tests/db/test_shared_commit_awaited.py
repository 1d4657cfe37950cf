"""Awaited charges share a commit, too, without a thread each."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.db.charging import (
    INSIGHT,
    Join,
    commits,
)
from tests.db.crowd import Crowd, waiting
from tokenlib import (
    InsufficientTokens,
    InvalidInput,
    Tokens,
    Usage,
)

pytestmark = pytest.mark.usefixtures("books_close")


def test_awaited_charges_share_a_commit_without_a_thread_each(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd
) -> None:
    person = join("enterprise")
    gate.get_all_token_balances(person[0])

    async def ask() -> list[Any]:
        with crowd.holding(gate):
            asked = [
                asyncio.ensure_future(
                    gate.aio.deduct_tokens(
                        *person, INSIGHT, metadata={"n": n}, idempotency_key=f"k{n}"
                    )
                )
                for n in range(50)
            ]
            asked.append(asyncio.ensure_future(gate.aio.deduct_tokens(*person, INSIGHT, 1000)))
            gone = asyncio.ensure_future(gate.aio.deduct_tokens(*person, INSIGHT))
            while waiting(gate.shared) < 52:
                await asyncio.sleep(0)
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone
            assert waiting(gate.shared) == 51
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())
    assert isinstance(answers.pop(), InsufficientTokens)
    assert [usage.remaining_balance for usage in answers] == list(range(499, 449, -1))
    assert commits(owner) == [50]


def test_a_leader_who_is_refused_keeps_the_one_thread(
    gate: Tokens, join: Join, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to lead, then that nothing was charged: the thread of the first asks alone, too."""
    person = join("enterprise")
    gate.get_all_token_balances(person[0])
    at_work: list[Any] = []
    carry_out = gate.carry_out

    def counted(*args: Any) -> Usage:
        at_work.append(args)
        return carry_out(*args)

    monkeypatch.setattr(gate, "carry_out", counted)

    async def ask() -> list[Any]:
        with crowd.holding(gate):
            asked = [
                asyncio.ensure_future(gate.aio.deduct_tokens(*person, INSIGHT, units))
                for units in (1000, 1)
            ]
            while waiting(gate.shared) < 2:
                await asyncio.sleep(0)
        return await asyncio.gather(*asked, return_exceptions=True)

    refused, charged = asyncio.run(ask())
    assert isinstance(refused, InsufficientTokens)
    assert charged.remaining_balance == 499
    assert len(at_work) == 1


def test_awaited_charges_go_through_as_they_come(
    gate: Tokens, join: Join, owner: psycopg.Connection
) -> None:
    """200 at once, malformed ones and refused ones among them."""
    person = join("enterprise")
    gate.get_all_token_balances(person[0])

    async def ask() -> list[Any]:
        calls = [gate.aio.deduct_tokens(*person, INSIGHT) for _ in range(200)]
        calls.append(gate.aio.deduct_tokens(*person, INSIGHT, 0))
        calls.append(gate.aio.deduct_tokens(person[0], uuid4(), INSIGHT))
        return await asyncio.gather(*calls, return_exceptions=True)

    *charged, malformed, stranger = asyncio.run(ask())
    assert isinstance(malformed, InvalidInput)
    assert type(stranger).__name__ == "NotAMember"
    assert sorted(usage.remaining_balance for usage in charged) == list(range(300, 500))
    assert len(commits(owner)) < 100
