"""Why requests were refused, and who often hits a limit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest

from tests.db import reports_world
from tests.db.reports_world import DAY_AGO, NOW, SINCE, TICK, UNTIL, World
from tokenlib.embedded import Embedded
from tokenlib.reports.refusals import RuleCount


@pytest.fixture(scope="module")
def world(token_server: Embedded) -> Iterator[World]:
    with reports_world.made(token_server) as made:
        yield made


def test_refusals_by_rule_are_the_books(world: World) -> None:
    found = world.service().refusals_by_rule(SINCE, UNTIL)
    assert found == [
        RuleCount("insufficient_tokens", 3, 0, 3, 3),
        # One more was let through by the switch.
        RuleCount("feature_not_in_plan", 2, 1, 1, 1),
        RuleCount("payment_failed", 1, 0, 1, 1),
        RuleCount("user_paused", 1, 0, 1, 1),
    ]
    assert {row.rule: row.count + row.let_through for row in found} == dict(
        world.plain(
            "select rule, sum(count) from ai_token_refusals"
            " where last_at >= %s and last_at < %s group by rule",
            SINCE,
            UNTIL,
        )
    )


def test_refusals_of_one_organization(world: World) -> None:
    found = world.service().refusals_by_rule(SINCE, UNTIL, world.a)
    assert {row.rule for row in found} == {"insufficient_tokens", "user_paused"}
    assert world.service().refusals_by_rule(SINCE, UNTIL, uuid4()) == []


def test_refusals_keep_to_the_microsecond(world: World) -> None:
    moment = DAY_AGO + timedelta(hours=3)
    ask = world.service().refusals
    assert len(ask(moment, moment + TICK)) == 3
    assert ask(moment - TICK, moment) == []
    assert [row.rule for row in ask(moment + TICK, NOW)] == ["payment_failed"]


def test_refusals_say_who_what_and_how_much_was_missing(world: World) -> None:
    [row] = world.service().refusals(DAY_AGO, NOW, world.d)
    assert (row.organization, row.user, row.feature, row.rule) == (
        "Organization D",
        "User D1",
        "forecast_revenue",
        "insufficient_tokens",
    )
    assert (row.needed, row.available, row.count) == (4, 2, 1)
    assert row.first_at == row.last_at == DAY_AGO + timedelta(hours=2)
    twice, let_through = world.service().refusals(SINCE, NOW, user_id=world.c1)
    assert (twice.count, twice.data.get("plan"), twice.data.get("mode")) == (2, "starter", None)
    assert (let_through.count, let_through.data.get("mode")) == (1, "log_only")


def test_refusals_come_the_latest_first_and_no_more_than_asked(world: World) -> None:
    everything = world.service().refusals(SINCE, NOW)
    assert [row.last_at for row in everything] == sorted(
        (row.last_at for row in everything), reverse=True
    )
    assert world.service().refusals(SINCE, NOW, limit=2) == everything[:2]


def test_a_refusal_of_nobody_known_is_kept(token_server: Embedded) -> None:
    with reports_world.made(token_server) as world:
        with world.database.connect("tokenlib_owner") as owner:
            owner.execute(
                "insert into ai_token_refusals (organization_id, user_id, feature, rule, minute,"
                " first_at, last_at) values (%s, %s, 'generate_goal', 'rate_limited', %s, %s, %s)",
                [world.c, "0" * 32, SINCE, SINCE, SINCE],
            )
        [row] = world.service().refusals(SINCE, SINCE + TICK)
        assert (row.user_id, row.user) == (None, "unknown")
        [rule] = world.service().refusals_by_rule(SINCE, SINCE + TICK)
        assert (rule.count, rule.users) == (1, 0)


def test_who_often_hits_a_limit(world: World) -> None:
    found = world.service().frequent_refusals(SINCE, UNTIL)
    first = found[0]
    assert (first.organization, first.plan) == ("Organization C", "starter")
    assert (first.refusals, first.insufficient_tokens, first.feature_not_in_plan) == (2, 0, 2)
    # A pause and a failed payment are no limits.
    assert {(row.organization, row.refusals) for row in found[1:]} == {
        ("Organization A", 1),
        ("Organization B", 1),
        ("Organization D", 1),
    }
    assert {(row.user_id, row.user) for row in found} == {(None, None)}
    assert world.service().frequent_refusals(SINCE, UNTIL, limit=1) == found[:1]


def test_which_users_often_hit_a_limit(world: World) -> None:
    found = world.service().frequent_refusals(SINCE, UNTIL, by="user")
    assert (found[0].user_id, found[0].user, found[0].refusals) == (world.c1, "User C1", 2)
    assert {row.user for row in found} == {"User A1", "User B1", "User C1", "User D1"}
