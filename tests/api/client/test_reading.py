"""Pages of the past, stories and keys: what the library's reports say, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.api.flaky import DROP, Flaky
from tokenlib import Client
from tokenlib.client.keys import KeyRow
from tokenlib.client.reading import Entry, PastCharge
from tokenlib.errors import (
    ApiKeyOver,
    DatabaseUnavailable,
    InvalidInput,
    LoginRefused,
    NotFound,
    PermissionDenied,
    UnknownFeature,
    UnknownOrganization,
    UnknownTokenType,
)
from tokenlib.reports import Reports
from tokenlib.reports.series import UsageRow
from tokenlib.reports.wallets import EntryRow
from tokenlib.testing import TestClock
from tokenlib.tokens import Tokens


def same(mine: object, theirs: object) -> None:
    """Each field of an answer is the library's."""
    for field in fields(mine):  # type: ignore[arg-type]
        assert getattr(mine, field.name) == getattr(theirs, field.name), field.name


def listed(client: Client, key: UUID) -> list[KeyRow]:
    known = client.keys()
    return [row for row in known if row.id == key]


def test_pages_hold_what_the_reports_say() -> None:
    for mine, theirs in ((PastCharge, UsageRow), (Entry, EntryRow)):
        assert {each.name for each in fields(mine)} <= {each.name for each in fields(theirs)}


def test_the_past_goes_on_page_by_page(
    client: Client, tokens: Tokens, org: UUID, user: UUID
) -> None:
    for number in range(5):
        tokens.deduct_tokens(org, user, "generate_insight", metadata={"n": number})
    charge = tokens.deduct_tokens(org, user, "generate_goal")
    tokens.refund(charge, "empty")
    reports = Reports(tokens.database)
    asked: list[tuple[Callable[..., Any], list[Any]]] = [
        (client.history, list(reports.usage_rows(organization_id=org))),
        (client.entries, list(reports.ledger(org))),
    ]
    for ask, theirs in asked:
        rows: list[Any] = []
        cursor = None
        while True:
            page = ask(org, limit=2, cursor=cursor)
            assert len(page.rows) <= 2
            rows += page.rows
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
        assert len(rows) == len(theirs) > 5
        for mine, row in zip(rows, theirs, strict=True):
            same(mine, row)


