"""The anchor finds what no check inside the database can: a history rewritten as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from tokenlib import Tokens
from tokenlib.audit import CHECKS
from tokenlib.db import statements
from tokenlib.testing import TestClock, TestDatabase

Person = tuple[UUID, UUID]

# What somebody with every right does who knows how the hashes are made: the history is consistent
# again, heads included. What they change first goes in the place of %s; there is one organization.
REWRITE = """
do $$
declare
    v_before bytea := '\\x';
    l public.ai_token_usage_log;
    e public.ai_token_events;
begin
    alter table ai_token_usage_log disable trigger append_only;
    alter table ai_token_events disable trigger append_only;
    %s;
    for l in select * from ai_token_usage_log
        where token_type = 'goal_generation' order by number
    loop
        l.hash := tokenlib.usage_hash(v_before, l);
        update ai_token_usage_log set hash = l.hash where id = l.id;
        v_before := l.hash;
    end loop;
    update ai_tokens set log_hash = v_before where token_type = 'goal_generation';
    v_before := '\\x';
    for e in select * from ai_token_events where token_type = 'goal_generation' order by number
    loop
        e.hash := tokenlib.event_hash(v_before, e);
        update ai_token_events set hash = e.hash where id = e.id;
        v_before := e.hash;
    end loop;
    update ai_tokens set event_hash = v_before where token_type = 'goal_generation';
end
$$
"""
CUT = """
delete from ai_token_usage_log where token_type = 'goal_generation' and number = 3;
update ai_tokens set log_number = 2, balance = balance + 3, total_used = total_used - 3,
    pending = pending - 3, last_entry_at = (select created_at from ai_token_usage_log
        where token_type = 'goal_generation' and number = 2)
