"""The short way of a plain charge: one commit for many, and never more than the long way allows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.api.callers import SETTINGS
from tests.api.test_wire import serving
from tokenlib.api import create_app
from tokenlib.config import Settings
from tokenlib.db import Database
from tokenlib.domain import Scope
from tokenlib.errors import DatabaseUnavailable
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Api, Join, World

CALLERS = 16
LOCKS = "select count(*) from pg_stat_activity where datname = %s and wait_event_type = 'Lock'"


@pytest.fixture
def url(tokens: Tokens, tmp_path: Path) -> Iterator[str]:
    """An API on a real port."""
    tokens.pepper = SETTINGS["key_pepper"]
    app = create_app(lambda: tokens, Settings(data_dir=tmp_path, **SETTINGS))
    with serving(Starlette(routes=[Mount("/api", app=app)])) as port:
        yield f"http://127.0.0.1:{port}/api/v1"


def charge(url: str, world: World, key: str, **changes: Any) -> httpx2.Response:
    return httpx2.post(
        f"{url}{world.path}/charges",
        headers=world.keys["own"] | {"Idempotency-Key": key},
        json={"feature": "generate_insight", "userId": str(world.user)} | changes,
        timeout=60,
    )


def commits(database: TestDatabase) -> tuple[int, int]:
    """How many charges the log has, and of how many transactions."""
    with database.connect() as owner:
        row = owner.execute(
            "select count(*), count(distinct xmin::text) from ai_token_usage_log"
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def test_callers_of_one_moment_share_a_commit(
    url: str, world: World, token_database: TestDatabase, tokens: Tokens
) -> None:
    with ThreadPoolExecutor(CALLERS) as callers, token_database.connect() as other:
        with other.transaction(), token_database.connect("postgres") as watch:
            other.execute("select from ai_tokens for update")
            asked = [callers.submit(charge, url, world, f"k{n}") for n in range(CALLERS)]
            deadline = time.monotonic() + 30
            while watch.execute(LOCKS, (token_database.name,)).fetchone() == (0,):
                assert time.monotonic() < deadline
        answers = [each.result() for each in asked]
    assert {answer.status_code for answer in answers} == {201}
    told = [answer.json() for answer in answers]
    assert sorted(each["remainingBalance"] for each in told) == list(range(50 - CALLERS, 50))
    charges, transactions = commits(token_database)
    assert charges == CALLERS
    assert transactions < CALLERS
    assert tokens.verify().closed


def test_each_has_its_own_answer_when_the_balance_runs_out_on_the_way(
    url: str, world: World, tokens: Tokens
) -> None:
    with ThreadPoolExecutor(CALLERS) as callers:
        answers = list(
            callers.map(lambda n: charge(url, world, f"k{n}", units=1 + n % 7), range(40))
        )
    spent = sum(each.json()["tokensDeducted"] for each in answers if each.status_code == 201)
    refused = [each.json() for each in answers if each.status_code == 402]
    assert len(refused) + sum(each.status_code == 201 for each in answers) == 40
    assert {each["code"] for each in refused} == {"insufficient_tokens"}
    assert tokens.get_token_balance(world.organization, "general").balance == 50 - spent
    assert all(each["needed"] > 50 - spent for each in refused)
    assert tokens.verify().closed


def test_a_wallet_in_other_hands_holds_nobody_else(
    url: str, world: World, token_database: TestDatabase
) -> None:
    def elsewhere(n: int) -> int:
        answer = httpx2.post(
            f"{url}/organizations/{world.other}/charges",
            headers=world.keys["all"] | {"Idempotency-Key": f"other {n}"},
            json={"feature": "generate_insight", "userId": str(world.other_user)},
            timeout=60,
        )
        return answer.status_code

    with ThreadPoolExecutor(4) as callers, token_database.connect() as other:
        with other.transaction():
            other.execute(
                "select from ai_tokens where organization_id = %s for update", (world.organization,)
            )
            stuck = [callers.submit(charge, url, world, f"k{n}") for n in range(3)]
            assert [elsewhere(n) for n in range(10)] == [201] * 10
            assert not any(each.done() for each in stuck)
        assert [each.result().status_code for each in stuck] == [201] * 3


def test_the_short_way_and_the_long_one_answer_alike(
    api: Api, world: World, tokens: Tokens
) -> None:
    path = f"{world.path}/charges"
    body = {"feature": "generate_goal", "userId": str(world.user), "metadata": {"a": [1, "ü"]}}
    short = api.post(path, world.keys["own"], key="k", **body)
    again = api.post(path, world.keys["own"], key="k", **body)
    assert (short.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in short.headers
    assert list(again.json().items()) == list(short.json().items())
    told = {"date", "content-length", "idempotency-replayed", "x-request-id"}
    assert {k: v for k, v in again.headers.items() if k not in told} == {
        k: v for k, v in short.headers.items() if k not in told
    }
    kept = tokens.database.rows("select metadata from public.ai_token_usage_log")
    assert kept == [{"metadata": {"a": [1, "ü"]}}]


def test_the_key_of_a_charge_is_good_for_nothing_else(api: Api, world: World) -> None:
    own, user = world.keys["own"], str(world.user)
    path = f"{world.path}/charges"
    charged = api.post(path, own, key="k", feature="generate_goal", userId=user).json()
    held = api.post(f"{world.path}/reservations", own, feature="generate_goal", userId=user).json()
    for place, body in (
        (path, {"feature": "generate_goal", "userId": user, "units": 2}),
        (f"{path}/{charged['id']}/refund", {"reason": "a test"}),
        (f"{world.path}/reservations/{held['id']}/release", {}),
        (f"{world.path}/plan", {"plan": "enterprise", "reason": "a test"}),
    ):
        answer = api.post(place, own, key="k", **body)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_conflict"), place


def test_a_key_is_what_it_is_at_the_moment_of_the_charge(
    api: Api, world: World, tokens: Tokens, token_clock: TestClock
) -> None:
    def status(secret: str | None) -> int:
        who = {"Authorization": f"Bearer {secret}"}
        body = {"feature": "generate_insight", "userId": str(world.user)}
        return api.post(f"{world.path}/charges", who, **body).status_code

    made = tokens.staff_create_key(world.admin, "A", ["spend"], reason="a test")
    assert status(made.secret) == 201
    turned = tokens.staff_rotate_key(
        world.admin, made.id, overlap=timedelta(hours=1), reason="a test"
    )
    assert (status(made.secret), status(turned)) == (201, 201)
    token_clock.advance(timedelta(hours=1, seconds=1))
    assert (status(made.secret), status(turned)) == (401, 201)
    tokens.staff_revoke_key(world.admin, made.id, reason="a test")
    assert status(turned) == 401
    ends = token_clock.now() + timedelta(hours=1)
    short = tokens.staff_create_key(
        world.admin, "B", ["spend"], world.organization, expires_at=ends, reason="a test"
    )
    assert status(short.secret) == 201
    token_clock.advance(timedelta(hours=1))
    assert status(short.secret) == 401
    refused: list[tuple[list[Scope], UUID | None, int]] = [
        (["read", "check", "admin"], None, 403),
        (["spend"], world.other, 404),
    ]
    for scopes, place, expected in refused:
        key = tokens.staff_create_key(world.admin, "C", scopes, place, reason="a test")
        assert status(key.secret) == expected
    assert tokens.get_token_balance(world.organization, "general").total_used == 5


@pytest.mark.parametrize(
    "limit",
    [
        {"requests_per_minute": 2},
        {"seconds_between_requests": 1000},
        {"tokens_per_request": 1},
        {"output_units_per_request": 9},
        {"limit_users": True},
    ],
    ids=lambda limit: next(iter(limit)),
)
def test_limits_hold_on_the_short_way(
    api: Api, world: World, tokens: Tokens, limit: dict[str, Any]
) -> None:
    key = tokens.staff_create_key(world.admin, "K", ["spend"], reason="a test", **limit)
    who = {"Authorization": f"Bearer {key.secret}"}
    body: dict[str, Any] = {"feature": "analyze_strategy", "userId": str(world.user)}
    body |= {"metadata": {"output_units": 10}}
    statuses = [api.post(f"{world.path}/charges", who, **body).status_code for _ in range(3)]
    assert statuses[-1] == 429
    assert statuses.count(201) == (
        0
        if any(name.endswith("per_request") for name in limit)
        else limit.get("requests_per_minute", 1)
    )


def test_the_limit_of_the_organization_holds_on_the_short_way(
    api: Api, world: World, tokens: Tokens
) -> None:
    tokens.staff_set_request_limit(world.admin, world.organization, 2, reason="a test")
    body = {"feature": "generate_insight", "userId": str(world.user)}
    statuses = [
        api.post(f"{world.path}/charges", world.keys["own"], **body).status_code for _ in range(3)
    ]
    assert statuses == [201, 201, 429]


def test_old_callers_share_commits_too(url: str, join: Join, token_database: TestDatabase) -> None:
    member = join("enterprise")
    with token_database.connect() as owner:
        owner.execute("update ai_token_limits set requests_per_minute = 1000000")
        owner.execute("update ai_token_limits set seconds_between_requests = null")

    def ask(n: int) -> httpx2.Response:
        return httpx2.post(
            f"{url}/tokens/check-balance",
            headers=member.signed() | {"Idempotency-Key": f"k{n % 10}"},
            json=member.body(action="deduct"),
            timeout=60,
        )

    with ThreadPoolExecutor(CALLERS) as callers:
        answers = list(callers.map(ask, range(30)))
    assert {answer.status_code for answer in answers} == {200}
    left = {answer.json()["remainingBalance"] for answer in answers}
    assert left == {200 - 3 * (n + 1) for n in range(10)}
    assert answers[0].json()["message"] == "Used 3 tokens for generate_goal"
    assert commits(token_database)[0] == 10


class Lossy(Database):
    """Loses the reply to each shared commit."""

    lost = 0

    def once(self, statement: str, *args: Any, **named: Any) -> Any:
        """As the database's, but for the reply."""
        rows = super().once(statement, *args, **named)
        if "api_charges" in statement:
            self.lost += 1
            raise DatabaseUnavailable("lost", "unknown")
        return rows


