"""Charges that share a commit, when one is stuck, wrong, killed or interrupted: no other pays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.db.charging import (
    GOAL,
    INSIGHT,
    PATIENT,
    STRATEGY,
    Join,
    Person,
    charge,
    commits,
    limit,
    seen,
)
from tests.db.crowd import Call, Crowd, in_line, until, waiting
from tokenlib import (
    DatabaseUnavailable,
    InvalidInput,
    Tokens,
    sharing,
)
from tokenlib.db import Database
from tokenlib.retry import Retry
from tokenlib.testing import TestDatabase

pytestmark = pytest.mark.usefixtures("books_close")


# Whoever is locked elsewhere ---------------------------------------------------------------------


def test_a_wallet_that_is_locked_elsewhere_holds_nobody_else_up(
    gate: Tokens, join: Join, token_database: TestDatabase, owner: psycopg.Connection, crowd: Crowd
) -> None:
    stuck, free = join("enterprise"), join("enterprise")
    for person in (stuck, free):
        gate.get_all_token_balances(person[0])
    with token_database.connect() as holder:
        holder.execute("begin")
        holder.execute("select from ai_tokens where organization_id = %s for update", (stuck[0],))
        calls = crowd.start(gate, [charge(gate, p, INSIGHT) for p in (stuck, free, stuck, free)])
        assert [calls[place].end().remaining_balance for place in (1, 3)] == [499, 498]
        # Whoever comes later goes past them too; or waits with them.
        later = crowd.start(gate, [charge(gate, free, INSIGHT), charge(gate, free, INSIGHT)])
        assert [call.end().remaining_balance for call in later] == [497, 496]
        until(lambda: len(gate.shared._lines) == 1)
        more = [Call(charge(gate, stuck, INSIGHT)) for _ in range(10)]
        [line] = gate.shared._lines.values()
        until(lambda: len(line.waiting) == 10)
        assert all(call.running for call in (calls[0], calls[2], *more))
        holder.execute("commit")
    left = [call.end().remaining_balance for call in (calls[0], calls[2])]
    assert left == [499, 498]
    assert sorted(call.end().remaining_balance for call in more) == list(range(488, 498))
    assert not gate.shared._lines
    # Waiting for the wallet they were still one crew, and so were those who came after them.
    assert sorted(commits(owner)) == [2, 2, 2, 10]


@pytest.mark.parametrize("name", ["user", "key"])
def test_a_person_or_key_that_is_in_other_hands_is_waited_for_by_its_own(
    name: str,
    gate: Tokens,
    join: Join,
    token_database: TestDatabase,
    owner: psycopg.Connection,
    crowd: Crowd,
) -> None:
    """As another process holds them while it charges with limits, or with that key."""
    mine, other = join("enterprise"), join("enterprise")
    for person in (mine, other):
        gate.get_all_token_balances(person[0])
        limit(requests_per_minute=100)(gate, person, owner)
    with token_database.connect() as holder:
        locked = {"user": f"user {mine[1]}", "key": "key k"}[name]
        holder.execute("begin")
        holder.execute(
            "select pg_advisory_xact_lock(hashtextextended(%s, hashtextextended(%s, 0)))",
            (locked, str(mine[0])),
        )
        calls = crowd.start(
            gate,
            [
                charge(gate, mine, INSIGHT, idempotency_key="k", limits=True),
                charge(gate, mine, INSIGHT, idempotency_key="other"),
                charge(gate, other, INSIGHT, idempotency_key="k", limits=True),
            ],
        )
        assert [call.end().remaining_balance for call in calls[1:]] == [499, 499]
        assert calls[0].running
        holder.execute("commit")
    assert calls[0].end().remaining_balance == 498


def test_a_caller_who_is_stuck_alone_holds_nobody_else_up(
    join: Join, token_database: TestDatabase
) -> None:
    """The lone caller waits for a lock; those who come meanwhile do not wait for the caller."""
    url = f"{token_database.url()}&options=-c%20lock_timeout%3D0"
    with Tokens(Database(url, pool_size=32, retry=PATIENT)) as gate:
        _stuck_alone(gate, join, token_database)


def _stuck_alone(gate: Tokens, join: Join, token_database: TestDatabase) -> None:
    stuck, free = join("enterprise"), join("enterprise")
    for person in (stuck, free):
        gate.get_all_token_balances(person[0])
    with token_database.connect() as holder:
        holder.execute("begin")
        holder.execute("select from ai_tokens where organization_id = %s for update", (stuck[0],))
        alone = Call(charge(gate, stuck, INSIGHT))
        until(lambda: len(gate.shared._main.begun) == 1)
        [begun] = gate.shared._main.begun
        calls = [Call(charge(gate, free, INSIGHT)) for _ in range(8)]
        assert sorted(call.end().remaining_balance for call in calls) == list(range(492, 500))
        assert gate.shared._main.begun[0] == begun  # the same attempt, all the while
        holder.execute("commit")
    assert alone.end().remaining_balance == 499


def test_who_waits_too_long_gives_up_uncharged(
    token_database: TestDatabase, pro: Person, owner: psycopg.Connection, monkeypatch: Any
) -> None:
    retry = Retry(deadline=0.2, again=False)
    with Tokens(Database(token_database.url(), retry=retry)) as gate:
        gate.get_all_token_balances(pro[0])
        monkeypatch.setattr("tokenlib.sharing._Line.free", lambda line, _now: not line.begun)
        monkeypatch.setattr(sharing, "AT_ONCE", 1)
        crowd = Crowd.__new__(Crowd)
        with crowd.holding(gate), pytest.raises(DatabaseUnavailable) as raised:
            gate.deduct_tokens(*pro, GOAL)
        assert raised.value.outcome == "not_charged"
        assert waiting(gate.shared) == 0
    assert commits(owner) == []


# Faults ------------------------------------------------------------------------------------------


def test_an_error_of_one_is_nobody_else_s(
    gate: Tokens, pro: Person, owner: psycopg.Connection, crowd: Crowd
) -> None:
    """A cost that no number holds fails the whole statement; then each is asked for alone."""
    gate.get_all_token_balances(pro[0])
    owner.execute("update ai_token_features set cost = %s where feature = %s", (2**62, STRATEGY))
    answers = crowd.run(
        gate, [charge(gate, pro, GOAL), charge(gate, pro, STRATEGY, 9), charge(gate, pro, GOAL)]
    )
    assert isinstance(answers[1], InvalidInput)
    assert sorted(seen(answers[place])[3] for place in (0, 2)) == [14, 17]


@pytest.fixture
def blocked(token_database: TestDatabase) -> Iterator[Callable[[], None]]:
    """Nobody can write the log. Call it to end the server process that tries."""
    with (
        token_database.connect() as holder,
        token_database.connect("postgres") as operator,
    ):
        holder.execute("begin")
        holder.execute("lock table ai_token_usage_log in share mode")

        def end() -> None:
            query = (
                "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type ="
                " 'Lock' and query like '%%deduct_many%%' and datname = %s"
            )
            until(lambda: bool(operator.execute(query, (token_database.name,)).fetchall()))
            holder.execute("commit")

        yield end


def test_a_server_process_that_dies_costs_nobody_twice(
    gate: Tokens, pro: Person, owner: psycopg.Connection, crowd: Crowd, blocked: Callable[[], None]
) -> None:
    """With a key it is asked again; without one the caller is told that nobody knows."""
    gate.get_all_token_balances(pro[0])
    keys = [*(f"k{n}" for n in range(10)), None, None]
    calls = crowd.start(gate, [charge(gate, pro, INSIGHT, idempotency_key=key) for key in keys])
    blocked()
    answers = [call.end() for call in calls]
    for answer in answers[10:]:
        assert isinstance(answer, DatabaseUnavailable)
        assert answer.outcome == "unknown"
    assert sorted(usage.remaining_balance for usage in answers[:10]) == list(range(40, 50))
    logged = owner.execute("select count(*) from ai_token_usage_log").fetchone()
    assert logged == (10,)


def test_a_reply_that_is_lost_after_the_commit_is_asked_for_again(
    gate: Tokens, pro: Person, owner: psycopg.Connection, crowd: Crowd, monkeypatch: Any
) -> None:
    gate.get_all_token_balances(pro[0])
    tuples = gate.database.tuples

    def lost(*args: Any) -> Any:
        tuples(*args)
        raise DatabaseUnavailable("no reply in time", "unknown")

    monkeypatch.setattr(gate.database, "tuples", lost)
    keys = ["a", "b", None]
    answers = crowd.run(gate, [charge(gate, pro, INSIGHT, idempotency_key=key) for key in keys])
    assert [usage.replayed for usage in answers[:2]] == [True, True]
    assert isinstance(answers[2], DatabaseUnavailable)
    assert gate.get_token_balance(pro[0], "general").balance == 47


def test_a_leader_who_is_interrupted_strands_nobody(
    gate: Tokens, pro: Person, crowd: Crowd, monkeypatch: Any
) -> None:
    gate.get_all_token_balances(pro[0])

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(gate.database, "tuples", interrupted)
    calls = [charge(gate, pro, INSIGHT, idempotency_key=f"k{n}") for n in range(4)]
    *answers, keyless = crowd.run(gate, [*calls, charge(gate, pro, INSIGHT)])
    assert isinstance(answers[0], KeyboardInterrupt)
    # Nobody knows whether the statement that was interrupted went through.
    assert isinstance(keyless, DatabaseUnavailable)
    assert keyless.outcome == "unknown"
    assert sorted(usage.remaining_balance for usage in answers[1:]) == [47, 48, 49]
    monkeypatch.undo()
    assert gate.deduct_tokens(*pro, INSIGHT).remaining_balance == 46


def test_who_is_interrupted_in_line_leaves_it(gate: Tokens, pro: Person, crowd: Crowd) -> None:
    """Told to lead in the very moment: then the next one leads."""
    gate.get_all_token_balances(pro[0])
    from tokenlib.sharing import Caller

    with crowd.holding(gate):
        first = Caller({"organization_id": pro[0]})
        assert not gate.shared.enter(first)
        call = Call(charge(gate, pro, INSIGHT))
        in_line(gate.shared, 2)
    assert first.crew
    gate.shared.leave(first)
    assert call.end().remaining_balance == 49


def test_who_is_interrupted_while_asked_for_keeps_the_answer_from_nobody(
    gate: Tokens, pro: Person, owner: psycopg.Connection, crowd: Crowd, monkeypatch: Any
) -> None:
    """They would have been woken second, and have woken the third."""
    gate.get_all_token_balances(pro[0])
    asked: list[sharing.Caller] = []
    enter = gate.shared.enter

    def entered(caller: sharing.Caller) -> bool:
        asked.append(caller)
        return enter(caller)

    ask = gate.database.tuples

    def interrupting(*args: Any) -> Any:
        _, _, second, _ = asked  # after the one who holds the line
        second.error = DatabaseUnavailable("interrupted", "unknown")
        second.told = True
        second.wake()
        until(lambda: second.gone)
        return ask(*args)

    monkeypatch.setattr(gate.shared, "enter", entered)
    monkeypatch.setattr(gate.database, "tuples", interrupting)
    monkeypatch.setattr(sharing, "STUCK_SECONDS", 600.0)  # nobody looks up by themselves
    first, second, third = crowd.run(gate, [charge(gate, pro, INSIGHT)] * 3)
    assert isinstance(second, DatabaseUnavailable)
    assert [first.remaining_balance, third.remaining_balance] == [49, 47]
    assert commits(owner) == [3]


def test_a_forked_process_finds_no_line(pro: Person) -> None:
    """Its parent held the lock, and had somebody at work."""
    script = """
import os, sys
from tokenlib.sharing import Caller, SharedCommit
shared = SharedCommit(None)
assert shared.enter(Caller({"organization_id": None}))
shared._mutex.acquire()
child = os.fork()
if not child:
    os._exit(0 if shared.enter(Caller({"organization_id": None})) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)
