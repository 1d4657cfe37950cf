"""stats keeps the old form, and is current."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tokenlib.api import guard
from tokenlib.latency import Pace
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Books, Member

TYPES = {
    "lead_generation": 50,
    "goal_generation": 20,
    "strategy_analysis": 100,
    "forecast": 30,
    "general": 50,
}


def test_totals_and_each_wallet(member: Member, tokens: Tokens) -> None:
    tokens.deduct_tokens(member.organization, member.user, "generate_goal")
    answer = member.stats()
    assert answer.status_code == 200
    stats = answer.json()
    assert set(stats) == {"totalBalance", "totalAllocated", "totalUsed", "refreshDate", "byType"}
    assert (stats["totalBalance"], stats["totalAllocated"], stats["totalUsed"]) == (247, 250, 3)
    assert [wallet["token_type"] for wallet in stats["byType"]] == list(TYPES)
    for wallet in stats["byType"]:
        used = 3 if wallet["token_type"] == "goal_generation" else 0
        allowance = TYPES[wallet["token_type"]]
        refresh_date = datetime.fromisoformat(wallet.pop("refresh_date"))
        assert refresh_date >= datetime.fromisoformat(stats["refreshDate"])
        assert refresh_date.utcoffset() == timedelta(0)
        assert wallet == {
            "token_type": wallet["token_type"],
            "balance": allowance - used,
            "total_allocated": allowance,
            "total_used": used,
        }


def test_purchased_packs_are_a_wallet_of_their_own(member: Member, tokens: Tokens) -> None:
    tokens.upgrade_tokens(member.organization, "shared", 500)
    stats = member.stats().json()
    assert stats["totalBalance"] == 750
    assert (stats["byType"][-1]["token_type"], stats["byType"][-1]["balance"]) == ("shared", 500)


def test_a_period_that_has_ended_is_refreshed(
    member: Member, tokens: Tokens, token_clock: TestClock
) -> None:
    tokens.deduct_tokens(member.organization, member.user, "generate_goal", 6)
    token_clock.advance(timedelta(days=31))
    stats = member.stats().json()
    assert (stats["totalBalance"], stats["totalUsed"]) == (250, 0)
    assert datetime.fromisoformat(stats["refreshDate"]) > token_clock.now()


def test_wallets_that_are_missing_are_created(member: Member, token_database: TestDatabase) -> None:
    with token_database.connect() as owner:
        moved = owner.execute(
            "insert into public.organizations (name, plan) values ('Made by the host', 'pro')"
            " returning id"
        ).fetchone()
        assert moved is not None
        owner.execute(
            "update public.user_profiles set organization_id = %s where id = %s",
            (moved[0], member.user),
        )
    assert member.stats().status_code == 403
    assert member.stats(moved[0]).json()["totalBalance"] == 250


def test_a_bad_organization_is_named(member: Member, books: Books) -> None:
    before = books()
    missing = member.client.get("/api/v1/tokens/stats", headers=member.signed())
    assert missing.status_code == 400
    assert missing.json() == {"error": "organizationId is missing."}
    for wrong in ("org-1", "7", "null"):
        answer = member.stats(wrong)
        assert answer.status_code == 400
        assert answer.json() == {"error": "organizationId must be a UUID."}
    assert books() == before


def test_answers_are_timed_and_the_question_whether_the_process_lives_is_not(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Pace()
    monkeypatch.setattr(guard, "pace", seen)
    member.client.get("/api/v1/health")
    member.client.get("/api/v1/nothing")
    assert seen._seen == {}
    for _ in range(2):  # the first is cold
        assert member.stats().status_code == 200
    (milliseconds,) = seen._seen["api"]
    assert milliseconds > 0
