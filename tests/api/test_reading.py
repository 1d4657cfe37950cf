"""Balances, stats, history and stories: as the member, a key, or staff; and nobody else."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args
from uuid import uuid4

import pytest

from tokenlib.api.schemas import EntryKind
from tokenlib.testing import TestClock, TestDatabase
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
    assert features(tokenType="general") == ["generate_insight"]
    assert features(tokenType="forecast") == []


def test_entries_are_all_that_moved_a_wallet(api: Api, world: World, tokens: Tokens) -> None:
    held = tokens.reserve(world.organization, world.user, "generate_goal")
    tokens.release(held, "a test")
    usage = tokens.deduct_tokens(world.organization, world.user, "generate_goal")
    tokens.refund(usage, "empty")
    tokens.grant(world.organization, "general", 10, reason="Goodwill")
    tokens.deduct_tokens(world.other, world.other_user, "generate_goal")
    for who in everyone(world):
        seen: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(20):
            params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = api.get(f"{world.path}/entries", who, **params).json()
            seen += page["rows"]
            cursor = page["nextCursor"]
            if cursor is None:
                break
        goal = [row for row in seen if row["tokenType"] == "goal_generation"]
        kinds = ["refund", "charge", "release", "reserve", "opening"]
        assert [row["kind"] for row in goal] == kinds
        assert [row["balanceChange"] for row in goal] == [3, -3, 3, -3, 20]
        assert [row["balanceAfter"] for row in goal] == [20, 17, 20, 17, 20]
        assert [row["reservedChange"] for row in goal[2:4]] == [-3, 3]
        assert (goal[1]["refunded"], goal[1]["id"]) == (True, str(usage.id))
        assert (goal[0]["reason"], goal[0]["feature"]) == ("empty", "generate_goal")
        assert len({row["id"] for row in seen}) == len(seen) == 5 + 5


def test_entries_are_filtered(
    api: Api, world: World, tokens: Tokens, token_clock: TestClock
) -> None:
    tokens.deduct_tokens(world.organization, world.user, "generate_goal")
    token_clock.advance(timedelta(hours=1))
    later = token_clock.now()
    tokens.grant(world.organization, "general", 10, reason="Goodwill")
    tokens.deduct_tokens(world.organization, world.user, "generate_insight")

    def kinds(**filters: Any) -> list[str]:
        answer = api.get(f"{world.path}/entries", world.member, **filters)
        assert answer.status_code == 200, answer.text
        return [row["kind"] for row in answer.json()["rows"]]

    assert kinds(kind="charge") == ["charge", "charge"]
    assert kinds(kind="grant") == ["grant"]
    assert kinds(kind="refund") == []
    assert kinds(tokenType="general", since=later.isoformat()) == ["charge", "grant"]
    assert kinds(tokenType="goal_generation", kind="charge") == ["charge"]
    assert kinds(feature="generate_goal") == ["charge"]
    assert kinds(userId=str(world.user), until=later.isoformat()) == ["charge"]
    assert kinds(userId=str(world.other_user)) == []


def test_every_kind_of_entry_is_in_the_description(token_database: TestDatabase) -> None:
    with token_database.connect() as owner:
        [check] = owner.execute(
            "select pg_get_constraintdef(oid) as text from pg_constraint"
            " where conname = 'event_kind_known'"
        ).fetchall()
    known = set(re.findall(r"'(\w+)'", str(check)))
    assert len(known) > 10
    assert {"charge", *known} == set(get_args(EntryKind))


def cursor(*parts: str) -> str:
    return base64.urlsafe_b64encode(" ".join(parts).encode()).decode()


NOBODY = "1b4e28ba-2fa1-41d2-883f-0016d3cca427"
MOMENT = "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize("path", ["history", "entries"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": "MjAyNi0wMS0wMSBub25l"}, "cursor"),
        ({"cursor": cursor("2026-01-01T00:00:00", NOBODY, NOBODY)}, "cursor"),
        ({"cursor": cursor("0001-01-01T00:00:00+23:00", NOBODY, NOBODY)}, "cursor"),
        ({"cursor": cursor(MOMENT, "a\x00b", "1", "1", NOBODY)}, "cursor"),
        ({"cursor": cursor(MOMENT, "general", "9" * 20, "1", NOBODY)}, "cursor"),
        ({"cursor": cursor(MOMENT, "general", "1", "-1", NOBODY)}, "cursor"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"since": "1767225600"}, "since"),
        ({"since": "1767225600.5"}, "since"),
        ({"since": "2026-01-01"}, "since"),
        ({"since": "2026-01-01T00:00:00 00:00"}, "since"),
        ({"since": "2026-01-01T00:00:00[Europe/Berlin]"}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"until": "9"}, "until"),
        ({"limit": ["5", "5"]}, "limit"),
        ({"tokenType": "a\x00b"}, "tokenType"),
        ({"organizationId": "x"}, "organizationId"),
        ({"order": "asc"}, "order"),
    ],
)
def test_a_query_that_is_wrong_is_told(
    api: Api, world: World, path: str, query: dict[str, Any], field: str
) -> None:
    answer = api.get(f"{world.path}/{path}", world.member, **query)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == field
    assert answer.json()["detail"].startswith(f"{field} ")
    if field in ("since", "until"):
        assert "2026-04-01T00:00:00Z" in answer.json()["detail"]


def test_a_cursor_of_another_organization_shows_nothing_of_it(
    api: Api, world: World, tokens: Tokens
) -> None:
    theirs = tokens.deduct_tokens(world.other, world.other_user, "generate_goal")
    tokens.deduct_tokens(world.organization, world.user, "generate_goal")
    place = (theirs.created_at + timedelta(days=1)).isoformat()
    for path, at in {
        "history": cursor(place, str(world.other), str(theirs.id)),
        "entries": cursor(place, "shared", "9", "9", str(theirs.id)),
    }.items():
        answer = api.get(f"{world.path}/{path}", world.member, cursor=at)
        assert answer.status_code == 200
        assert answer.json()["rows"]
        assert str(theirs.id) not in answer.text


def test_a_kind_that_is_none_is_told(api: Api, world: World) -> None:
    answer = api.get(f"{world.path}/entries", world.member, kind="gift")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "kind")


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
    early = api.get(f"{world.path}/explain/general", world.member, at=past)
    assert (early.status_code, early.json()["code"]) == (404, "no_story")


@pytest.mark.parametrize("name", ["feature", "tokenType"])
def test_what_the_catalog_does_not_have_is_named(api: Api, world: World, name: str) -> None:
    """To who may read there; anybody else hears what they hear of an organization that is none."""
    asked = [(path, {name: "gold"}) for path in ("history", "entries")]
    if name == "tokenType":
        asked += [("balances/gold", {}), ("explain/gold", {})]
    known = {"feature": "generate_goal", "tokenType": "goal_generation"}[name]
    for path, query in asked:
        for who in everyone(world):
            answer = api.get(f"{world.path}/{path}", who, **query)
            assert answer.status_code == 400, path
            problem = answer.json()
            assert problem["code"] == {"feature": "unknown_feature"}.get(name, "unknown_token_type")
            assert problem[name] == "gold"
            assert known in problem["known"]
            assert [each["field"] for each in problem["errors"]] == [name]
        [there, nowhere] = [
            api.get(f"/organizations/{place}/{path}", world.member, **query).json()
            | {"requestId": ""}
            for place in (world.other, uuid4())
        ]
        assert there == nowhere
        assert there["code"] == "not_found"


def test_a_feature_of_an_adopted_log_is_found(
    api: Api, world: World, token_database: TestDatabase, tokens: Tokens
) -> None:
    tokens.deduct_tokens(world.organization, world.user, "generate_goal")
    with token_database.connect() as owner:
        owner.execute("alter table ai_token_usage_log disable trigger user")
        owner.execute("update ai_token_usage_log set feature_used = 'make_coffee'")
    found = api.get(f"{world.path}/history", world.member, feature="make_coffee").json()
    assert [row["feature"] for row in found["rows"]] == ["make_coffee"]


def test_a_pack_that_was_never_bought_has_no_wallet(api: Api, world: World, tokens: Tokens) -> None:
    answer = api.get(f"{world.path}/balances/shared", world.member)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")
    assert answer.json()["detail"] == "tokenType shared has no wallet yet: no pack was ever bought."
    tokens.upgrade_tokens(world.organization, "shared", 50)
    assert api.get(f"{world.path}/balances/shared", world.member).json()["balance"] == 50


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
