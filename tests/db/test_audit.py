"""Verify finds what somebody with every right has changed, and says which entry."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import AlreadySettled, NotFound, Problem, Tokens, UnknownOrganization
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]
Join = Callable[[str], Person]

# Switched off for the one who tampers; see test_gate_policy for what they do for everybody else.
UNGUARD = """
alter table ai_token_usage_log disable trigger append_only;
alter table ai_token_events disable trigger append_only;
alter table ai_tokens disable trigger sums_close;
alter table ai_tokens drop constraint sums_close, drop constraint balance_not_negative;
alter table ai_token_usage_log drop constraint log_number_once;
alter table ai_token_events drop constraint event_number_once;
drop index one_charge_per_key;
"""


LOG = "update ai_token_usage_log set {} where organization_id = %(own)s and number = {}"
WALLET = (
    "update ai_tokens set {} where organization_id = %(own)s and token_type = 'goal_generation'"
)
EVENT = (
    "update ai_token_events set {} where organization_id = %(own)s"
    " and token_type = 'goal_generation' and number = {}"
)
GRANTED = "update ai_token_events set {} where organization_id = %(own)s and kind = 'grant'"
GIFT = "update ai_token_grants set {} where organization_id = %(own)s and kind = 'gift'"
HOLD = "update ai_token_reservations set {} where organization_id = %(own)s and state = '{}'"
DELETE = "delete from {} where organization_id = %(own)s and {}"
NINE = """'{"n": 9}'"""
ADDED = """insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used,
    tokens_deducted, remaining_balance, number, hash_version, hash) values (%(own)s,
    gen_random_uuid(), 'goal_generation', 'generate_goal', 3, 5, {}, 1, 'x')"""

# What was changed, and where verify points. %(own)s is one organization, %(other)s another.
TAMPERED: dict[str, tuple[str, set[tuple[str, str]]]] = {
    "an amount": (
        LOG.format("tokens_deducted = 1", 2),
        {("log_hash_differs", "log 2"), ("balance_after_differs", "log 2")},
    ),
    "a balance after": (
        LOG.format("remaining_balance = 20", 2),
        {("log_hash_differs", "log 2"), ("balance_after_differs", "log 2")},
    ),
    "who did it": (
        LOG.format("user_id = gen_random_uuid()", 3),
        {("log_hash_differs", "log 3")},
    ),
    "when it was": (
        LOG.format("created_at = created_at + interval '1 microsecond'", 3),
        {("log_hash_differs", "log 3")},
    ),
    "the metadata": (LOG.format("metadata = " + NINE, 2), {("metadata_differs", "log 2")}),
    "the metadata with its digest": (
        LOG.format(f"metadata = {NINE}, metadata_digest = tokenlib.digest({NINE})", 2),
        {("log_hash_differs", "log 2")},
    ),
    "a hash": (
        LOG.format("hash = sha256('x')", 2),
        {("log_hash_differs", "log 2"), ("log_hash_differs", "log 3")},
    ),
    "a row out of the middle": (
        DELETE.format("ai_token_usage_log", "number = 2"),
        {
            ("log_number_gap", "log 3"),
            ("log_hash_differs", "log 3"),
            ("balance_after_differs", "log 3"),
            ("log_head_differs", "wallet"),
            ("wallet_differs_from_entries", "wallet"),
        },
    ),
    "the tail": (
        DELETE.format("ai_token_usage_log", "number = 4"),
        {("log_head_differs", "wallet"), ("wallet_differs_from_entries", "wallet")},
    ),
    "the order": (
        LOG.format("number = 5 - number", "any ('{2,3}')"),
        {("log_hash_differs", "log 2"), ("log_hash_differs", "log 3")},
    ),
    "a row of another organization": (
        LOG.format("organization_id = %(other)s, number = 5, idempotency_key = null", 4),
        {("log_head_differs", "wallet"), ("log_hash_differs", "log 5")},
    ),
    "a row that was added": (
        ADDED.format(5),
        {("log_hash_differs", "log 5"), ("log_head_differs", "wallet")},
    ),
    "a row without a number": (ADDED.format("null"), {("legacy_rows_differ", "event 1")}),
    "a charge under the same key": (
        LOG.format("idempotency_key = 'key 1'", 2),
        {("key_used_twice", "key key 1"), ("log_hash_differs", "log 2")},
    ),
    "a wallet's balance": (
        WALLET.format("balance = balance + 5, total_allocated = total_allocated + 5"),
        {("wallet_differs_from_entries", "wallet"), ("grants_differ", "wallet")},
    ),
    "a wallet's sums": (
        WALLET.format("balance = 9999"),
        {("sums_do_not_close", "wallet"), ("wallet_differs_from_entries", "wallet")},
    ),
    "a wallet's use": (
        WALLET.format("total_used = 0, total_allocated = total_allocated - total_used"),
        {("wallet_differs_from_entries", "wallet")},
    ),
    "a wallet's hold": (
        WALLET.format("reserved = 0, balance = balance + reserved"),
        {("holds_differ", "wallet"), ("wallet_differs_from_entries", "wallet")},
    ),
    "a wallet's head": (
        WALLET.format("log_hash = 'x', event_number = 1"),
        {("log_head_differs", "wallet"), ("event_head_differs", "wallet")},
    ),
    "a wallet": (
        DELETE.format("ai_tokens", "token_type = 'goal_generation'"),
        {("wallet_missing", "wallet")},
    ),
    "every wallet": (DELETE.format("ai_tokens", "true"), {("wallet_missing", "wallet")}),
    "an event's amount": (
        GRANTED.format("balance_change = 11"),
        {("event_hash_differs", "event 2"), ("balance_after_differs", "event 2")},
    ),
    "an event's reason": (
        GRANTED.format("reason = 'another'"),
        {("event_hash_differs", "event 2")},
    ),
    "an event's data": (GRANTED.format("data = " + NINE), {("event_hash_differs", "event 2")}),
    "an event out of the middle": (
        DELETE.format("ai_token_events", "kind = 'grant'"),
        {("event_number_gap", "event 3"), ("event_head_differs", "wallet")},
    ),
    "the order of events": (
        EVENT.format("number = 5 - number", "any ('{2,3}')"),
        {("event_hash_differs", "event 2"), ("event_hash_differs", "event 3")},
    ),
    "an event of another organization": (
        EVENT.format("organization_id = %(other)s, number = 6", "3"),
        {
            ("event_number_gap", "event 4"),
            ("event_head_differs", "wallet"),
            ("event_hash_differs", "event 6"),
            ("reservation_differs", "reservation"),
        },
    ),
    "an event between two wallets": (
        EVENT.format("token_type = 'general', number = 2, idempotency_key = null", "2"),
        {("event_number_gap", "event 3"), ("event_hash_differs", "event 2")},
    ),
    "the last event": (
        DELETE.format("ai_token_events", "number = 5"),
        {("event_head_differs", "wallet"), ("reservation_differs", "reservation")},
    ),
    "a wallet's plan": (WALLET.format("plan = 'starter'"), {("terms_differ", "wallet")}),
    "a wallet's allowance": (WALLET.format("allowance = null"), {("terms_differ", "wallet")}),
    "a wallet's period": (
        WALLET.format("refresh_date = refresh_date + interval '1 day'"),
        {("terms_differ", "wallet")},
    ),
    "the beginning of a wallet's period": (
        WALLET.format("period_start = period_start - interval '1 day'"),
        {("terms_differ", "wallet")},
    ),
    "the beginning of a wallet's period, away": (
        WALLET.format("period_start = null"),
        {("terms_differ", "wallet")},
    ),
    "when a wallet was last written, later": (
        WALLET.format("last_entry_at = '2099-01-01'"),
        {("last_entry_differs", "wallet")},
    ),
    "when a wallet was last written, earlier": (
        WALLET.format("last_entry_at = '-infinity'"),
        {("last_entry_differs", "wallet")},
    ),
    "when a wallet wakes": (WALLET.format("due_at = 'infinity'"), {("terms_differ", "wallet")}),
    "what waits to be drawn": (
        WALLET.format("pending = pending + 1"),
        {("grants_differ", "wallet")},
    ),
    "a grant's end": (GIFT.format("expires_at = null"), {("grant_differs", "grant")}),
    "a grant's beginning": (
        GIFT.format("effective_at = effective_at - interval '1 day'"),
        {("grant_differs", "grant")},
    ),
    "whose a grant is": (
        GIFT.format("organization_id = %(other)s"),
        {("grant_differs", "grant"), ("grants_differ", "wallet")},
    ),
    "a grant that is gone": (
        DELETE.format("ai_token_grants", "kind = 'gift'"),
        {("grant_differs", "grant"), ("grants_differ", "wallet")},
    ),
    "whose a hold is": (
        HOLD.format("organization_id = %(other)s", "released"),
        {("reservation_differs", "reservation")},
    ),
    "a grant": (GIFT.format("amount = 99, remaining = 99"), {("grants_differ", "wallet")}),
    "a hold's tokens": (
        HOLD.format("tokens = 1", "held"),
        {("holds_differ", "wallet"), ("reservation_differs", "reservation")},
    ),
    "a hold that was released": (
        HOLD.format("state = 'deducted'", "released"),
        {("reservation_differs", "reservation")},
    ),
    "a hold that is gone": (
        DELETE.format("ai_token_reservations", "state = 'held'"),
        {("holds_differ", "wallet"), ("reservation_differs", "reservation")},
    ),
}
# And each term of a hold, live or over.
TERMS = {
    "token_type = 'general'": ("released",),
    "user_id = gen_random_uuid()": ("held", "released", "deducted"),
    "feature = 'generate_insight'": ("held", "released", "deducted"),
    "units = units + 1": ("held", "released", "deducted"),
    "waived = 1": ("held", "released", "deducted"),
    "idempotency_key = null": ("held", "released", "deducted"),
    "request_hash = sha256('x')": ("held",),
    "metadata = '{}'": ("held",),
    "created_at = created_at - interval '1 hour'": ("held", "released"),
    "expires_at = 'infinity'": ("held", "released"),
    "resolved_at = resolved_at + interval '1 hour'": ("released", "deducted"),
}


@pytest.fixture
def root(token_database: TestDatabase) -> Iterator[psycopg.Connection]:
    """A superuser, who can do anything."""
    with token_database.connect("postgres") as connection:
        yield connection


def used(tokens: Tokens, person: Person) -> None:
    """Charges 1 to 4 and events 1 to 5 on one wallet, with a live hold."""
    for number in (1, 2, 3, 4):
        tokens.deduct_tokens(
            *person, "generate_goal", metadata={"n": number}, idempotency_key=f"key {number}"
        )
    tokens.grant(
        person[0],
        "goal_generation",
        10,
        reason="a gift",
        idempotency_key="gift",
        expires_at=datetime(2099, 1, 1, tzinfo=UTC),
    )
    tokens.release(tokens.reserve(*person, "generate_goal"), "unused")
    tokens.reserve(*person, "generate_goal")


def places(problems: Iterable[Problem]) -> set[tuple[str, str]]:
    """Kind and entry of each problem; the id of a reservation or grant does not matter."""
    return {(p.kind, re.sub("^(reservation|grant) .*", r"\1", p.entry)) for p in problems}


def test_verify_finds_each_of_them(
    tokens: Tokens, noon: datetime, join: Join, root: psycopg.Connection
) -> None:
    victims = {what: (join("pro"), join("pro")) for what in TAMPERED}
    for pair in victims.values():
        for person in pair:
            used(tokens, person)
    assert tokens.verify().closed

    root.execute(UNGUARD)
    for what, ((own, _), (other, _)) in victims.items():
        changed = root.execute(TAMPERED[what][0], {"own": own, "other": other})
        assert changed.rowcount > 0, what

    everything = tokens.verify().problems
    assert all(problem.detail for problem in everything)
    for what, ((own, _), (other, _)) in victims.items():
        accused = {own, other} if "%(other)s" in TAMPERED[what][0] else {own}
        problems = [problem for problem in everything if problem.organization_id in accused]
        assert TAMPERED[what][1] <= places(problems), what
        assert {problem.organization_id for problem in problems} == accused, what
        types = {problem.token_type for problem in problems}
        elsewhere = what in ("every wallet", "an event between two wallets")
        assert elsewhere or types == {"goal_generation"}, what
        # One organization alone is checked the same.
        alone = tokens.verify(own)
        assert places(alone.problems) == places(p for p in problems if p.organization_id == own)
        assert tokens.verify(other).closed or other in accused, what


def test_verify_finds_each_changed_term_of_a_hold(
    tokens: Tokens, noon: datetime, join: Join, root: psycopg.Connection
) -> None:
    changes = [(change, state) for change, states in TERMS.items() for state in states]
    victims = [(join("pro"), *change) for change in changes]
    for person, _, _ in victims:
        hold = [
            tokens.reserve(*person, "generate_goal", metadata={"n": n}, idempotency_key=f"key {n}")
            for n in (1, 2, 3)
        ]
        tokens.deduct(hold[0])
        tokens.release(hold[1], "unused")
    assert tokens.verify().closed

    for (own, _), change, state in victims:
        changed = root.execute(HOLD.format(change, state), {"own": own})
        assert changed.rowcount == 1, (change, state)
        name = change.split()[0]
        found = [p for p in tokens.verify(own).problems if p.kind == "reservation_terms_differ"]
        assert [(p.token_type, p.detail) for p in found] == [
            ("goal_generation", f"its entries say otherwise: {name}")
        ], (change, state)


def test_verify_counts_what_it_read(tokens: Tokens, pro: Person) -> None:
    used(tokens, pro)
    seen: list[tuple[int, int]] = []
    found = tokens.verify(progress=lambda done, total: seen.append((done, total)))
    assert (found.closed, found.wallets, found.entries) == (True, 5, 5 + 4 + 4)
    assert seen == [(1, 1)]
    with pytest.raises(UnknownOrganization):
        tokens.verify(uuid4())


def test_verify_reads_beside_charges(tokens: Tokens, pro: Person) -> None:
    """Each batch is one snapshot: what is written meanwhile is no problem."""
    tokens.upgrade_tokens(pro[0], "general", 10_000)
    with ThreadPoolExecutor(4) as threads:
        charging = [
            threads.submit(tokens.deduct_tokens, *pro, "generate_insight") for _ in range(400)
        ]
        checks = [tokens.verify() for _ in range(5)]
        wait(charging)
    assert all(check.closed for check in checks)
    assert tokens.get_token_balance(pro[0], "general").total_used == 400


def test_a_finding_is_settled_once_by_an_entry(
    tokens: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    row = owner.execute(
        "insert into ai_token_findings (organization_id, token_type, kind, detail, found_at)"
        " values (%s, 'general', 'emergency_balance', 'a drill', now()) returning id",
        (pro[0],),
    ).fetchone()
    assert row is not None
    tokens.settle_finding(pro[0], row[0], actor="support", reason="kept as a gift")
    with pytest.raises(AlreadySettled):
        tokens.settle_finding(pro[0], row[0], actor="support", reason="again")
    with pytest.raises(NotFound):
        tokens.settle_finding(tokens.create_organization("Other"), row[0], actor="a", reason="b")
    entries = owner.execute(
        "select actor, reason, subject_id, balance_change from ai_token_events"
        " where kind = 'finding_settled'"
    ).fetchall()
    assert entries == [("support", "kept as a gift", row[0], 0)]
    assert tokens.get_token_balance(pro[0], "general").balance == 50
    assert tokens.verify().closed
