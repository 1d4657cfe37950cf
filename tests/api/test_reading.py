"""Balances, stats, history and stories: as the member, a key, or staff; and nobody else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tokenlib.testing import TestClock
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Api, World


def everyone(world: World) -> list[dict[str, str]]:
    """Who may read in the first organization."""
    keys = [world.keys[name] for name in ("all", "own", "read")]
    return [world.member, world.colleague, *world.staff.values(), *keys]


def test_balances_and_stats(api: Api, world: World, tokens: Tokens) -> None:
    tokens.deduct_tokens(world.organization, world.user, "generate_goal")
    tokens.reserve(world.organization, world.user, "generate_goal")
    for who in everyone(world):
        [goal] = [
            wallet
            for wallet in api.get(f"{world.path}/balances", who).json()["wallets"]
            if wallet["tokenType"] == "goal_generation"
        ]
        assert (goal["balance"], goal["reserved"], goal["totalUsed"]) == (14, 3, 3)
        assert (goal["totalAllocated"], goal["allowance"]) == (20, 20)
        assert api.get(f"{world.path}/balances/goal_generation", who).json() == goal
        stats = api.get(f"{world.path}/stats", who).json()
        assert (stats["totalBalance"], stats["totalReserved"], stats["totalUsed"]) == (244, 3, 3)
        assert len(stats["wallets"]) == 5
    assert api.get(f"{world.path}/balances/nothing", world.member).status_code == 404


def test_a_period_that_has_ended_is_refreshed(
    api: Api, world: World, tokens: Tokens, token_clock: TestClock
) -> None:
    tokens.deduct_tokens(world.organization, world.user, "generate_goal")
    token_clock.advance(timedelta(days=31))
    assert api.get(f"{world.path}/stats", world.keys["read"]).json()["totalUsed"] == 0


def test_history_goes_on_where_it_stopped(
    api: Api, world: World, tokens: Tokens, token_clock: TestClock
) -> None:
    ids = []
    for feature in ("generate_goal", "generate_insight", "generate_insight", "analyze_strategy"):
        usage = tokens.deduct_tokens(
            world.organization, world.user, feature, metadata={"feature": feature}
        )
        ids.append(str(usage.id))
    tokens.deduct_tokens(world.other, world.other_user, "generate_goal")
    tokens.refund(ids[0], "empty", organization=world.organization)
    for who in everyone(world):
        seen: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(5):
            params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = api.get(f"{world.path}/history", who, **params).json()
            seen += page["rows"]
            cursor = page["nextCursor"]
            if cursor is None:
                break
        assert [row["id"] for row in seen] == ids[::-1]
        assert seen[0]["metadata"] == {"feature": "analyze_strategy"}
        assert [row["refunded"] for row in seen] == [False, False, False, True]


def test_history_is_filtered(
    api: Api, world: World, tokens: Tokens, token_clock: TestClock
) -> None:
    began = token_clock.now()
    tokens.deduct_tokens(world.organization, world.user, "generate_goal")
    token_clock.advance(timedelta(hours=1))
    later = token_clock.now()
    tokens.deduct_tokens(world.organization, world.user, "generate_insight")

    def features(**filters: Any) -> list[str]:
        answer = api.get(f"{world.path}/history", world.member, **filters)
        assert answer.status_code == 200, answer.text
        return [row["feature"] for row in answer.json()["rows"]]

    assert features(feature="generate_goal") == ["generate_goal"]
    assert features(since=later.isoformat()) == ["generate_insight"]
    assert features(since=began.isoformat(), until=later.isoformat()) == ["generate_goal"]
    assert features(userId=str(world.user)) == ["generate_insight", "generate_goal"]
    assert features(userId=str(world.other_user)) == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": "MjAyNi0wMS0wMSBub25l"}, "cursor"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"organizationId": "x"}, "organizationId"),
        ({"order": "asc"}, "order"),
    ],
)
def test_a_query_that_is_wrong_is_told(
    api: Api, world: World, query: dict[str, Any], field: str
) -> None:
    answer = api.get(f"{world.path}/history", world.member, **query)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == field


def test_how_a_balance_came_to_be(api: Api, world: World, tokens: Tokens) -> None:
    tokens.deduct_tokens(world.organization, world.user, "generate_goal")
    for who in everyone(world):
        story = api.get(f"{world.path}/explain/goal_generation", who).json()
        assert (story["opening"], story["balance"], story["used"]) == (20, 17, 3)
        assert story["lines"] == [
            {
                "kind": "charge",
                "detail": "generate_goal",
                "label": "used for generate_goal",
                "count": 1,
                "tokens": -3,
                "waived": 0,
            }
        ]
    past = datetime(2020, 1, 1, tzinfo=UTC).isoformat()
    assert api.get(f"{world.path}/explain/general", world.member, at=past).status_code == 404


def test_the_catalog(api: Api, world: World) -> None:
    for who in (*everyone(world), world.other_member, world.keys["metrics"]):
        catalog = api.get("/catalog", who).json()
        [quest] = [each for each in catalog["features"] if each["feature"] == "generate_goal"]
        assert (quest["cost"], quest["tokenType"]) == (3, "goal_generation")
        assert {"plan": "pro", "tokenType": "goal_generation", "allowance": 20} in (
            catalog["allowances"]
        )


def test_figures_for_prometheus(api: Api, world: World, tokens: Tokens) -> None:
    tokens.reserve(world.organization, world.user, "generate_goal")
    tokens.set_mode("log_only", world.other, actor="a test", reason="a test")
    tokens.verify()
    for who in (world.keys["metrics"], *world.staff.values()):
        answer = api.get("/metrics", who)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        lines = answer.text.splitlines()
        assert 'tokenlib_holds{state="live"} 1' in lines
        assert 'tokenlib_switched_organizations{mode="log_only"} 1' in lines
        assert "tokenlib_verification_problems 0" in lines
        assert "# TYPE tokenlib_holds gauge" in lines
    assert api.get("/metrics", world.keys["read"]).status_code == 403
    assert api.get("/metrics", world.member).status_code == 403


def test_requests_are_counted_by_route_and_status(api: Api, world: World) -> None:
    """By templates alone: who asks for a thousand paths adds no line."""
    for _ in range(3):
        api.get(f"{world.path}/balances", world.keys["read"])
    body = {"feature": "generate_goal", "userId": str(world.user)}
    api.post(f"{world.path}/charges", world.keys["own"], **body)
    for path in (f"/{number}" for number in range(20)):
        assert api.get(path, {}).status_code == 404
    text = api.get("/metrics", world.keys["metrics"]).text

    def said(kind: str, method: str, route: str, status: int, more: str = "") -> float:
        start = f"tokenlib_api_request_duration_seconds_{kind}"
        labels = f'{{method="{method}",route="{route}",status="{status}",process="'
        [line] = [
            each for each in text.splitlines() if each.startswith(start + labels) and more in each
        ]
        return float(line.rpartition(" ")[2])

    balances = "/v1/organizations/{organizationId}/balances"
    charges = "/v1/organizations/{organizationId}/charges"
    assert said("count", "GET", balances, 200) == 3
    assert said("bucket", "GET", balances, 200, 'le="+Inf"') == 3
    assert said("sum", "GET", balances, 200) > 0
    assert said("count", "POST", charges, 201) == 1
    assert said("count", "GET", "none", 404) == 20
    assert str(world.organization) not in text
    rising = [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("tokenlib_api_request_duration_seconds_bucket")
        and f'route="{balances}"' in line
    ]
    assert rising == sorted(rising)
    assert len(rising) == 11
