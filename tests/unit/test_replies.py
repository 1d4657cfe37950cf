"""The reply to a customer: plain words, the refusal's numbers, times in the customer's zone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from tokenlib import InvalidInput
from tokenlib.domain import Verdict
from tokenlib.reports import customer_reply
from tokenlib.reports.refusals import RefusalRow

AT = datetime(2026, 3, 8, 23, 30, tzinfo=UTC)
REFRESH = datetime(2026, 3, 27, 9, tzinfo=UTC)


def refusal(rule: str, count: int = 1, **data: Any) -> RefusalRow:
    return RefusalRow(
        organization_id=UUID(int=1),
        organization="Acme",
        user_id=UUID(int=2),
        user="Somebody",
        feature="generate_goal",
        rule=rule,
        token_type="goal_generation",
        needed=3,
        available=1,
        count=count,
        first_at=AT,
        last_at=AT,
        data=data,
    )


def verdict(rule: str | None, **more: Any) -> Verdict:
    return Verdict(
        allowed=rule is None,
        rule=rule,
        message="",
        needed=3,
        available=1,
        token_type="goal_generation",
        refresh_date=REFRESH,
        **more,
    )


def test_an_empty_wallet_is_explained_with_its_numbers_and_both_ways_out() -> None:
    said = customer_reply(
        refusal("insufficient_tokens"),
        timezone="Europe/Rome",
        title="Generate a quest",
        refresh_date=REFRESH,
        balance=1,
    )
    assert said == (
        "On 9 March 2026 at 00:30 (Europe/Rome), “Generate a quest” did not run. It needs 3 tokens,"
        " and 1 was left. New tokens come on 27 March 2026 at 10:00 (Europe/Rome). To go on before"
        " that, upgrade the plan or buy a pack of tokens. Nothing was charged."
    )


def test_a_wallet_that_has_tokens_again_is_said_to_work() -> None:
    said = customer_reply(refusal("insufficient_tokens"), balance=20, refresh_date=REFRESH)
    assert "By now there are 20 tokens, so it works again." in said
    assert "27 March" not in said


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal("feature_not_in_plan", plan="starter"), "not part of your plan (starter)"),
        (refusal("payment_failed"), "the last payment did not go through"),
        (refusal("organization_paused"), "AI is paused for your organization"),
        (refusal("user_paused"), "AI is paused for this person"),
        (
            refusal("rate_limited", limit="requests_per_minute", allowed=30),
            "Each person can make 30 requests a minute",
        ),
        (
            refusal("rate_limited", limit="seconds_between_requests", allowed=3),
            "less than 3 seconds after the request before it",
        ),
        (
            refusal("rate_limited", limit="tokens_per_request", allowed=10),
            "One request can use at most 10 tokens",
        ),
        (
            refusal("rate_limited", limit="tokens_per_request", allowed=10),
            "Asking for less in one request is enough.",
        ),
        (
            refusal("rate_limited", limit="output_units_per_request", allowed=2000),
            "would be, or was, longer. Asking for less in one request is enough.",
        ),
        (
            refusal("rate_limited", limit="organization_requests_per_minute", allowed=600),
            "Your organization can make 600 requests a minute",
        ),
        (
            refusal("rate_limited", limit="key_output_units_per_request", allowed=500),
            "at most 500 output units, and this one would be, or was, longer. Asking for less in",
        ),
        (
            refusal("rate_limited", limit="key_requests_per_minute", allowed=60),
            "The program can make 60 requests a minute",
        ),
        (
            refusal("rate_limited", limit="failed_attempts", allowed=5),
            "this person is blocked for a while. It works again 10 minutes after the last of them.",
        ),
        (
            refusal("failed_attempt", problem="malformed units"),
            "The request was not valid (malformed units). The program that sent it",
        ),
        (replace(refusal("failed_attempt"), feature=""), "a request did not run. The request was"),
        (refusal("rate_limited"), "Too many requests came in a short time"),
        (refusal("some_new_rule"), "The reason on record is: some new rule."),
        (refusal("user_paused", count=4), "did not run (4 times within a minute)."),
        (verdict("rate_limited", retry_after=2.2), "Trying again in 3 seconds is enough."),
        (verdict("insufficient_tokens"), "New tokens come on 27 March 2026 at 09:00 (UTC)."),
        (verdict("payment_failed"), "The AI feature cannot run at the moment."),
        (verdict(None), "You can use the AI feature now: nothing stands in the way."),
    ],
)
def test_each_rule_has_its_words(answer: RefusalRow | Verdict, words: str) -> None:
    said = customer_reply(answer)
    assert words in said
    assert "generate_goal" not in said or isinstance(answer, RefusalRow)
    assert "None" not in said


@pytest.mark.parametrize(
    ("timezone", "time"),
    [
        ("UTC", "8 March 2026 at 23:30 (UTC)"),
        ("Asia/Kolkata", "9 March 2026 at 05:00 (Asia/Kolkata)"),
        # The clocks of New York went ahead that morning.
        ("America/New_York", "8 March 2026 at 19:30 (America/New York)"),
    ],
)
def test_times_are_the_customer_s(timezone: str, time: str) -> None:
    assert time in customer_reply(refusal("user_paused"), timezone=timezone)


@pytest.mark.parametrize("timezone", ["Mars/Base", "", "../etc/passwd"])
def test_a_zone_that_does_not_exist_is_named(timezone: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        customer_reply(refusal("user_paused"), timezone=timezone)
    assert refused.value.field == "timezone"
