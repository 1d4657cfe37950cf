"""Every pair of verbs that can meet on a wallet, at once, from threads and processes.

What was answered, and what the books hold afterwards, must be what some order of the calls, one
after the other, gives in the model in plain Python.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import combinations, combinations_with_replacement, count, permutations
from threading import local
from typing import Any, Protocol
from uuid import uuid4

import pytest

from tests.db.books_model import PERIOD
from tests.db.race_verbs import HOUR, KEYED, VERBS, Answer, Call, Model, Scene, Seat
from tokenlib import ReservationOver, TokenlibError
from tokenlib.embedded import Embedded
from tokenlib.testing import TestDatabase

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROUNDS = 5


class Gate(Protocol):
    """What calls are let through by, all at once."""

    def wait(self) -> int: ...


# Who calls: two threads here, two processes ------------------------------------------------------

_here = local()


def sit(url: str, owner: str, gate: Gate) -> None:
    """Give the calling thread, or the process that it is all of, its seat."""
    _here.seat, _here.gate = Seat(url, owner), gate


def leave() -> None:
    _here.seat.leave()


def call(verb: Call, scene: Scene, place: int) -> Answer:
    """Once everybody has come: call, and say what came of it."""
    _here.gate.wait()
    try:
        return verb(_here.seat, scene, place)
    except ReservationOver as error:
        return ("over", error.state)
    except TokenlibError as error:
        rule = getattr(error, "rule", None)
        return ("refused", rule) if rule else (type(error).__name__,)


@dataclass
class Ring:
    """Four seats on one database, and the time of the next scene."""

    seat: Seat
    seats: list[Executor]
    scenes: Iterator[int]

    def scene(self) -> Scene:
        tokens = self.seat.tokens
        start = START + next(self.scenes) * 2 * PERIOD
        self.seat.clock(start)
        organization = tokens.create_organization("Race", "pro")
        user = tokens.add_member(organization, "A member", "member@example.org")
        tokens.grant(organization, "general", 6, expires_at=start + HOUR / 2)
        tokens.upgrade_tokens(organization, "shared", 20)
        usage = tokens.deduct_tokens(organization, user, "generate_insight", 10)
        held = tokens.reserve(organization, user, "generate_insight", 8, hold_for=HOUR)
        return Scene(organization, user, usage, held, start)

    def run(self, calls: Sequence[tuple[Call, int]], scene: Scene) -> list[Answer]:
        """All four at once."""
        made = [
            seat.submit(call, verb, scene, place)
            for seat, (verb, place) in zip(self.seats, calls, strict=True)
        ]
        return [answer.result(60) for answer in made]


def placed(verbs: Sequence[str]) -> list[tuple[str, int]]:
    """A verb that comes several times has the places 0, 1, …"""
    return [(verb, verbs[:number].count(verb)) for number, verb in enumerate(verbs)]


@pytest.fixture(scope="module")
def ring(token_server: Embedded) -> Iterator[Ring]:
    """A database of this file's own; no deadlock has been seen on it in the end."""
    database = TestDatabase(token_server, f"races_{uuid4().hex[:12]}")
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        postgres = TestDatabase(token_server, "postgres").connect("postgres")
        root = stack.enter_context(postgres)
        root.execute(
            f'create database "{database.name}" template tokenlib_template strategy file_copy'
        )
        stack.callback(root.execute, f'drop database "{database.name}" with (force)')
        owner = token_server.conninfo(database.name, "tokenlib_owner")
        gate = spawn.Barrier(4, timeout=60)
        seat = (database.url(), owner, gate)
        seats: list[Executor] = [
            ThreadPoolExecutor(1, initializer=sit, initargs=seat),
            ProcessPoolExecutor(1, mp_context=spawn, initializer=sit, initargs=seat),
            ThreadPoolExecutor(1, initializer=sit, initargs=seat),
            ProcessPoolExecutor(1, mp_context=spawn, initializer=sit, initargs=seat),
        ]
        for executor in seats:
            stack.enter_context(executor)
            stack.callback(executor.submit, leave)  # before its shutdown, which waits for it
        here = Seat(database.url(), owner)
        stack.callback(here.leave)
        yield Ring(here, seats, count())
        deadlocks = root.execute(
            "select deadlocks from pg_stat_database where datname = %s", (database.name,)
        ).fetchone()
        assert deadlocks == (0,)


# What the books hold -----------------------------------------------------------------------------

