"""The gate is timed for real, and leaves nothing but the history of its measurements."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from tokenlib import ConfigurationError, Tokens
from tokenlib.latency import PROBE_NAME, Pace, measure_latency
from tokenlib.reports import Reports

Person = tuple[UUID, UUID]

_COUNTED = (
    "organizations",
    "user_profiles",
    "ai_tokens",
    "ai_token_usage_log",
    "ai_token_events",
    "ai_token_grants",
    "ai_token_reservations",
    "ai_token_refusals",
    "ai_token_changes",
)


def everything(owner: psycopg.Connection) -> dict[str, list[tuple[object, ...]]]:
    query = "select row_to_json(t)::text from {} as t order by 1"
    return {
        table: owner.execute(SQL(query).format(Identifier(table))).fetchall() for table in _COUNTED
    }


def test_a_measurement_is_kept_and_nothing_else_is(
    tokens: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal")
    before = everything(owner)
    rows = measure_latency(tokens)
    assert everything(owner) == before
    assert [row.operation for row in rows] == ["check", "deduct", "stats"]
    assert [(row.target, row.acceptable, row.alert) for row in rows] == [
        (5, 10, 20),
        (20, 50, 100),
        (15, 30, 50),
    ]
    assert all(row.milliseconds > 0 for row in rows)
    assert owner.execute(
        "select operation, measured_at, milliseconds from ai_token_latencies order by operation"
    ).fetchall() == [(row.operation, row.measured_at, row.milliseconds) for row in rows]

    again = measure_latency(tokens)
    assert [row.operation for row in again] == ["check", "deduct", "stats"]
    assert all(new.measured_at > old.measured_at for new, old in zip(again, rows, strict=True))
    assert tokens.verify().closed


def test_what_answered_is_kept_as_a_median_and_begun_anew(
    tokens: Tokens, owner: psycopg.Connection
) -> None:
    seen = Pace()
    for milliseconds in (9000, 10, 500, 30):  # the first is cold
        seen.add("api", milliseconds)
    for milliseconds in (9000, 250):
        seen.add("page", milliseconds)
    seen.keep(tokens)
    rows = {row.operation: row for row in Reports(tokens.database).latest_latencies()}
    assert {name: row.milliseconds for name, row in rows.items()} == {"api": 30, "page": 250}
    assert {name: row.grade for name, row in rows.items()} == dict.fromkeys(rows, "on_target")
    seen.keep(tokens)
    assert owner.execute("select count(*) from ai_token_latencies").fetchone() == (2,)


def test_no_report_counts_the_probe(tokens: Tokens, pro: Person) -> None:
    measure_latency(tokens)
    reports = Reports(tokens.database)
    assert reports.organizations(search=PROBE_NAME).total == 0
    assert reports.organizations().total == 1
    assert {row.organization_id for row in reports.wallets()} == {pro[0]}


def test_the_deduction_is_a_real_one(tokens: Tokens, owner: psycopg.Connection) -> None:
    # Slow down what a charge writes: only the deduction may become slower.
    owner.execute(
        "create function tokenlib.wait() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.03); return new; end $$"
    )
    owner.execute(
        "create trigger slow before insert on ai_token_usage_log"
        " for each row execute function tokenlib.wait()"
    )
    check, deduct, stats = measure_latency(tokens)
    assert deduct.milliseconds > 30
    assert check.milliseconds < 30
    assert stats.milliseconds < 30
    assert deduct.grade in ("acceptable", "slow", "alert")


def test_the_commit_is_in_the_deduction(tokens: Tokens, owner: psycopg.Connection) -> None:
    # A commit that takes 50 ms: a deferred trigger runs as part of it.
    owner.execute(
        "create function tokenlib.wait() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.05); return new; end $$"
    )
    owner.execute(
        "create constraint trigger slow after insert on ai_token_latencies"
        " deferrable initially deferred for each row execute function tokenlib.wait()"
    )
    check, deduct, stats = measure_latency(tokens)
    assert deduct.milliseconds > 50
    assert check.milliseconds < 50
    assert stats.milliseconds < 50


def test_a_changed_catalog_can_be_timed_too(tokens: Tokens, owner: psycopg.Connection) -> None:
    owner.execute("delete from ai_token_features where feature <> 'generate_goal'")
    owner.execute("update ai_token_features set cost = 1000000")
    owner.execute("update ai_token_allowances set allowance = 0 where plan <> 'pro'")
    assert len(measure_latency(tokens)) == 3
    owner.execute("update ai_token_allowances set allowance = 0")
    with pytest.raises(ConfigurationError, match="No plan"):
        measure_latency(tokens)
