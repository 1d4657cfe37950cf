"""Verify over a hundred thousand entries: in batches, in little memory, and no less exact."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import psycopg
import pytest

from tokenlib import Tokens
from tokenlib.db import Database
from tokenlib.testing import TestDatabase

ORGANIZATIONS, CHARGES = 4, 25_000

# What as many charges leave behind, without their round trips.
CHARGE = """
do $$
declare
    l public.ai_token_usage_log;
    w public.ai_tokens;
begin
    for w in select * from public.ai_tokens where token_type = 'general' order by id loop
        l.organization_id := w.organization_id;
        l.user_id := w.id;
        l.token_type := w.token_type;
        l.feature_used := 'generate_insight';
        l.tokens_deducted := 1;
        l.created_at := w.last_entry_at;
        l.units := 1;
        l.tokens_waived := 0;
        l.held := 0;
        l.returned := 0;
        l.hash_version := 1;
        l.hash := w.log_hash;
        for n in 1..%d loop
            l.id := gen_random_uuid();
            l.number := n;
            l.remaining_balance := w.balance - n;
            l.hash := tokenlib.usage_hash(l.hash, l);
            insert into public.ai_token_usage_log values (l.*);
        end loop;
        update public.ai_tokens set balance = balance - l.number, log_hash = l.hash,
            total_used = total_used + l.number, pending = pending + l.number, log_number = l.number
        where organization_id = w.organization_id and id = w.id;
    end loop;
end
$$
"""


@pytest.fixture
def large(token_database: TestDatabase) -> Iterator[Tokens]:
    with Tokens(Database(token_database.url())) as tokens:
        for number in range(ORGANIZATIONS):
            organization = tokens.create_organization(f"Organization {number}", "pro")
            tokens.upgrade_tokens(organization, "general", CHARGES)
        with token_database.connect() as owner:
            owner.execute((CHARGE % CHARGES).encode())
            owner.execute("vacuum analyze ai_token_usage_log")
        yield tokens


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_a_hundred_thousand_entries(large: Tokens, token_database: TestDatabase) -> None:
    seen: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        found = large.verify(progress=lambda done, total: seen.append((done, total)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.closed, found.problems
    # The opening of each wallet and one grant each beside the charges.
    assert found.entries == ORGANIZATIONS * (CHARGES + 5 + 1)
    # It moves before the end, since a batch ends where enough has been read.
    assert seen == [(2, 4), (4, 4)]
    assert peak < 5_000_000  # the rows stay in the database

    with token_database.connect("postgres") as root:
        root.execute("alter table ai_token_usage_log disable trigger append_only")
        _edit(root)
    problems = large.verify().problems
    assert len({problem.organization_id for problem in problems}) == 1
    found_at = {(problem.kind, problem.entry) for problem in problems}
    assert found_at >= {("log_hash_differs", "log 12345"), ("balance_after_differs", "log 12345")}


def _edit(root: psycopg.Connection) -> None:
    changed = root.execute(
        "update ai_token_usage_log set tokens_deducted = 2 where number = 12345"
        " and organization_id = (select max(organization_id::text)::uuid from ai_tokens)"
    )
    assert changed.rowcount == 1
