"""Charges of callers who ask at the same moment: one commit, and each has their own answer."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.db.charging import (
    GOAL,
    INSIGHT,
    PATIENT,
    Join,
    Person,
    charge,
    commits,
    limit,
    seen,
)
from tests.db.crowd import Call, Crowd, in_line
from tokenlib import (
    IdempotencyConflict,
    InsufficientTokens,
    Settings,
    Tokens,
    connect,
    sharing,
)
from tokenlib.db import Database
from tokenlib.testing import TestDatabase

pytestmark = pytest.mark.usefixtures("books_close")


# One commit --------------------------------------------------------------------------------------


def test_each_has_an_answer_of_their_own_from_one_commit(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd
) -> None:
    person = join("enterprise")
    gate.deduct_tokens(*person, INSIGHT)
    limit(requests_per_minute=10**6, tokens_per_request=10, failed_attempts=5)(gate, person, owner)
    keys = [str(uuid4()) for _ in range(32)]
    answers = crowd.run(
        gate, [charge(gate, person, INSIGHT, idempotency_key=k, limits=True) for k in keys]
    )
    assert [usage.remaining_balance for usage in answers] == list(range(498, 466, -1))
    rows = owner.execute(
        "select id, idempotency_key, remaining_balance, created_at from ai_token_usage_log"
        " where number > 1 order by number"
    ).fetchall()
    assert rows == [
        (usage.id, key, usage.remaining_balance, usage.created_at)
        for usage, key in zip(answers, keys, strict=True)
    ]
    assert commits(owner) == [1, 32]


def test_a_lone_caller_asks_alone(gate: Tokens, pro: Person, monkeypatch: Any) -> None:
    monkeypatch.setattr(gate.database, "tuples", None)
    for _ in range(3):
        assert gate.deduct_tokens(*pro, GOAL).tokens_deducted == 3


def test_half_of_the_callers_do_not_wait_for_the_other_half(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd, monkeypatch: Any
) -> None:
    """Of eight who were here at once four are worth a batch beside the one at work, three not."""
    person = join("enterprise")
    gate.get_all_token_balances(person[0])
    crowd.run(gate, [charge(gate, person, INSIGHT)] * 7)
    monkeypatch.setattr(sharing, "AT_ONCE", 2)
    with crowd.holding(gate):
        half = [Call(charge(gate, person, INSIGHT)) for _ in range(3)]
        in_line(gate.shared, 3)
        assert all(call.running for call in half)
        half.append(Call(charge(gate, person, INSIGHT)))
        assert sorted(call.end().remaining_balance for call in half) == list(range(489, 493))
    assert commits(owner) == [7, 4]


def test_a_third_batch_waits(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd, monkeypatch: Any
) -> None:
    """However many are in line while two are at work, they go as one when one of these ends."""
    person = join("enterprise")
    gate.get_all_token_balances(person[0])
    monkeypatch.setattr(sharing, "AT_ONCE", 2)
    with crowd.holding(gate):
        with crowd.holding(gate, beside=True):
            many = [Call(charge(gate, person, INSIGHT)) for _ in range(40)]
            in_line(gate.shared, 40)
            assert all(call.running for call in many)
        assert sorted(call.end().remaining_balance for call in many) == list(range(460, 500))
    assert commits(owner) == [40]


def test_turned_off_nobody_waits_in_line(
    token_database: TestDatabase, crowd: Crowd, tmp_path: Path
) -> None:
    url = token_database.url().replace("+psycopg", "")
    settings = Settings(data_dir=tmp_path, database_url=url, shared_commit=False)
    with connect(settings=settings) as gate:
        organization = gate.create_organization("Acme", "pro")
        person = organization, gate.add_member(organization, "A member", "member@example.org")
        with crowd.holding(gate):
            assert gate.deduct_tokens(*person, GOAL).remaining_balance == 17
            assert asyncio.run(gate.aio.deduct_tokens(*person, GOAL)).remaining_balance == 14


def test_costs_keys_units_and_metadata_of_each_are_their_own(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd
) -> None:
    """Against the plain sum in order of arrival, on five wallets of three organizations."""
    chance = random.Random(19)  # noqa: S311
    people = [join("enterprise") for _ in range(3)]
    cost = {name: each.cost for name, each in gate.catalog().features.items()}
    kind = {name: each.token_type for name, each in gate.catalog().features.items()}
    for person in people:
        gate.get_all_token_balances(person[0])
    for _ in range(3):
        asked = [
            (
                chance.choice(people),
                chance.choice(list(cost)),
                chance.randint(1, 3),
                chance.choice(
                    [None, {"n": chance.random(), "text": 'a "b" \\ {é} 🙂', "l": [None]}]
                ),
                chance.choice([None, f"key {uuid4()} {{}}\"',\\"]),
            )
            for _ in range(40)
        ]
        balances = {
            (person, wallet.token_type): wallet.balance
            for person in people
            for wallet in gate.get_all_token_balances(person[0])
        }
        answers = crowd.run(gate, [charge(gate, *request) for request in asked])
        for (person, feature, units, metadata, key), usage in zip(asked, answers, strict=True):
            needed = cost[feature] * units
            balances[person, kind[feature]] -= needed
            found = owner.execute(
                "select organization_id, user_id, token_type, feature_used, units,"
                " tokens_deducted, remaining_balance, metadata, idempotency_key"
                " from ai_token_usage_log where id = %s",
                (usage.id,),
            ).fetchone()
            left = balances[person, kind[feature]]
            assert found == (*person, kind[feature], feature, units, needed, left, metadata, key)
            assert seen(usage) == (kind[feature], needed, 0, left, False)
    assert max(commits(owner)) == 40


def test_a_balance_that_runs_out_pays_for_those_that_came_first(
    gate: Tokens, pro: Person, owner: psycopg.Connection, crowd: Crowd
) -> None:
    """20 of goal_generation: of 3, 9, 6, 6 and 2 the second 6 does not fit, the 2 does."""
    gate.get_all_token_balances(pro[0])
    calls = [charge(gate, pro, GOAL, units) for units in (1, 3, 2, 2)]
    other = charge(gate, pro, INSIGHT)
    answers = crowd.run(gate, [*calls, other])
    assert [seen(a)[3] for a in (*answers[:3], answers[4])] == [17, 8, 2, 49]
    refused = answers[3]
    assert isinstance(refused, InsufficientTokens)
    assert (refused.needed, refused.available) == (6, 2)
    assert commits(owner) == [4]
    refusals = owner.execute("select rule, count from ai_token_refusals").fetchall()
    assert refusals == [("insufficient_tokens", 1)]


def test_from_many_threads_few_commits_make_many_charges(
    gate: Tokens, join: Join, owner: psycopg.Connection
) -> None:
    """Nobody holds the line here: 16 threads as they come, on one wallet and on many."""
    people = [join("enterprise") for _ in range(4)]
    for person in people:
        gate.get_all_token_balances(person[0])

    def work(place: int) -> int:
        chance = random.Random(place)  # noqa: S311
        return sum(
            gate.deduct_tokens(
                *chance.choice((people[0], *people)), INSIGHT, idempotency_key=str(uuid4())
            ).tokens_deducted
            for _ in range(20)
        )

    calls = [Call(partial(work, place)) for place in range(16)]
    assert [call.end() for call in calls] == [20] * 16
    made = commits(owner)
    assert sum(made) == 320
    assert len(made) <= 160


# Keys --------------------------------------------------------------------------------------------


def test_a_key_that_comes_twice_is_charged_once(
    gate: Tokens, pro: Person, join: Join, owner: psycopg.Connection, crowd: Crowd
) -> None:
    gate.get_all_token_balances(pro[0])
    once = charge(gate, pro, GOAL, idempotency_key="k")
    answers = crowd.run(
        gate,
        [
            once,
            charge(gate, pro, INSIGHT, idempotency_key="k"),
            once,
            charge(gate, join("pro"), GOAL, idempotency_key="k"),
            once,
        ],
    )
    assert isinstance(answers.pop(1), IdempotencyConflict)
    other = answers.pop(2)
    assert [usage.replayed for usage in answers] == [False, True, True]
    assert len({usage.id for usage in answers}) == 1
    assert not other.replayed
    again = crowd.run(gate, [once, charge(gate, pro, INSIGHT)])
    assert (again[0].id, again[0].replayed) == (answers[0].id, True)
    assert gate.get_token_balance(pro[0], "goal_generation").balance == 17


def test_a_key_that_is_held_is_in_progress(gate: Tokens, pro: Person, crowd: Crowd) -> None:
    held = gate.reserve(*pro, GOAL, idempotency_key="k")
    answers = crowd.run(
        gate, [charge(gate, pro, GOAL, idempotency_key="k"), charge(gate, pro, GOAL)]
    )
    assert type(answers[0]).__name__ == "InProgress"
    gate.release(held)
    gate.grant(pro[0], "forecast", 9, idempotency_key="given")
    answers = crowd.run(
        gate, [charge(gate, pro, GOAL, idempotency_key="given"), charge(gate, pro, GOAL)]
    )
    assert isinstance(answers[0], IdempotencyConflict)


def test_two_gates_share_keys_and_a_wallet(
    gate: Tokens, token_database: TestDatabase, pro: Person, owner: psycopg.Connection, crowd: Crowd
) -> None:
    """As two processes do: each with a crew of its own, and the same keys in both."""
    gate.get_all_token_balances(pro[0])
    keys = [f"k{n}" for n in range(20)]
    with Tokens(Database(token_database.url(), pool_size=32, retry=PATIENT)) as other:
        with crowd.holding(gate), crowd.holding(other):
            calls = []
            for each in (gate, other):
                for place, key in enumerate(keys):
                    calls.append(Call(charge(each, pro, INSIGHT, idempotency_key=key)))
                    in_line(each.shared, place + 1)
        answers = [call.end() for call in calls]
    assert len({usage.id for usage in answers}) == 20
    assert sum(usage.replayed for usage in answers) == 20
    assert gate.get_token_balance(pro[0], "general").balance == 30
    assert owner.execute("select count(*) from ai_token_usage_log").fetchone() == (20,)
