"""The ledger: who moved what and why, page by page, narrowed, and with what the old system left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.db import reports_world
from tests.db.reports_world import World
from tokenlib import Tokens
from tokenlib.embedded import Embedded
from tokenlib.reports import Reports
from tokenlib.reports.wallets import EntryRow

Person = tuple[UUID, UUID]


@pytest.fixture(scope="module")
def world(token_server: Embedded) -> Iterator[World]:
    with reports_world.made(token_server) as made:
        yield made


@pytest.fixture
def reports(tokens: Tokens) -> Reports:
    return Reports(tokens.database)


def test_the_ledger_explains_every_balance(world: World) -> None:
    reports = world.service()
    for wallet in reports.wallets():
        entries = reports.ledger(wallet.organization_id, wallet.token_type)
        assert entries[0].balance_after == wallet.balance
        assert sum(entry.balance_change for entry in entries) == wallet.balance
        assert sum(entry.reserved_change for entry in entries) == wallet.reserved
        assert sum(entry.used_change for entry in entries) == wallet.total_used
        for later, earlier in pairwise(entries):
            assert earlier.balance_after + later.balance_change == later.balance_after
            assert earlier.created_at <= later.created_at


def test_the_ledger_says_who_what_and_why(world: World) -> None:
    refund, charge, *_ = [
        entry
        for entry in world.service().ledger(world.b, "lead_generation")
        if entry.kind in ("charge", "refund")
    ]
    assert (refund.kind, refund.balance_change, refund.used_change) == ("refund", 5, -5)
    assert (refund.actor, refund.reason, refund.feature) == ("api", "a mistake", "generate_leads")
    assert (charge.kind, charge.balance_change, charge.used_change) == ("charge", -5, 5)
    assert (charge.actor, charge.feature) == (str(world.b1), "generate_leads")
    assert [entry.refunded for entry in (refund, charge)] == [False, True]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_pages_of_the_ledger_lose_and_repeat_nothing(world: World, limit: int) -> None:
    reports = world.service()
    whole = reports.ledger(world.b, limit=1000)
    [(entries,)] = world.plain(
        "select (select count(*) from ai_token_usage_log where organization_id = %s)"
        " + (select count(*) from ai_token_events where organization_id = %s)",
        world.b,
        world.b,
    )
    assert len(whole) == entries
    paged: list[EntryRow] = []
    for _ in range(0, entries, limit):
        page = reports.ledger(world.b, limit=limit, before=paged[-1] if paged else None)
        assert len(page) <= limit
        paged += page
    assert paged == whole
    assert reports.ledger(world.b, before=whole[-1]) == []


def test_the_ledger_is_narrowed_by_each_filter_and_by_all_together(world: World) -> None:
    reports = world.service()
    whole = [*reports.ledger(world.a, limit=1000), *reports.ledger(world.b, limit=1000)]
    middle = sorted(entry.created_at for entry in whole)[len(whole) // 2]

    def concerns(entry: EntryRow, user: UUID) -> bool:
        return str(user) in (entry.actor, (entry.data or {}).get("user_id"))

    def feature(entry: EntryRow) -> str | None:
        return entry.reason if entry.kind == "reserve" else entry.feature

    filters: list[tuple[dict[str, Any], Callable[[EntryRow], bool]]] = [
        *(({"kind": kind}, lambda e, k=kind: e.kind == k) for kind in {e.kind for e in whole}),
        ({"feature": "generate_goal"}, lambda e: feature(e) == "generate_goal"),
        ({"feature": "generate_leads"}, lambda e: feature(e) == "generate_leads"),
        ({"user_id": world.a1}, lambda e: concerns(e, world.a1)),
        ({"since": middle}, lambda e: e.created_at >= middle),
        ({"until": middle}, lambda e: e.created_at < middle),
        (
            {"kind": "charge", "feature": "generate_goal", "user_id": world.a1, "until": middle},
            lambda e: (
                (e.kind, e.feature, e.actor) == ("charge", "generate_goal", str(world.a1))
                and e.created_at < middle
            ),
        ),
    ]
    for asked, fits in filters:
        for organization in (world.a, world.b):
            every = reports.ledger(organization, limit=1000)
            expected = [entry for entry in every if fits(entry)]
            assert reports.ledger(organization, limit=1000, **asked) == expected, asked
            paged: list[EntryRow] = []
            while page := reports.ledger(
                organization, limit=2, before=paged[-1] if paged else None, **asked
            ):
                paged += page
            assert paged == expected, asked
        assert any(fits(entry) for entry in whole), asked  # else this shows nothing


def test_legacy_charges_are_in_the_ledger(
    reports: Reports, pro: Person, owner: psycopg.Connection
) -> None:
    moments = [datetime(2025, 12, day, tzinfo=UTC) for day in (1, 2, 2)]
    for moment in moments:
        owner.execute(
            "insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used,"
            " tokens_deducted, remaining_balance, created_at)"
            " values (%s, %s, 'general', 'generate_insight', 1, 9, %s)",
            [*pro, moment],
        )
    entries = reports.ledger(pro[0], "general")
    assert [entry.created_at for entry in entries[1:]] == sorted(moments, reverse=True)
    for entry, earlier in pairwise(entries):
        assert reports.ledger(pro[0], "general", limit=1, before=entry) == [earlier]
    assert reports.ledger(pro[0], "general", before=entries[-1]) == []