where token_type = 'goal_generation'
"""


@pytest.fixture
def admin(token_database: TestDatabase) -> Iterator[psycopg.Connection]:
    with token_database.connect("postgres") as connection:
        yield connection


@pytest.fixture
def charged(tokens: Tokens, pro: Person) -> Person:
    """Three charges of 3 tokens and a grant."""
    for number in range(3):
        tokens.deduct_tokens(*pro, "generate_goal", metadata={"number": number})
    tokens.grant(pro[0], "goal_generation", 5, reason="goodwill")
    return pro


def taken(tokens: Tokens) -> str:
    output = StringIO()
    tokens.anchor(output)
    return output.getvalue()


def against(tokens: Tokens, anchor: str) -> list[tuple[str, str]]:
    found = tokens.verify(anchor=anchor.splitlines())
    return [(problem.kind, problem.entry) for problem in found.problems]


def test_an_anchor_has_a_line_for_each_wallet_and_counts_them(
    tokens: Tokens, charged: Person
) -> None:
    lines = [json.loads(line) for line in taken(tokens).splitlines()]
    assert lines[-1]["wallets"] == len(lines) - 1 == 5
    [head] = [line for line in lines[:-1] if line["token_type"] == "goal_generation"]
    assert (head["log_number"], head["event_number"]) == (3, 2)
    assert len(head["log_hash"]) == len(head["event_hash"]) == 64
    assert head["organization_id"] == str(charged[0])


def test_what_goes_on_after_it_is_no_problem(
    tokens: Tokens, token_clock: TestClock, charged: Person
) -> None:
    anchor = taken(tokens)
    tokens.deduct_tokens(*charged, "generate_goal")
    tokens.create_organization("Later", "pro")
    token_clock.advance(timedelta(days=31))
    tokens.refresh_tokens()
    assert against(tokens, anchor) == []


def test_it_finds_a_log_rewritten_with_its_hashes(
    tokens: Tokens, charged: Person, admin: psycopg.Connection
) -> None:
    for change in (
        "update ai_token_usage_log set feature_used = 'generate_leads' where number = 2",
        "update ai_token_usage_log set user_id = gen_random_uuid() where number = 1",
        "update ai_token_usage_log set created_at = created_at - interval '1 day' where number = 3",
        """update ai_token_usage_log set metadata = '{"number": 7}',
            metadata_digest = tokenlib.digest('{"number": 7}') where number = 2""",
    ):
        anchor = taken(tokens)
        admin.execute((REWRITE % change).encode())
        assert tokens.verify().closed, "nothing inside the database gives it away"
        assert against(tokens, anchor) == [("anchor_history_differs", "log 3")]


def test_it_finds_events_rewritten_with_their_hashes(
    tokens: Tokens, charged: Person, admin: psycopg.Connection
) -> None:
    anchor = taken(tokens)
    change = "update ai_token_events set reason = 'ordered' where kind = 'grant'"
    admin.execute((REWRITE % change).encode())
    assert tokens.verify().closed
    assert against(tokens, anchor) == [("anchor_history_differs", "event 2")]


def test_it_finds_a_tail_that_was_cut_with_the_heads(
    tokens: Tokens, pro: Person, admin: psycopg.Connection
) -> None:
    for _ in range(3):
        tokens.deduct_tokens(*pro, "generate_goal")
    anchor = taken(tokens)
    admin.execute((REWRITE % CUT).encode())
    assert tokens.verify().closed
    assert against(tokens, anchor) == [("anchor_tail_cut", "log 3")]
    tokens.deduct_tokens(*pro, "generate_goal")
    assert against(tokens, anchor) == [("anchor_history_differs", "log 3")]


def test_it_finds_an_organization_that_is_gone_with_everything(
    tokens: Tokens, charged: Person, admin: psycopg.Connection
) -> None:
    anchor = taken(tokens)
    for table in ("ai_token_usage_log", "ai_token_events"):
        admin.execute(f"alter table {table} disable trigger append_only")
    tables = ("usage_log", "events", "grants", "reservations")
    for table in ("ai_tokens", *(f"ai_token_{name}" for name in tables)):
        admin.execute(sql.SQL("delete from {}").format(sql.Identifier(table)))
    assert tokens.verify().closed
    found = against(tokens, anchor)
    assert found.count(("anchor_tail_cut", "event 1")) == 4
    assert ("anchor_tail_cut", "log 3") in found


def test_one_organization_is_held_against_its_own_lines(
    tokens: Tokens, charged: Person, admin: psycopg.Connection
) -> None:
    change = "update ai_token_events set reason = 'ordered' where kind = 'grant'"
    anchor = taken(tokens).splitlines()
    admin.execute((REWRITE % change).encode())
    other = tokens.create_organization("Other", "pro")
    assert tokens.verify(other, anchor=anchor).closed
    assert not tokens.verify(charged[0], anchor=anchor).closed


SETTINGS = [
    {"TimeZone": "Asia/Kathmandu", "DateStyle": "German"},
    {"IntervalStyle": "sql_standard", "bytea_output": "escape", "extra_float_digits": "-15"},
    {"TimeZone": "America/New_York", "DateStyle": "SQL, DMY", "standard_conforming_strings": "on"},
    {"search_path": "pg_temp", "client_encoding": "LATIN1", "lc_time": "C", "lc_numeric": "C"},
    {"IntervalStyle": "iso_8601", "bytea_output": "hex", "quote_all_identifiers": "on"},
    {"enable_sort": "off", "enable_indexscan": "off", "work_mem": "64kB", "jit": "off"},
]


def test_no_setting_of_a_session_changes_a_hash(
    tokens: Tokens, token_database: TestDatabase, charged: Person
) -> None:
    """Entries written under one setting verify under every other, and the heads read the same."""
    for number, settings in enumerate(SETTINGS):
        _write_and_verify(tokens, token_database, charged, settings, f"key {number}")


def _write_and_verify(
    tokens: Tokens, database: TestDatabase, person: Person, settings: dict[str, str], key: str
) -> None:
    with database.connect("tokenlib_service") as session:
        for name, value in settings.items():
            session.execute("select set_config(%s, %s, false)", (name, value))
        session.execute(
            "select tokenlib.deduct(%s, %s, 'generate_goal', 1, %s, %s, false, null)",
            (*person, '{"half": 0.50, "prompt": "Größe"}', key),
        )
        named = statements("audit")
        for check in CHECKS:
            found = session.execute(named[check].encode(), {"ids": [person[0]]}).fetchall()
            assert found == [], check
        anchor = taken(tokens)
        asked = statements("anchors")["heads"].encode()
        heads = session.execute(asked, {"ids": [person[0]]}).fetchall()
    assert tokens.verify(anchor=anchor.splitlines()).closed
    found_heads = {(str(head[0]), *head[1:]) for head in heads}
    lines = [json.loads(line) for line in anchor.splitlines()[:-1]]
    assert found_heads == {
        tuple(value for name, value in line.items() if name != "at") for line in lines
    }
