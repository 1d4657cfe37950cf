"""check-balance keeps the old form: bodies, names, messages, statuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tokenlib.domain import Mode, OrganizationStatus
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Books, Join, Member

KNOWN = (
    "Known features: forecast_revenue, analyze_efficiency, generate_insight, generate_goal,"
    " generate_leads, analyze_strategy."
)
CHECK_BALANCE = "/api/v1/tokens/check-balance"
NEXT_TRY = timedelta(seconds=3)


def test_check_answers_and_charges_nothing(member: Member, books: Books) -> None:
    before = books()
    answer = member.ask("check")
    assert (answer.status_code, answer.json()) == (200, {"hasTokens": True})
    assert member.post(member.body()).json() == {"hasTokens": True}
    assert books() == before


def test_deduct_charges_the_caller(member: Member, tokens: Tokens) -> None:
    answer = member.ask("deduct")
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True,
        "remainingBalance": 17,
        "message": "Used 3 tokens for generate_goal",
    }
    [charge] = tokens.database.rows("select * from public.ai_token_usage_log")
    assert (charge["organization_id"], charge["user_id"]) == (member.organization, member.user)
    assert (charge["tokens_deducted"], charge["remaining_balance"]) == (3, 17)


def test_six_quests_and_then_no_more(member: Member, token_clock: TestClock, books: Books) -> None:
    left = []
    for _ in range(6):
        left.append(member.ask("deduct").json()["remainingBalance"])
        token_clock.advance(NEXT_TRY)
    assert left == [17, 14, 11, 8, 5, 2]
    before = books()
    refused = member.ask("deduct")
    assert refused.status_code == 200
    assert refused.json() == {
        "success": False,
        "remainingBalance": 2,
        "message": "Insufficient tokens. Need 3, have 2",
    }
    after = books()
    assert after.pop("ai_token_refusals") != before.pop("ai_token_refusals")
    assert after == before
    assert member.ask("check").json() == {"hasTokens": False}


def test_a_pack_pays_when_the_wallet_does_not(member: Member, tokens: Tokens) -> None:
    tokens.deduct_tokens(member.organization, member.user, "generate_goal", 6)
    tokens.upgrade_tokens(member.organization, "shared", 500)
    assert member.ask("check").json() == {"hasTokens": True}


def test_starter_has_no_ai(join: Join) -> None:
    member = join("starter")
    for action in ("check", "deduct"):
        answer = member.ask(action)
        assert answer.status_code == 403
        assert answer.json() == {
            "error": "The starter plan does not include generate_goal. Upgrade the plan to use it."
        }


def test_an_unknown_feature_names_the_known_ones(member: Member, books: Books) -> None:
    before = books()
    for action in ("check", "deduct"):
        answer = member.ask(action, "generate_gaol")
        assert answer.status_code == 400
        assert answer.json() == {"error": f"featureUsed is not in the catalog. {KNOWN}"}
    assert books() == before


def test_a_bad_field_is_named(member: Member, books: Books) -> None:
    feature = "featureUsed must be the name of a feature."
    bad: list[tuple[dict[str, Any], str]] = [
        ({"organizationId": None}, "organizationId must be a UUID."),
        ({"organizationId": "org-1"}, "organizationId must be a UUID."),
        ({"organizationId": 7}, "organizationId must be a UUID."),
        ({"featureUsed": None}, feature),
        ({"featureUsed": ""}, feature),
        ({"featureUsed": 3}, feature),
        ({"featureUsed": "generate\x00goal"}, feature),
        ({"featureUsed": "g" * 201}, feature),
        ({"action": "refund"}, "action must be check or deduct."),
        ({"action": None}, "action must be check or deduct."),
        ({"action": ["deduct"]}, "action must be check or deduct."),
    ]
    before = books()
    for changes, problem in bad:
        answer = member.post(member.body(action="deduct") | changes)
        assert (answer.status_code, answer.json()) == (400, {"error": problem}), changes
    for field in ("organizationId", "featureUsed"):
        body = member.body(action="deduct")
        del body[field]
        answer = member.post(body)
        assert (answer.status_code, answer.json()) == (400, {"error": f"{field} is missing."})
    assert books() == before


def test_what_is_no_json_object_is_refused(member: Member) -> None:
    problem = "The body must be a JSON object with organizationId, featureUsed and action."
    bodies = [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"deduct"',
        b"\xff\xfe",
        b'{"organizationId": "\\ud800"}',
        b"[" * 60_000,
        b"organizationId=1&featureUsed=generate_goal",
    ]
    for body in bodies:
        answer = member.client.post(CHECK_BALANCE, content=body, headers=member.signed())
        assert (answer.status_code, answer.json()) == (400, {"error": problem}), body[:20]


def test_old_callers_may_send_more_and_any_content_type(member: Member) -> None:
    body = member.body(action="deduct", source="dashboard", units=7, organization_id="x")
    assert member.post(body).json()["remainingBalance"] == 17
    plain = f'{{"organizationId": "{member.organization}", "featureUsed": "generate_goal"}}'
    for content_type in ("application/x-www-form-urlencoded", "text/plain"):
        answer = member.client.post(
            CHECK_BALANCE,
            content=plain,
            headers=member.signed() | {"Content-Type": content_type},
        )
        assert (answer.status_code, answer.json()) == (200, {"hasTokens": True})


def test_a_replay_gets_the_first_answer(member: Member, tokens: Tokens) -> None:
    first = member.ask("deduct", key="quest 1")
    tokens.deduct_tokens(member.organization, member.user, "generate_goal")
    again = member.ask("deduct", key="quest 1")
    assert (again.status_code, again.json()) == (200, first.json())
    assert tokens.get_token_balance(member.organization, "goal_generation").balance == 14


def test_a_key_stands_for_one_request(member: Member, tokens: Tokens) -> None:
    member.ask("deduct", key="quest 1")
    other = member.ask("deduct", "generate_insight", key="quest 1")
    assert other.status_code == 422
    assert "another request" in other.json()["error"]
    tokens.reserve(member.organization, member.user, "generate_goal", idempotency_key="quest 2")
    assert member.ask("deduct", key="quest 2").status_code == 409
    assert tokens.get_token_balance(member.organization, "goal_generation").balance == 14
    assert tokens.get_token_balance(member.organization, "general").balance == 50


def test_a_bad_key_is_refused(member: Member, books: Books) -> None:
    before = books()
    for key in ("", "k" * 256):
        answer = member.ask("deduct", key=key)
        assert answer.status_code == 400
        assert answer.json() == {"error": "Idempotency-Key must be text of 1 to 255 characters."}
    assert books() == before


def test_members_are_limited(member: Member, token_clock: TestClock, tokens: Tokens) -> None:
    token_clock.set(token_clock.now())
    assert member.ask("deduct", key="quest 1").status_code == 200
    token_clock.advance(timedelta(seconds=1.5))
    too_soon = member.ask("deduct")
    assert (too_soon.status_code, too_soon.headers["Retry-After"]) == (429, "2")
    assert set(too_soon.json()) == {"error"}
    assert tokens.get_token_balance(member.organization, "goal_generation").balance == 17
    # Neither a question nor a replay is a request that counts.
    assert member.ask("check").json() == {"hasTokens": True}
    assert member.ask("deduct", key="quest 1").status_code == 200
    token_clock.advance(NEXT_TRY)
    assert member.ask("deduct").json()["remainingBalance"] == 14


def test_a_request_that_is_too_large_has_no_time_to_try_again(
    member: Member, token_database: TestDatabase
) -> None:
    with token_database.connect() as owner:
        owner.execute(
            "update public.ai_token_features set cost = 11 where feature = 'generate_goal'"
        )
    answer = member.ask("deduct")
    assert answer.status_code == 429
    assert "Retry-After" not in answer.headers
    assert answer.json() == {"error": "Limit reached: tokens per request, 10 allowed."}


def test_no_ai_while_the_organization_is_stopped(member: Member, tokens: Tokens) -> None:
    stops: dict[OrganizationStatus, str] = {
        "limited": "the last payment failed",
        "expired": "the last payment failed",
        "suspended": "paused for this organization",
    }
    for status, words in stops.items():
        tokens.set_status(member.organization, status, actor="test", reason="a test")
        for action in ("check", "deduct"):
            answer = member.ask(action)
            assert answer.status_code == 403
            assert words in answer.json()["error"]
    assert member.stats().json()["totalBalance"] == 250
    tokens.set_status(member.organization, "active", actor="test", reason="a test")
    assert member.ask("deduct").json()["remainingBalance"] == 17


def test_a_paused_user_is_stopped_alone(member: Member, tokens: Tokens) -> None:
    colleague = tokens.add_member(member.organization, "A colleague", "colleague@example.org")
    tokens.pause_user(member.organization, member.user, actor="test", reason="a test")
    for action in ("check", "deduct"):
        answer = member.ask(action)
        assert answer.status_code == 403
        assert "paused for this user" in answer.json()["error"]
    assert replace(member, user=colleague).ask("deduct").json()["remainingBalance"] == 17


def test_the_switch_lets_through_and_charges_nothing(join: Join, tokens: Tokens) -> None:
    member = join("starter")
    modes: tuple[Mode, ...] = ("log_only", "off")
    for mode in modes:
        tokens.set_mode(mode, member.organization, actor="test", reason="a test")
        assert member.ask("check").json() == {"hasTokens": True}
        assert member.ask("deduct").json() == {
            "success": True,
            "remainingBalance": 0,
            "message": "Used 0 tokens for generate_goal",
        }
