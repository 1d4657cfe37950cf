"""The demo's quests through a model behind HTTP: what an answer costs, and what a failure costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.endpoint import Endpoint, Reply, answer, direct, dripping, says, serving
from tokenlib.config import Settings
from tokenlib.console import quests
from tokenlib.console.acting import Member
from tokenlib.domain import Feature
from tokenlib.errors import InsufficientTokens, RateLimited
from tokenlib.features import quests as lines
from tokenlib.features.model import ModelError, OpenAIModel
from tokenlib.features.quests import QuestRequest
from tokenlib.reports import Reports
from tokenlib.tokens import Tokens

pytestmark = pytest.mark.usefixtures("books_close")

REQUEST = QuestRequest("Grow the sample business", "2026-Q4", 50_000, 80_000, 75, 35)
KEYS = [step.key for step in lines.generate(REQUEST).steps]
WORDS = {
    "title": "A worded line",
    "description": "Worded.",
    "steps": [{"key": key, "title": "Worded", "action_items": ["Begin", "End"]} for key in KEYS],
}


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    direct(monkeypatch)
    with serving() as server:
        yield server


@pytest.fixture
def member(pro: tuple[UUID, UUID]) -> Member:
    return Member(pro[1], pro[0])


@pytest.fixture
def admin(owner: psycopg.Connection) -> UUID:
    person = uuid4()
    owner.execute(
        "insert into tokenlib_staff (user_id, email, full_name, role)"
        " values (%s, 'admin@example.org', 'An admin', 'admin')",
        (person,),
    )
    return person


def worded(output_units: int | None) -> Reply:
    usage = {} if output_units is None else {"completion_tokens": output_units}
    return says(200, answer(json.dumps(WORDS), usage={"prompt_tokens": 300, **usage}))


def feature(tokens: Tokens) -> Feature:
    return tokens.catalog().features["generate_goal"]


def generate(
    tokens: Tokens, member: Member, endpoint: Endpoint, *replies: Reply
) -> quests.Generated:
    endpoint.replies[:] = replies
    chosen = Settings.from_env(
        {"TOKENLIB_LLM_BASE_URL": endpoint.url, "TOKENLIB_LLM_MODEL": "sample-model"}
    )
    model = quests.model(
        chosen, False, Reports(tokens.database).output_limit(member.organization_id)
    )
    assert isinstance(model, OpenAIModel)
    key = str(uuid4())
    return quests.generate(tokens, member, feature(tokens), REQUEST, model, key, lambda _said: None)


def wallet(tokens: Tokens, member: Member) -> tuple[int, int, int]:
    """Balance, held, used."""
    found = tokens.get_token_balance(member.organization_id, "goal_generation")
    return found.balance, found.reserved, found.total_used


def test_an_answer_costs_the_same_however_long_unless_the_catalog_says(
    tokens: Tokens, member: Member, endpoint: Endpoint
) -> None:
    made = generate(tokens, member, endpoint, worded(1_999))
    assert (made.line.title, made.used, made.left.balance) == ("A worded line", 3, 17)
    [charge] = Reports(tokens.database).latest_charges(1, member.organization_id)
    assert charge.metadata == {"quarter": "2026-Q4", "input_units": 300, "output_units": 1_999}


@pytest.mark.parametrize(
    ("output_units", "units"), [(1, 1), (700, 1), (701, 2), (1_400, 2), (1_401, 3), (2_000, 3)]
)
def test_the_longest_answer_is_held_and_the_real_one_charged(
    tokens: Tokens, member: Member, endpoint: Endpoint, admin: UUID, output_units: int, units: int
) -> None:
    tokens.staff_set_unit_size(admin, "generate_goal", 700, reason="a dear model")
    seen: list[tuple[int, int, int]] = []

    def looking(handler: Any) -> None:
        seen.append(wallet(tokens, member))
        worded(output_units)(handler)

    made = generate(tokens, member, endpoint, looking)
    assert seen == [(11, 9, 0)]
    assert made.used == 3 * units
    assert wallet(tokens, member) == (20 - 3 * units, 0, 3 * units)
    [charge] = Reports(tokens.database).latest_charges(1, member.organization_id)
    assert (charge.units, charge.tokens) == (units, 3 * units)


def test_without_a_model_a_use_is_one_unit(tokens: Tokens, member: Member, admin: UUID) -> None:
    tokens.staff_set_unit_size(admin, "generate_goal", 100, reason="a dear model")
    made = quests.generate(
        tokens, member, feature(tokens), REQUEST, None, "key", lambda _said: None
    )
    assert (made.used, made.line.written_by) == (3, "tokenlib")


def test_who_cannot_pay_the_longest_answer_asks_no_model(
    tokens: Tokens, member: Member, endpoint: Endpoint, admin: UUID, owner: psycopg.Connection
) -> None:
    owner.execute("update ai_token_limits set tokens_per_request = null")
    tokens.staff_set_unit_size(admin, "generate_goal", 250, reason="a dear model")
    with pytest.raises(InsufficientTokens) as refused:
        generate(tokens, member, endpoint, worded(10))
    assert refused.value.needed == 24
    assert endpoint.requests == []


FAILURES: dict[str, tuple[Callable[[], Reply], str]] = {
    "timeout": (lambda: dripping, "did not answer within 0.5 seconds"),
    "refusal": (
        lambda: says(
            200,
            answer(choices=[{"message": {"content": None, "refusal": "No."}, "index": 0}]),
        ),
        "refused",
    ),
    "not JSON": (lambda: says(200, answer("Here you are!")), "is not JSON"),
    "not a completion": (lambda: says(200, b"<html>"), "is not a chat completion"),
    "cut off": (
        lambda: says(
            200,
            answer(choices=[{"message": {"content": "{"}, "finish_reason": "length", "index": 0}]),
        ),
        "cut off",
    ),
    "oversized text": (lambda: says(200, answer("x" * 9_000)), "more than 8,000 characters"),
    "oversized body": (lambda: says(200, b" " * 1_000_001), "too large"),
    "too many units": (lambda: worded(2_001), "more than the 2000 units"),
    "a number of its own": (
        lambda: says(200, answer(json.dumps({**WORDS, "title": "Win 99 clients"}))),
        "a number of its own, 99",
    ),
    "an error": (lambda: says(500, {"error": {"message": "no"}}), "HTTP status 500"),
    "length not said": (lambda: worded(None), "did not say how long"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_charges_nothing_and_says_so(
    tokens: Tokens,
    member: Member,
    endpoint: Endpoint,
    admin: UUID,
    failure: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens.staff_set_unit_size(admin, "generate_goal", 700, reason="a dear model")
    reply, said = FAILURES[failure]
    if failure == "timeout":
        monkeypatch.setattr(lines.generate, "__kwdefaults__", {"timeout": 0.5})
    with pytest.raises(ModelError, match=said) as failed:
        generate(tokens, member, endpoint, reply())
    assert failed.value.held == 9
    assert wallet(tokens, member) == (20, 0, 0)
    reports = Reports(tokens.database)
    assert reports.quests(member.organization_id) == []
    kinds = [row.kind for row in reports.ledger(member.organization_id, "goal_generation")]
    assert kinds == ["release", "reserve", "opening"]


def test_the_limit_of_output_units_is_what_the_model_is_told(
    tokens: Tokens, member: Member, endpoint: Endpoint, owner: psycopg.Connection
) -> None:
    owner.execute("update ai_token_limits set output_units_per_request = 300")
    assert generate(tokens, member, endpoint, worded(300)).used == 3
    assert endpoint.requests[0][2]["max_completion_tokens"] == 300
    # A longer one, from a page that was open before.
    owner.execute("update ai_token_limits set seconds_between_requests = null")
    endpoint.requests.clear()
    model = OpenAIModel(endpoint.url, "none", "sample-model")
    with pytest.raises(RateLimited) as refused:
        quests.generate(
            tokens, member, feature(tokens), REQUEST, model, "another", lambda _said: None
        )
    assert refused.value.limit == "output_units_per_request"
    assert endpoint.requests == []
