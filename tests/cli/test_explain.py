"""`tokenlib explain`: the balance as a story, now and at a past moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tests.cli.shell import Shell
from tokenlib import Tokens
from tokenlib.testing import TestClock

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = BEGIN + timedelta(hours=1)


@pytest.fixture
def acme(tokens: Tokens, token_clock: TestClock) -> UUID:
    """Two quests were generated, one given back; tokens came, and a call is running."""
    token_clock.set(BEGIN)
    organization = tokens.create_organization("Acme", "pro")
    member = tokens.add_member(organization, "A member", "member@example.org")
    used = tokens.deduct_tokens(organization, member, "generate_goal")
    token_clock.set(LATER)
    tokens.deduct_tokens(organization, member, "generate_goal")
    tokens.refund(used, "a mistake")
    tokens.grant(organization, "goal_generation", 1200, kind="purchase")
    tokens.reserve(organization, member, "generate_goal", 2)
    return organization


def test_a_balance_is_told_line_by_line(shell: Shell, acme: UUID) -> None:
    assert shell("explain", acme, "goal_generation").stdout.splitlines() == [
        "tokens",
        "    20       opened on 2026-03-01 12:00 UTC",
        " 1,200  1 x  granted as purchase",
        "     3  1 x  given back for generate_goal",
        "    -6  2 x  used for generate_goal",
        "    -6  1 x  held for calls that are running",
        " 1,211       remain on 2026-03-01 13:00 UTC",
        "The period ends on 2026-03-31 12:00 UTC.",
    ]


@pytest.mark.parametrize("at", ["2026-03-01T12:30", "2026-03-01T12:30Z", "2026-03-01T14:30+02:00"])
def test_a_past_moment_is_told_as_it_was(shell: Shell, acme: UUID, at: str) -> None:
    found = shell.json("explain", acme, "goal_generation", "--at", at)
    assert (found["opening"], found["balance"], found["held"], found["used"]) == (20, 17, 0, 3)
    assert (found["allocated"], found["closes"]) == (20, True)
    assert found["at"] == "2026-03-01T12:30:00Z"
    assert [(line["kind"], line["tokens"]) for line in found["lines"]] == [("charge", -3)]


def test_a_period_that_has_ended_is_refreshed_first(
    shell: Shell, acme: UUID, token_clock: TestClock
) -> None:
    token_clock.advance(timedelta(days=31))
    lines = shell("explain", acme, "forecast").stdout.splitlines()
    assert lines[1].split() == ["30", "refreshed", "on", "2026-03-31", "12:00", "UTC"]
    assert lines[-1] == "The period ends on 2026-04-30 12:00 UTC."


def test_what_cannot_be_told_is_said(shell: Shell, acme: UUID) -> None:
    nobody = uuid4()
    assert str(nobody) in shell.error("explain", nobody, "general", exit_code=1)
    assert "goal_generation" in shell.error("explain", acme, "typo", exit_code=2)
    early = shell.error("explain", acme, "general", "--at", "2026-01-01", exit_code=1)
    assert early == f"The wallet general of {acme} has no books at 2026-01-01T00:00:00Z."
    missing = shell.error("explain", acme, "shared", exit_code=1)
    assert missing == f"{acme} has no wallet shared: no pack was bought by then."
    wrong = shell("explain", acme, "general", "--at", "yesterday", exit_code=2)
    assert "'yesterday' is not a time such as 2026-03-01T12:00+01:00." in wrong.stderr


def test_shared_is_told_like_every_wallet_once_there_is_one(
    shell: Shell, tokens: Tokens, acme: UUID
) -> None:
    tokens.upgrade_tokens(acme, "shared", 500)
    assert shell.json("explain", acme, "shared")["balance"] == 500