def test_the_past_is_filtered(
    client: Client, tokens: Tokens, org: UUID, user: UUID, token_clock: TestClock
) -> None:
    began = token_clock.now()
    tokens.deduct_tokens(org, user, "generate_goal")
    token_clock.advance(timedelta(hours=1))
    later = token_clock.now()
    tokens.deduct_tokens(org, user, "generate_insight")

    def features(*args: Any, **filters: Any) -> list[str]:
        return [row.feature for row in client.history(org, *args, **filters).rows]

    assert features() == ["generate_insight", "generate_goal"]
    assert features(began, later) == ["generate_goal"]
    assert features(feature="generate_insight") == ["generate_insight"]
    assert features(token_type="goal_generation") == ["generate_goal"]
    assert features(user=user) == ["generate_insight", "generate_goal"]
    assert features(user=uuid4()) == []
    kinds = {row.kind for row in client.entries(org, kind="opening", until=later).rows}
    assert kinds == {"opening"}
    for wrong in ({"limit": 0}, {"cursor": "x"}):
        with pytest.raises(InvalidInput) as told:
            client.history(org, **wrong)
        assert told.value.field == next(iter(wrong))
    with pytest.raises(InvalidInput, match="time zone"):
        client.history(org, datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake
    with pytest.raises(NotFound):
        client.history(uuid4())


def test_a_balance_is_explained(client: Client, tokens: Tokens, org: UUID, user: UUID) -> None:
    tokens.deduct_tokens(org, user, "generate_goal")
    moment = datetime.now(UTC) + timedelta(days=1)
    mine = client.explain(org, "goal_generation", moment)
    assert mine == Reports(tokens.database).explain(org, "goal_generation", moment)
    assert [line.label for line in mine.lines] == ["used for generate_goal"]
    with pytest.raises(UnknownOrganization):
        client.explain(uuid4(), "general")
    with pytest.raises(UnknownTokenType):
        client.explain(org, "nothing")
    with pytest.raises(NotFound) as early:
        client.explain(org, "general", datetime(2020, 1, 1, tzinfo=UTC))
    assert type(early.value) is NotFound


def test_whether_it_is_enough(client: Client, org: UUID) -> None:
    with pytest.raises(UnknownFeature) as unknown:
        client.has_enough_tokens(org, "generate_gaol")
    assert "generate_goal" in unknown.value.known
    with pytest.raises(NotFound):
        client.has_enough_tokens(uuid4(), "generate_goal")
    with pytest.raises(InvalidInput):
        client.has_enough_tokens(org, "generate_goal", 0)


def test_a_key_is_made_rotated_and_revoked(
    client: Client, way: Flaky, tokens: Tokens, org: UUID
) -> None:
    ends = datetime(2099, 1, 1, tzinfo=UTC)
    made = client.staff_create_key(
        " Dashboard ", ["read"], org, expires_at=ends, requests_per_minute=60,
        seconds_between_requests=Decimal(2), tokens_per_request=9, output_units_per_request=500,
        limit_users=True, reason="Launch",
    )  # fmt: skip
    assert made.secret
    assert made.secret not in repr(made)
    assert (made.name, made.scopes, made.organization_id) == ("Dashboard", ("read",), org)
    [row] = listed(client, made.id)
    assert (row.start, row.scopes, row.expires_at) == (made.start, ("read",), ends)
    assert (row.requests_per_minute, row.seconds_between_requests) == (60, 2)
    assert (row.tokens_per_request, row.output_units_per_request) == (9, 500)
    assert row.limit_users
    secret = client.staff_rotate_key(made.id, overlap=timedelta(0), reason="Once a year")
    with Client(way.url, made.secret, deadline=1) as old, pytest.raises(LoginRefused):
        old.get_token_stats(org)
    with Client(way.url, secret, deadline=1) as new:
        new.get_token_stats(org)
        with pytest.raises(PermissionDenied):
            new.keys()
        client.staff_revoke_key(made.id, reason="Over")
        client.staff_revoke_key(made.id, reason="Over")
        with pytest.raises(LoginRefused):
            new.get_token_stats(org)
    [row] = listed(client, made.id)
    assert row.revoked_at is not None
    with pytest.raises(ApiKeyOver) as over:
        client.staff_rotate_key(made.id, reason="Too late")
    assert over.value.key_id == made.id
    with pytest.raises(NotFound):
        client.staff_revoke_key(uuid4(), reason="None")
    for call, field in (
        (lambda: client.staff_create_key("A", "read", reason="r"), "scopes"),  # type: ignore[arg-type]
        (
            lambda: client.staff_create_key(
                "A", ["read"], seconds_between_requests=1.5, reason="r"
            ),
            "seconds_between_requests",
        ),
        (
            lambda: client.staff_rotate_key(made.id, overlap=timedelta(seconds=1.5), reason="r"),
            "overlap",
        ),
    ):
        with pytest.raises(InvalidInput) as wrong:
            call()
        assert wrong.value.field == field


def test_a_secret_that_was_lost_on_the_way_is_not_asked_for_again(
    client: Client, way: Flaky, tokens: Tokens
) -> None:
    """A replay has none, and a second rotation would end the secret that is in use."""
    before = len(client.keys())
    way.asked.clear()
    way.then(DROP)
    with pytest.raises(DatabaseUnavailable) as lost:
        client.staff_create_key("Lost", ["read"], reason="a test")
    assert lost.value.outcome == "unknown"
    assert len(way.asked) == 1
    assert len(client.keys()) == before + 1


def test_reading_can_be_awaited(client: Client, org: UUID, user: UUID) -> None:
    async def program() -> None:
        await client.aio.deduct_tokens(org, user, "generate_goal")
        page = await client.aio.history(org)
        assert [row.tokens for row in page.rows] == [3]
        assert (await client.aio.explain(org, "goal_generation")).used == 3
        assert await client.aio.has_enough_tokens(org, "generate_goal")
        made = await client.aio.staff_create_key("Awaited", ["read"], reason="a test")
        await client.aio.staff_revoke_key(made.id, reason="a test")

    asyncio.run(program())
