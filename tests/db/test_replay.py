"""Replays: many threads on one gate, by the stated rule, and nothing is charged twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from tokenlib import InvalidInput, NotMigrated, Tokens, UnknownOrganization
from tokenlib.replay import (
    Report,
    Tenants,
    Trace,
    own_organization,
    replay,
    replay_organizations,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "azure_llm_inference_trace_code.csv"
FEATURES = (
    "generate_insight",
    "analyze_efficiency",
    "analyze_strategy",
    "generate_goal",
    "forecast_revenue",
    "generate_leads",
)
Join = Callable[[str], tuple[UUID, UUID]]

pytestmark = pytest.mark.usefixtures("books_close")


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """Four hundred requests of every size, a second apart."""
    return written(
        tmp_path,
        [(f"2024-01-01T00:{n // 60:02}:{n % 60:02}", n * 37 % 6000, n * 7) for n in range(400)],
    )


def written(folder: Path, rows: list[tuple[str, int, int]]) -> Trace:
    path = folder / "trace.csv"
    lines = ["time,input_units,output_units", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines))
    return Trace(path)


def charges(owner: psycopg.Connection) -> list[tuple[UUID, UUID, str, int, int, int, int]]:
    return owner.execute(
        "select organization_id, user_id, feature_used, units, (metadata ->> 'line')::int,"
        " (metadata ->> 'input_units')::int, (metadata ->> 'output_units')::int"
        " from ai_token_usage_log order by 5"
    ).fetchall()


def spent(owner: psycopg.Connection) -> tuple[int, int]:
    row = owner.execute(
        "select count(*), coalesce(sum(tokens_deducted), 0)::int from ai_token_usage_log"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def check(report: Report, rows: int) -> None:
    """Every row has one answer, and the books of the run close."""
    answered = report.charged + report.replayed + sum(report.refused.values())
    assert (answered, report.errors, report.problems) == (rows, {}, ())
    assert report.passed
    latency = report.latency_ms
    assert latency.p50 is not None
    assert latency.p95 is not None
    assert latency.p99 is not None
    assert 0 < latency.p50 <= latency.p95 <= latency.p99


def test_twelve_threads_charge_what_the_rule_says(
    tokens: Tokens, owner: psycopg.Connection, trace: Trace
) -> None:
    tenants = replay_organizations(tokens, "first", 7)
    report = replay(tokens, trace, tenants, "first", workers=12)
    check(report, 400)
    assert spent(owner) == (report.charged, report.tokens)
    assert set(report.refused) == {"feature_not_in_plan", "insufficient_tokens"}

    features = Counter[str]()
    for organization, user, feature, units, line, inputs, outputs in charges(owner):
        assert organization == tenants.organizations[line % 7]
        assert user == tenants.members[line % 7][line // 7 % 4]
        steps = sum(inputs + outputs >= bound for bound in (256, 512, 1024, 2048, 4096))
        assert FEATURES[steps] == feature
        assert units == min(4, 1 + max(0, outputs - 1) // 500)
        features[feature] += 1
    assert set(features) == set(FEATURES)


def test_the_organizations_of_a_run_are_on_all_plans(
    tokens: Tokens, owner: psycopg.Connection
) -> None:
    replay_organizations(tokens, "first", 5)
    found = owner.execute("select name, plan from organizations order by name").fetchall()
    assert found == [
        ("Replay first 1 of 5", "enterprise"),
        ("Replay first 2 of 5", "pro"),
        ("Replay first 3 of 5", "enterprise"),
        ("Replay first 4 of 5", "pro"),
        ("Replay first 5 of 5", "starter"),
    ]


def test_a_run_that_is_repeated_charges_nothing_more(
    tokens: Tokens, owner: psycopg.Connection, trace: Trace
) -> None:
    tenants = replay_organizations(tokens, "first", 5)
    first = replay(tokens, trace, tenants, "first", workers=8)
    before = spent(owner)
    assert replay_organizations(tokens, "first", 5) == tenants
    second = replay(tokens, trace, tenants, "first", workers=8)
    check(second, 400)
    assert (second.charged, second.tokens, second.replayed) == (0, 0, first.charged)
    assert spent(owner) == before


def test_two_replays_of_one_run_at_the_same_time_charge_once(
    tokens: Tokens, owner: psycopg.Connection, trace: Trace
) -> None:
    tenants: list[Tenants] = []
    reports: list[Report] = []

    def once() -> None:
        tenants.append(replay_organizations(tokens, "first", 5))
        reports.append(replay(tokens, trace, tenants[-1], "first", workers=5))

    threads = [threading.Thread(target=once) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tenants[0] == tenants[1]
    for report in reports:
        check(report, 400)
    keys = owner.execute(
        "select count(*), count(distinct idempotency_key) from ai_token_usage_log"
    ).fetchone()
    assert keys == (reports[0].charged + reports[1].charged,) * 2
    assert spent(owner)[1] == reports[0].tokens + reports[1].tokens


def test_another_run_has_organizations_of_its_own(
    tokens: Tokens, owner: psycopg.Connection, trace: Trace
) -> None:
    first = replay_organizations(tokens, "a", 3)
    second = replay_organizations(tokens, "a.b", 3)
    assert not set(first.organizations) & set(second.organizations)
    reports = [replay(tokens, trace, first, "a"), replay(tokens, trace, second, "a.b")]
    # Which request finds a wallet nearly empty is a race, so the sums may differ a little.
    assert min(report.tokens for report in reports) > 0
    assert spent(owner)[1] == sum(report.tokens for report in reports)


def test_a_run_keeps_its_number_of_organizations(tokens: Tokens, owner: psycopg.Connection) -> None:
    replay_organizations(tokens, "first", 3)
    with pytest.raises(InvalidInput, match="organizations must be 3, as when run first was begun"):
        replay_organizations(tokens, "first", 4)
    assert owner.execute("select count(*) from organizations").fetchone() == (3,)


@pytest.mark.parametrize("run", ["", "two words", "x" * 41, "a/b", "a\n"])
def test_a_name_that_cannot_be_one_is_refused(tokens: Tokens, run: str) -> None:
    tokens.create_organization("Somebody", "pro")
    with pytest.raises(InvalidInput, match="run must be 1 to 40 letters"):
        replay_organizations(tokens, run, 2)


def test_an_organization_of_ones_own(
    tokens: Tokens, owner: psycopg.Connection, trace: Trace, pro: tuple[UUID, UUID]
) -> None:
    tenants = own_organization(tokens, str(pro[0]))
    assert tenants == Tenants((pro[0],), ((pro[1],),))
    check(replay(tokens, trace, tenants, "own"), 400)
    assert {(row[0], row[1]) for row in charges(owner)} == {pro}
    assert owner.execute("select count(*) from organizations").fetchone() == (1,)


def test_an_organization_that_cannot_be_charged(tokens: Tokens) -> None:
    with pytest.raises(UnknownOrganization):
        own_organization(tokens, UUID(int=1))
    with pytest.raises(InvalidInput, match="organization must be a UUID"):
        own_organization(tokens, "acme")
    with pytest.raises(InvalidInput, match="organization has no members"):
        own_organization(tokens, tokens.create_organization("Empty", "pro"))


def test_one_locked_wallet_holds_only_its_own_request(
    tokens: Tokens, owner: psycopg.Connection, tmp_path: Path
) -> None:
    trace = written(tmp_path, [("2024-01-01", 5000, 1)] * 4)
    tenants = replay_organizations(tokens, "first", 4)
    owner.execute("begin")
    first = {"id": tenants.organizations[2]}  # that of line 2
    owner.execute("select from ai_tokens where organization_id = %(id)s for update", first)

    def unlock(sent: int, _total: int) -> None:
        if sent == 3:
            owner.execute("commit")

    report = replay(tokens, trace, tenants, "first", workers=2, progress=unlock)
    check(report, 4)


def test_a_speed_keeps_the_pace_of_the_trace(tokens: Tokens, tmp_path: Path) -> None:
    trace = written(tmp_path, [(f"2024-01-01T00:00:{second}", 1, 1) for second in ("04", "01", 34)])
    tenants = replay_organizations(tokens, "first", 1)
    assert replay(tokens, trace, tenants, "first", workers=2, speed=100).seconds >= 0.3


def test_an_error_is_counted_and_the_replay_fails(
    tokens: Tokens, trace: Trace, pro: tuple[UUID, UUID]
) -> None:
    key = f"replay:own:{trace.digest[:32]}:9"
    tokens.deduct_tokens(*pro, "generate_goal", idempotency_key=key)
    report = replay(tokens, trace, own_organization(tokens, pro[0]), "own")
    assert report.errors == {"idempotency_conflict": 1}
    assert (report.problems, report.passed) == ((), False)


def test_a_hundred_errors_stop_it(
    tokens: Tokens, owner: psycopg.Connection, trace: Trace, pro: tuple[UUID, UUID]
) -> None:
    tenants = own_organization(tokens, pro[0])
    seen: list[int] = []
    for verb in ("deduct", "deduct_many"):  # one that is missing alone would let some pass
        owner.execute(f"alter function tokenlib.{verb} rename to {verb}_gone")
    with pytest.raises(NotMigrated):
        replay(tokens, trace, tenants, "own", progress=lambda sent, _: seen.append(sent))
    assert 100 <= max(seen) < 120


def test_an_interrupted_replay_stops_charging_and_can_be_taken_up(
    tokens: Tokens, owner: psycopg.Connection, trace: Trace
) -> None:
    tenants = replay_organizations(tokens, "first", 5)
    before = set(threading.enumerate())

    def interrupt(sent: int, _total: int) -> None:
        if sent:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # at this speed it would take four seconds
        replay(tokens, trace, tenants, "first", workers=4, speed=100, progress=interrupt)
    assert set(threading.enumerate()) == before
    charged, _ = spent(owner)
    assert 0 < charged < 400
    report = replay(tokens, trace, tenants, "first", workers=4)
    check(report, 400)
    assert report.replayed == charged


@pytest.mark.skipif(not REAL.exists(), reason=f"needs the trace {REAL.name} in ../shared/data")
def test_the_real_trace_with_sixteen_threads(tokens: Tokens, owner: psycopg.Connection) -> None:
    trace = Trace(REAL)
    report = replay(tokens, trace, replay_organizations(tokens, "real", 50), "real", workers=16)
    check(report, 8819)
    assert spent(owner) == (report.charged, report.tokens)
