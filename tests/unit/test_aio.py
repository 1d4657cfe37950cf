"""The awaitable twins: the same verbs, and no hold is left behind by a caller who is cancelled."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest

from tokenlib import AlreadySpent, InsufficientTokens, ReservationOver, Tokens
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]


@pytest.fixture
def person(tokens: Tokens) -> Person:
    organization = tokens.create_organization("Acme", "pro")
    return organization, tokens.add_member(organization, "A member", "member@example.org")


def figures(tokens: Tokens, person: Person) -> tuple[int, int, int]:
    """Balance, reserved, used."""
    wallet = tokens.get_token_balance(person[0], "goal_generation")
    return wallet.balance, wallet.reserved, wallet.total_used


class Bystander:
    """Somebody else, who can hold every wallet, and see when a verb waits for one."""

    def __init__(self, holder: psycopg.Connection, watcher: psycopg.Connection) -> None:
        self.holder, self.watcher = holder, watcher

    def hold(self) -> None:
        self.holder.execute("begin")
        self.holder.execute("select from ai_tokens for update")

    def wait_for_a_verb(self) -> None:
        query = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        while self.watcher.execute(query).fetchone() == (0,):
            pass

    def let_go(self) -> None:
        self.holder.execute("rollback")


@pytest.fixture
def bystander(token_database: TestDatabase) -> Iterator[Bystander]:
    with token_database.connect() as holder, token_database.connect("postgres") as watcher:
        yield Bystander(holder, watcher)


def test_twins_do_what_the_verbs_do(tokens: Tokens, person: Person) -> None:
    async def use() -> None:
        usage = await tokens.aio.deduct_tokens(*person, "generate_goal", metadata={"n": 1})
        assert usage.remaining_balance == 17
        assert await tokens.aio.has_enough_tokens(person[0], "generate_goal", 5)
        assert (await tokens.aio.can_use(*person, "generate_goal", 6)).rule == "insufficient_tokens"
        held = await tokens.aio.reserve(*person, "generate_goal")
        await tokens.aio.release(held)
        await tokens.aio.refund(usage, "nonsense")
        await tokens.aio.upgrade_tokens(person[0], "goal_generation", 5)
        await tokens.aio.change_plan(person[0], "enterprise")
        assert (await tokens.aio.get_token_balance(person[0], "goal_generation")).balance == 205
        assert await tokens.aio.refresh_tokens() == 0
        assert (await tokens.aio.verify()).closed
        with pytest.raises(InsufficientTokens):
            await tokens.aio.deduct_tokens(*person, "generate_goal", 100)

    asyncio.run(use())


def test_every_public_verb_has_a_twin_and_nothing_else_has(tokens: Tokens) -> None:
    verbs = [
        name
        for name, _ in inspect.getmembers(type(tokens), inspect.isfunction)
        if not name.startswith("_") and name != "close"
    ]
    assert {"deduct_tokens", "grant", "refresh_tokens", "settle_finding", "spend"} <= set(verbs)
    for name in verbs:
        assert callable(getattr(tokens.aio, name)), name
    for name in ("deduct_token", "_call", "database", "override", "log"):
        with pytest.raises(AttributeError):
            getattr(tokens.aio, name)
    assert tokens.aio is tokens.aio


def test_twins_run_beside_each_other(tokens: Tokens, person: Person) -> None:
    async def use() -> list[int]:
        charges = (tokens.aio.deduct_tokens(*person, "generate_insight") for _ in range(50))
        return [usage.remaining_balance for usage in await asyncio.gather(*charges)]

    assert sorted(asyncio.run(use())) == list(range(50))


def test_spend_charges_after_its_body_and_not_for_an_exception(
    tokens: Tokens, person: Person
) -> None:
    async def use() -> None:
        async with tokens.aio.spend(*person, "generate_goal", idempotency_key="one") as held:
            await asyncio.sleep(0)
            assert figures(tokens, person) == (17, 3, 0)
        with pytest.raises(KeyError):
            async with tokens.aio.spend(*person, "generate_goal"):
                raise KeyError
        with pytest.raises(AlreadySpent):
            async with tokens.aio.spend(*person, "generate_goal", idempotency_key="one"):
                pytest.fail("the body ran")
        async with tokens.aio.spend(*person, "generate_goal") as held:
            await tokens.aio.release(held)
        with pytest.raises(ReservationOver):
            await tokens.aio.deduct(held)

    asyncio.run(use())
    assert figures(tokens, person) == (17, 0, 3)


def test_a_body_that_is_cancelled_gives_its_hold_back(tokens: Tokens, person: Person) -> None:
    async def spend(entered: asyncio.Event) -> None:
        async with tokens.aio.spend(*person, "generate_goal"):
            entered.set()
            await asyncio.Event().wait()

    async def use() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(spend(entered))
        await entered.wait()
        assert figures(tokens, person) == (17, 3, 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(use())
    assert figures(tokens, person) == (20, 0, 0)


@pytest.mark.parametrize("verb", ["spend", "reserve"])
@pytest.mark.parametrize("end", ["the task", "the event loop"])
def test_a_caller_who_is_cancelled_while_reserving_leaves_no_hold(
    tokens: Tokens,
    token_database: TestDatabase,
    person: Person,
    bystander: Bystander,
    verb: str,
    end: str,
) -> None:
    async def reserve() -> None:
        if verb == "reserve":
            await tokens.aio.reserve(*person, "generate_goal")
        else:
            async with tokens.aio.spend(*person, "generate_goal"):
                pytest.fail("the body ran")

    async def use() -> None:
        task = asyncio.create_task(reserve())
        await asyncio.to_thread(bystander.wait_for_a_verb)
        if end == "the task":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        # Else the loop cancels what is left, and closes.

    bystander.hold()
    asyncio.run(use())
    bystander.let_go()
    tokens.aio.close()  # waits for what its threads still do
    assert figures(tokens, person) == (20, 0, 0)
    with token_database.connect() as owner:
        ends = owner.execute("select state, count(*)::int from ai_token_reservations group by 1")
        assert ends.fetchall() == [("released", 1)]


def test_a_charge_that_is_under_way_is_finished(
    tokens: Tokens, person: Person, bystander: Bystander
) -> None:
    """The body is over and its result there: cancelling now does not make it free."""

    async def spend(leaving: asyncio.Event) -> None:
        async with tokens.aio.spend(*person, "generate_goal"):
            bystander.hold()
            leaving.set()

    async def use() -> None:
        leaving = asyncio.Event()
        task = asyncio.create_task(spend(leaving))
        await leaving.wait()
        await asyncio.to_thread(bystander.wait_for_a_verb)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(use())
    bystander.let_go()
    tokens.aio.close()
    assert figures(tokens, person) == (17, 0, 3)


def test_the_event_loop_stays_free(tokens: Tokens, person: Person, bystander: Bystander) -> None:
    async def use() -> int:
        charging = asyncio.create_task(tokens.aio.deduct_tokens(*person, "generate_goal"))
        # Were the loop blocked by the verb, nobody would let the verb go on.
        await asyncio.to_thread(bystander.wait_for_a_verb)
        assert not charging.done()
        bystander.let_go()
        return int((await charging).remaining_balance)

    bystander.hold()
    assert asyncio.run(use()) == 17