def test_a_lost_reply_is_asked_for_again_with_the_key_and_not_without(
    serve: Any, world: World, token_database: TestDatabase
) -> None:
    database = Lossy(token_database.url())
    with Tokens(database, pepper=SETTINGS["key_pepper"]) as tokens:
        client = serve(lambda: tokens)
        answer = client.post(
            f"/api/v1{world.path}/charges",
            headers=world.keys["own"] | {"Idempotency-Key": "k"},
            json={"feature": "generate_goal", "userId": str(world.user)},
        )
        assert answer.status_code == 201
        assert answer.headers["idempotency-replayed"] == "true"
        old = {"organizationId": str(world.other), "featureUsed": "generate_goal"}
        unclear = client.post(
            "/api/v1/tokens/check-balance",
            headers=world.other_member,
            json=old | {"action": "deduct"},
        )
        assert unclear.status_code == 503
    assert database.lost == 2
    assert commits(token_database)[0] == 2  # each once, whatever was heard of it


def test_a_cancelled_caller_strands_nobody(
    url: str, world: World, token_database: TestDatabase
) -> None:
    with token_database.connect() as other, token_database.connect("postgres") as watch:
        with other.transaction():
            other.execute("select from ai_tokens for update")
            with pytest.raises(httpx2.TimeoutException):
                httpx2.post(
                    f"{url}{world.path}/charges",
                    headers=world.keys["own"] | {"Idempotency-Key": "gone"},
                    json={"feature": "generate_insight", "userId": str(world.user)},
                    timeout=0.5,
                )
            later: list[int] = []
            caller = threading.Thread(
                target=lambda: later.append(charge(url, world, "later").status_code)
            )
            caller.start()
            deadline = time.monotonic() + 30
            while watch.execute(LOCKS, (token_database.name,)).fetchone() == (0,):
                assert time.monotonic() < deadline
        caller.join(60)
    assert later == [201]
