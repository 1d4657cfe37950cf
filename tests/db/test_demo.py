"""The demo in a real database: loaded in full once, and small where a test changes it."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.db.demo_loaded import FEW, OWNER, Demo, few, play_the_scenarios
from tokenlib import (
    PermissionDenied,
    Tokens,
    demo,
)
from tokenlib.db import Database
from tokenlib.demo import PERSONAS, SCENARIOS, legacy, situations
from tokenlib.embedded import Embedded
from tokenlib.errors import ConfigurationError, InvalidInput, TokenlibError
from tokenlib.testing import TestDatabase


@contextmanager
def empty(server: Embedded) -> Iterator[tuple[TestDatabase, Tokens]]:
    database = TestDatabase(server, f"demo_{uuid.uuid4().hex[:12]}")
    with TestDatabase(server, "postgres").connect("postgres") as connection:
        connection.execute(
            f'create database "{database.name}" template tokenlib_template strategy file_copy'
        )
        try:
            with Tokens(Database(database.url())) as tokens:
                yield database, tokens
        finally:
            connection.execute(f'drop database "{database.name}" with (force)')


@pytest.fixture(scope="module")
def full(token_server: Embedded) -> Iterator[Demo]:
    """All of it, never changed by a test."""
    with empty(token_server) as (database, tokens):
        yield Demo(database, tokens, demo.load(database.url(OWNER), tokens))


@pytest.fixture
def small(token_database: TestDatabase, tokens: Tokens) -> Demo:
    return few(token_database, tokens)


def test_counts_are_what_the_summary_says(full: Demo) -> None:
    assert full.summary.fresh
    assert (full.summary.organizations, full.summary.users) == (60, 400)
    assert abs(full.summary.charges - 200_000) < 1_000
    ((organizations, users, charges, events),) = full.rows(
        "select (select count(*) from organizations), (select count(*) from user_profiles),"
        " (select count(*) from ai_token_usage_log), (select count(*) from ai_token_events)"
    )
    assert (organizations, users, charges, events) == (
        full.summary.organizations,
        full.summary.users,
        full.summary.charges,
        full.summary.events,
    )


def test_the_books_close_hashes_included(full: Demo) -> None:
    found = full.tokens.verify()
    assert found.problems == ()
    assert found.entries > 200_000


def test_one_changed_row_is_found(small: Demo) -> None:
    # So that the test above could fail: the superuser edits one charge past the triggers.
    with small.database.connect("postgres") as connection:
        connection.execute("alter table ai_token_usage_log disable trigger all")
        connection.execute(
            "update ai_token_usage_log set user_id = gen_random_uuid()"
            " where id = (select id from ai_token_usage_log where number is not null limit 1)"
        )
    assert {problem.kind for problem in small.tokens.verify().problems} == {"log_hash_differs"}


def test_what_wallets_say_is_what_their_log_says(full: Demo) -> None:
    wrong = full.rows(
        """
        select w.organization_id, w.token_type, w.total_used, since.used
        from ai_tokens w
        cross join lateral (
            select max(number) as number, max(after_log) as after_log from ai_token_events e
            where e.organization_id = w.organization_id and e.token_type = w.token_type
                and e.kind in ('opening', 'refresh')
        ) as last
        cross join lateral (
            select coalesce((select sum(tokens_deducted) from ai_token_usage_log l
                    where l.organization_id = w.organization_id and l.token_type = w.token_type
                        and l.number > last.after_log), 0)
                + coalesce((select sum(used_change) from ai_token_events e
                    where e.organization_id = w.organization_id and e.token_type = w.token_type
                        and (e.number > last.number or e.kind = 'opening'
                            and e.number = last.number)), 0) as used
        ) as since
        where w.total_used <> since.used
        """
    )
    assert wrong == []


SITUATIONS = {
    "starter": "select 1 from organizations where plan = 'starter'",
    "about to refresh": "select 1 from ai_tokens where refresh_date between now() and"
    " now() + interval '12 hours'",
    "refresh due": "select 1 from ai_tokens where refresh_date <= now()",
    "refreshed yesterday": "select 1 from ai_token_events where kind = 'refresh'"
    " and created_at between now() - interval '30 hours' and now() - interval '24 hours'",
    "purchased pack, in use": "select 1 from ai_tokens w join ai_token_grants g"
    " using (organization_id, token_type) where token_type = 'shared' and g.kind = 'purchase'"
    " and g.closed_at is null and w.total_used > 0 and w.balance > 500",
    "gift about to expire": "select 1 from ai_token_grants where kind = 'gift'"
    " and closed_at is null and expires_at between now() and now() + interval '2 days'",
    "paused": "select 1 from ai_token_organization_settings where status = 'suspended'",
    "payment failed": "select 1 from ai_token_organization_settings where status = 'limited'",
    "unlimited, topped up": "select 1 from ai_tokens w join ai_token_events e"
    " using (organization_id, token_type) where w.plan is not null and w.allowance is null"
    " and e.kind = 'top_up'",
    "never used": "select 1 from ai_tokens where plan = 'pro' group by organization_id"
    " having max(last_used_at) is null",
    "plan edited from outside": "select 1 from organizations o join ai_tokens w"
    " on w.organization_id = o.id where w.plan = 'pro' and o.plan = 'enterprise'",
    "one very heavy organization": "select 1 from ai_token_usage_log"
    " where created_at > now() - interval '30 days' group by organization_id"
    " having sum(tokens_deducted) > (select sum(tokens_deducted) from ai_token_usage_log"
    " where created_at > now() - interval '30 days') / 4",
    "one user with a burst, then paused": "select 1 from ai_token_usage_log l"
    " join ai_token_user_settings s using (organization_id, user_id)"
    " where s.paused_at is not null and l.created_at between s.paused_at - interval '1 hour'"
    " and s.paused_at group by l.user_id having sum(tokens_deducted) > 500",
    "an expired hold": "select 1 from ai_token_reservations where state = 'held'"
    " and expires_at < now()",
    "a live hold": "select 1 from ai_token_reservations where state = 'held'"
    " and expires_at > now() + interval '12 hours'",
    "a refund in its period": "select 1 from ai_token_events where kind = 'refund'"
    " and used_change < 0",
    "a refund after its period": "select 1 from ai_token_events e join ai_token_grants g"
    " on g.source = 'usage ' || e.subject_id where e.kind = 'refund' and e.used_change = 0",
    "a charge that the switch let through": "select 1 from ai_token_usage_log"
    " where tokens_waived > 0 and tokens_deducted = 0",
    "findings open": "select 1 from ai_token_findings where settled_at is null",
    "findings settled": "select 1 from ai_token_findings where settled_at is not null",
    "legacy rows in the log": "select 1 from ai_token_usage_log where number is null",
    "wallets at 80 percent": "select 1 from ai_tokens"
    " where total_allocated > 0 and total_used * 5 >= total_allocated * 4",
    "wallets at 100 percent": "select 1 from ai_tokens where total_allocated > 0 and balance = 0",
    "a quest on starter": "select 1 from quests q join organizations o"
    " on o.id = q.organization_id where o.plan = 'starter'",
    "staff": "select 1 from tokenlib_staff having count(distinct role) = 2",
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_demo_shows(full: Demo, situation: str) -> None:
    assert full.rows(SITUATIONS[situation])


def test_support_did_only_what_support_may(full: Demo) -> None:
    done = (
        "select kind, data ->> 'kind' from ai_token_events where actor = '{0}' union"
        " select action, null from ai_token_changes where actor = '{0}'"
    )
    by_support, by_admin = (
        set(full.rows(done.format(PERSONAS[role].user_id))) for role in ("support", "admin")
    )
    assert by_support == {("grant", "gift")}
    assert {("refund", None), ("pause_user", None)} <= by_admin


@pytest.mark.parametrize(
    "rule",
    [
        "feature_not_in_plan",
        "insufficient_tokens",
        "organization_paused",
        "payment_failed",
        "rate_limited",
        "user_paused",
    ],
)
def test_a_rule_has_refused_before_and_just_now(full: Demo, rule: str) -> None:
    ((before, fresh),) = full.rows(
        "select count(*) filter (where last_at < now() - interval '1 hour'),"
        " count(*) filter (where last_at > now() - interval '10 minutes')"
        " from ai_token_refusals where rule = %s",
        rule,
    )
    assert before > 0
    assert fresh > 0


def test_no_wallet_and_no_entry_is_dated_ahead(full: Demo) -> None:
    assert full.rows("select 1 from ai_token_usage_log where created_at > now()") == []
    assert full.rows("select 1 from ai_token_events where created_at > now()") == []
    assert full.rows("select 1 from ai_tokens where last_entry_at > now()") == []


def test_a_second_load_does_nothing(full: Demo) -> None:
    assert demo.loaded(full.tokens)
    again = demo.load(full.database.url(OWNER), full.tokens, seed=99, charges=FEW)
    assert not again.fresh
    assert (again.charges, again.events, again.refusals) == (
        full.summary.charges,
        full.summary.events,
        full.summary.refusals,
    )


def test_the_same_seed_and_now_store_the_same_log(token_server: Embedded) -> None:
    now = datetime(2026, 1, 15, 12, tzinfo=UTC)
    digests = set()
    for _ in range(2):
        with empty(token_server) as (database, tokens):
            demo.load(database.url(OWNER), tokens, charges=FEW, now=now)
            found = Demo(database, tokens, demo.load(database.url(OWNER), tokens))
            digests |= set(
                found.rows(
                    "select count(*), md5(string_agg(l::text, '|' order by created_at, id))"
                    " from ai_token_usage_log l where created_at < %s",
                    now,
                )
            )
            assert tokens.verify().closed
    ((count, _),) = digests
    assert count > FEW


def test_a_load_that_was_interrupted_is_finished_by_the_next(
    token_database: TestDatabase, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = token_database.url(OWNER)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(situations, "_holds", fail)
        with pytest.raises(KeyboardInterrupt):
            demo.load(url, tokens, charges=FEW)
    assert not demo.loaded(tokens)
    # Other arguments do not matter: what was begun is finished.
    assert demo.load(url, tokens, seed=99, charges=9 * FEW).charges < 2 * FEW
    assert demo.loaded(tokens)
    assert tokens.verify().closed
    play_the_scenarios(tokens)


def test_a_load_that_fails_in_the_middle_leaves_nothing(
    token_database: TestDatabase, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(legacy, "adopt", fail)
    with pytest.raises(KeyboardInterrupt):
        demo.load(token_database.url(OWNER), tokens, charges=FEW)
    with token_database.connect("postgres") as connection:
        row = connection.execute("select count(*) from organizations").fetchone()
    assert row == (0,)


def test_only_the_owner_can_load(token_database: TestDatabase, tokens: Tokens) -> None:
    with pytest.raises(PermissionDenied):
        demo.load(token_database.url("tokenlib_service"), tokens, charges=FEW)
    assert not demo.loaded(tokens)


def test_another_server_is_filled_only_when_asked(
    token_database: TestDatabase, tokens: Tokens
) -> None:
    # Reached on another path, the server does not look like ours.
    bundled = sa.make_url(token_database.url(OWNER))
    with tempfile.TemporaryDirectory(prefix="tk") as folder:
        Path(folder, "run").symlink_to(str(bundled.query["host"]))
        elsewhere = bundled.update_query_dict({"host": f"{folder}/run"})
        url = elsewhere.render_as_string(hide_password=False)
        with pytest.raises(ConfigurationError, match="not the bundled database"):
            demo.load(url, tokens, charges=FEW)
        assert not demo.loaded(tokens)
        assert demo.load(url, tokens, charges=FEW, elsewhere=True).fresh
        assert demo.loaded(tokens)


@pytest.mark.parametrize(
    "now",
    [datetime(2026, 1, 1), datetime(2999, 1, 1, tzinfo=UTC)],  # noqa: DTZ001
    ids=["naive", "ahead"],
)
def test_a_time_that_cannot_be_meant_is_refused(
    token_database: TestDatabase, tokens: Tokens, now: datetime
) -> None:
    with pytest.raises(InvalidInput, match="now must"):
        demo.load(token_database.url(OWNER), tokens, now=now)


def test_progress_counts_charges_up_to_all(token_database: TestDatabase, tokens: Tokens) -> None:
    seen: list[tuple[int, int]] = []
    demo.load(
        token_database.url(OWNER),
        tokens,
        charges=FEW,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (FEW, FEW)


def test_staff_and_the_member_see_what_is_theirs(full: Demo) -> None:
    for name, role in (("admin", "admin"), ("support", "support"), ("member", None)):
        persona = PERSONAS[name]
        (who,) = full.tokens.database.rows(
            "select * from tokenlib.whoami()", reader="authenticated", user_id=persona.user_id
        )
        assert (who["staff_role"], who["full_name"]) == (role, persona.name)
        assert who["organization_id"] == persona.organization_id
    seen = full.tokens.database.rows(
        "select id from organizations", reader="authenticated", user_id=PERSONAS["member"].user_id
    )
    assert [row["id"] for row in seen] == [SCENARIOS["healthy"].organization_id]


def test_the_legacy_database_shows_every_fault_and_the_main_one_its_findings(full: Demo) -> None:
    before = {
        (f.organization_id, f.token_type, f.kind) for f in legacy.figures(full.database.url())
    }
    assert {kind for _, _, kind in before} == {
        "emergency_balance",
        "balance_above_allocated",
        "used_differs_from_log",
        "log_of_deleted_users",
    }
    findings = full.rows("select organization_id, token_type, kind from ai_token_findings")
    assert set(findings) == before
    settled = full.rows("select distinct kind from ai_token_findings where settled_at is not null")
    assert sorted(settled) == [("log_of_deleted_users",), ("used_differs_from_log",)]


def test_adoption_keeps_what_the_customer_can_use(full: Demo) -> None:
    for fault in legacy.figures(full.database.url()):
        if fault.kind in ("emergency_balance", "balance_above_allocated"):
            wallet = full.tokens.get_token_balance(fault.organization_id, fault.token_type)
            assert wallet.balance == fault.stored


def test_members_of_the_old_system_could_raise_their_balance(full: Demo) -> None:
    old = TestDatabase(full.database.server, legacy.DATABASE)
    (fault, *_) = legacy.figures(full.database.url())
    with old.connect("postgres") as connection, connection.transaction(force_rollback=True):
        user = connection.execute(
            "select id from user_profiles where organization_id = %s", (fault.organization_id,)
        ).fetchone()
        assert user is not None
        connection.execute("set local role authenticated")
        connection.execute(
            "select set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{user[0]}"}}',)
        )
        raised = connection.execute("update ai_tokens set balance = 1000000")
        assert raised.rowcount == 5


def test_without_a_legacy_database_there_are_no_figures(
    token_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "DATABASE", "tokenlib_nowhere")
    assert legacy.figures(token_database.url()) == []


def test_figures_of_a_server_that_is_down_are_an_error() -> None:
    with pytest.raises(TokenlibError):
        legacy.figures("postgresql+psycopg://tokenlib_service@/tokenlib?host=/nowhere")