ENTRIES = """
select token_type, 'log', null, tokens_deducted, tokens_waived, null
from ai_token_usage_log where organization_id = %(id)s
union all
select token_type, kind, effective_at, balance_change, reserved_change, used_change
from ai_token_events where organization_id = %(id)s and token_type in ('general', 'shared')
"""
CHANGES = """
select action, before - 'user_id' - 'until', after - 'user_id' - 'until' from ai_token_changes
where organization_id = %(id)s
"""
REFUSALS = """
select rule, sum(count)::int from ai_token_refusals where organization_id = %(id)s group by rule
"""


def books(seat: Seat, scene: Scene) -> tuple[Any, ...]:
    """Figures, entries, refusals and changes of a scene, with all settled that is due."""
    wallets = {w.token_type: w for w in seat.tokens.get_all_token_balances(scene.organization)}
    params = {"id": scene.organization}
    entries: dict[str, Counter[Answer]] = {"general": Counter(), "shared": Counter()}
    for token_type, kind, at, *changes in seat.owner.execute(ENTRIES, params):
        entry = ("log", *changes[:2]) if kind == "log" else (kind, at, *changes)
        entries[token_type][entry] += 1
    changed = Counter(
        (action, str(before or {"mode": None}), str(after))
        for action, before, after in seat.owner.execute(CHANGES, params)
    )
    figures = [
        (wallets[name].balance, wallets[name].reserved, wallets[name].total_used)
        for name in ("general", "shared")
    ]
    refusals: dict[str, int] = dict(seat.owner.execute(REFUSALS, params).fetchall())
    return figures, list(entries.values()), refusals, changed


def in_order(scene: Scene, order: tuple[tuple[str, int, Answer], ...]) -> tuple[Any, ...] | None:
    """What the model's books hold after these, if it gives the same answers."""
    model = Model(scene.start)
    for verb, place, answer in order:
        if VERBS[verb][1](model, place) != answer:
            return None
    wallets = (model.own, model.shared)
    return (
        [wallet.figures for wallet in wallets],
        [wallet.entries for wallet in wallets],
        dict(model.account.refusals),
        model.changes,
    )


def pairs() -> Iterator[Any]:
    """All of them; each verb at least once in a few, which are not left to the thorough run."""
    verbs = list(VERBS)
    for one, other in combinations_with_replacement(verbs, 2):
        near = (verbs.index(other) - verbs.index(one)) % (len(verbs) - 1) <= 1
        yield pytest.param(one, other, marks=() if near else pytest.mark.thorough)


@pytest.mark.parametrize(("one", "other"), list(pairs()))
def test_a_pair_of_verbs_at_once_is_as_if_one_after_the_other(
    ring: Ring, one: str, other: str
) -> None:
    for number in range(ROUNDS):
        # Twice each; who calls from a process and who from a thread takes turns.
        verbs = ((one, other, other, one), (other, one, one, other))[number % 2]
        scene = ring.scene()
        calls = placed(verbs)
        answers = ring.run([(VERBS[verb][0], place) for verb, place in calls], scene)
        found = books(ring.seat, scene)
        said = [(*made, answer) for made, answer in zip(calls, answers, strict=True)]
        assert found in map(partial(in_order, scene), permutations(said)), (said, found)
        verified = ring.seat.tokens.verify(scene.organization)
        assert verified.closed, verified.problems


WITH_KEY = """
select 'deduct' from ai_token_usage_log where idempotency_key = %(key)s
union all
select 'reserve' from ai_token_reservations where idempotency_key = %(key)s
union all
select kind from ai_token_events where idempotency_key = %(key)s
"""


@pytest.mark.parametrize(("one", "other"), list(combinations(KEYED, 2)))
def test_one_key_for_two_verbs_on_two_wallets_at_once_passes_once(
    ring: Ring, one: str, other: str
) -> None:
    for number in range(2 * ROUNDS):
        verbs = ((one, other, other, one), (other, one, one, other))[number % 2]
        scene = ring.scene()
        answers = ring.run([(KEYED[verb], 0) for verb in verbs], scene)
        [[done]] = ring.seat.owner.execute(WITH_KEY, {"key": scene.key}).fetchall()
        for verb, answer in zip(verbs, answers, strict=True):
            # The same request again has the first answer, or is told that it goes on.
            right = {("ok",), ("InProgress",)} if verb == done else {("IdempotencyConflict",)}
            assert answer in right, (verbs, answers, done)
        assert ring.seat.tokens.verify(scene.organization).closed
