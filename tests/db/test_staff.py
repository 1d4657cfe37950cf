"""What staff may do: each verb for each kind of person, what it needs, what is on record after."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.databases import copied
from tokenlib import InvalidInput, PermissionDenied, Tokens
from tokenlib.db import Database
from tokenlib.domain import Limits, Reservation, Usage
from tokenlib.embedded import Embedded
from tokenlib.testing import TestDatabase

NO_LIMITS = Limits(None, None, None, None, None, None)


@dataclass(frozen=True)
class Scene:
    """One organization with everything that a verb can be about; people of every kind."""

    database: TestDatabase
    tokens: Tokens
    admin: UUID
    support: UUID
    removed: UUID
    organization: UUID
    member: UUID
    usage: Usage
    hold: Reservation
    finding: UUID

    def person(self, kind: str) -> UUID:
        return uuid.uuid4() if kind == "stranger" else getattr(self, kind)

    def rows(self, query: str, *values: object) -> list[Any]:
        with self.database.connect() as owner:
            return owner.execute(query.encode(), values).fetchall()

    def everything(self) -> list[Any]:
        """Every row of every table, in one round trip."""
        with self.database.connect() as owner:
            row = owner.execute(
                "select string_agg(format('select %L, t::text from public.%I t', tablename,"
                " tablename), ' union all ') || ' order by 1, 2' from pg_tables"
                " where schemaname = 'public'"
            ).fetchone()
            assert row is not None
            return owner.execute(row[0]).fetchall()


@dataclass(frozen=True)
class Verb:
    """A verb, how it is called, whether support may, and what is on record after it."""

    name: str
    call: Callable[[Scene, UUID, str], object]
    support: bool = False
    entry: str | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


def _staff_grant(scene: Scene, actor: UUID, reason: str) -> object:
    return scene.tokens.staff_grant(actor, scene.organization, "general", 5, reason=reason)


VERBS = [
    Verb("staff_grant", _staff_grant, support=True, entry="grant"),
    Verb(
        "staff_release",
        lambda s, a, r: s.tokens.staff_release(a, s.hold, reason=r),
        support=True,
        entry="release",
    ),
    Verb(
        "staff_refund", lambda s, a, r: s.tokens.staff_refund(a, s.usage, reason=r), entry="refund"
    ),
    Verb(
        "staff_settle_finding",
        lambda s, a, r: s.tokens.staff_settle_finding(a, s.organization, s.finding, reason=r),
        entry="finding_settled",
    ),
    Verb(
        "staff_change_plan",
        lambda s, a, r: s.tokens.staff_change_plan(a, s.organization, "enterprise", reason=r),
        before={"plan": "pro"},
        after={"plan": "enterprise"},
    ),
    Verb(
        "staff_set_status",
        lambda s, a, r: s.tokens.staff_set_status(a, s.organization, "suspended", reason=r),
        before={"status": "active"},
        after={"status": "suspended"},
    ),
    Verb(
        "staff_pause_user",
        lambda s, a, r: s.tokens.staff_pause_user(a, s.organization, s.member, reason=r),
        before={"paused": False},
        after={"paused": True},
    ),
    Verb(
        "staff_set_mode",
        lambda s, a, r: s.tokens.staff_set_mode(a, "log_only", s.organization, reason=r),
        before={"mode": None, "until": None},
        after={"mode": "log_only", "until": None},
    ),
    Verb(
        "staff_set_cost",
        lambda s, a, r: s.tokens.staff_set_cost(a, "generate_goal", 4, reason=r),
        before={"feature": "generate_goal", "cost": 3},
        after={"feature": "generate_goal", "cost": 4},
    ),
    Verb(
        "staff_set_unit_size",
        lambda s, a, r: s.tokens.staff_set_unit_size(a, "generate_goal", 500, reason=r),
        before={"feature": "generate_goal", "unit_size": None},
        after={"feature": "generate_goal", "unit_size": 500},
    ),
    Verb(
        "staff_set_allowance",
        lambda s, a, r: s.tokens.staff_set_allowance(a, "pro", "general", None, reason=r),
        before={"plan": "pro", "token_type": "general", "allowance": 50},
        after={"plan": "pro", "token_type": "general", "allowance": None},
    ),
    Verb(
        "staff_set_limits",
        lambda s, a, r: s.tokens.staff_set_limits(a, None, NO_LIMITS, reason=r),
        before={"requests_per_minute": 30, "alert_tokens_per_hour": 500},
        after={"requests_per_minute": None, "alert_tokens_per_hour": None},
    ),
    Verb(
        "staff_set_parameters",
        lambda s, a, r: s.tokens.staff_set_parameters(a, token_cost_cents=Decimal("1.5"), reason=r),
        before={"token_cost_cents": 1, "top_up_block": 1000},
        after={"token_cost_cents": 1.5, "top_up_block": 1000},
    ),
    Verb(
        "staff_set_staff",
        lambda s, a, r: s.tokens.staff_set_staff(a, s.support, "support", 70, reason=r),
        before={"role": "support", "grants_per_day": 50},
        after={"role": "support", "grants_per_day": 70},
    ),
]
BY_NAME = [pytest.param(verb, id=verb.name) for verb in VERBS]


@contextmanager
def set_up(server: Embedded) -> Iterator[Callable[[], Scene]]:
    """A database of its own; each call makes a new organization and new people in it."""
    with copied(server) as database, Tokens(Database(database.url())) as tokens:
        yield lambda: _scene(database, tokens)
        found = tokens.verify()
        assert found.closed, found.problems


def _scene(database: TestDatabase, tokens: Tokens) -> Scene:
    admin, support, removed = (uuid.uuid4() for _ in range(3))
    organization = tokens.create_organization("Acme", "pro")
    member = tokens.add_member(organization, "A member", "member@example.org")
    with database.connect() as owner:
        for user, role in ((admin, "admin"), (support, "support"), (removed, "admin")):
            employ(owner, user, role, 50)
        owner.execute("delete from tokenlib_staff where user_id = %s", [removed])
        # The tenant's own data gives no rights.
        owner.execute("update user_profiles set role = 'admin' where id = %s", [member])
        row = owner.execute(
            "insert into ai_token_findings (organization_id, token_type, kind, detail, found_at)"
            " values (%s, 'general', 'emergency_balance', 'a test', now()) returning id",
            [organization],
        ).fetchone()
    assert row is not None
    usage = tokens.deduct_tokens(organization, member, "generate_goal")
    hold = tokens.reserve(organization, member, "generate_leads")
    return Scene(
        database, tokens, admin, support, removed, organization, member, usage, hold, row[0]
    )


def employ(owner: psycopg.Connection, user: UUID, role: str, grants_per_day: int = 0) -> UUID:
    """Make somebody staff, as the owner."""
    owner.execute(
        "insert into tokenlib_staff (user_id, email, full_name, role, grants_per_day)"
        " values (%s, %s, %s, %s, %s)",
        [user, f"{user}@example.org", f"The {role}", role, grants_per_day],
    )
    return user


@pytest.fixture(scope="module")
def untouched(token_server: Embedded) -> Iterator[Scene]:
    """Shared by tests after which nothing has changed."""
    with set_up(token_server) as make:
        yield make()


@pytest.fixture(scope="module")
def make(token_server: Embedded) -> Iterator[Callable[[], Scene]]:
    with set_up(token_server) as make:
        yield make


@pytest.fixture
def scene(make: Callable[[], Scene]) -> Scene:
    """New people and a new organization, in a database that other tests have used."""
    return make()


WHO_MAY_NOT = [
    pytest.param(verb, kind, id=f"{verb.name}-{kind}")
    for verb in VERBS
    for kind in ("support", "member", "stranger", "removed")
    if not (verb.support and kind == "support")
]
WHO_MAY = [
    pytest.param(verb, kind, id=f"{verb.name}-{kind}")
    for verb in VERBS
    for kind in ("admin", "support")
    if verb.support or kind == "admin"
]


@pytest.mark.parametrize(("verb", "kind"), WHO_MAY_NOT)
def test_who_may_not_is_refused_and_nothing_changes(
    untouched: Scene, verb: Verb, kind: str
) -> None:
    before = untouched.everything()
    with pytest.raises(PermissionDenied) as refused:
        verb.call(untouched, untouched.person(kind), "a test")
    said = "Only admin may do this; your role is support." if kind == "support" else None
    assert str(refused.value) == (said or "Only staff may do this.")
    assert untouched.everything() == before


@pytest.mark.one_node
@pytest.mark.parametrize("reason", ["", "  \n"])
@pytest.mark.parametrize("verb", BY_NAME)
def test_each_action_needs_a_reason(untouched: Scene, verb: Verb, reason: str) -> None:
    before = untouched.everything()
    with pytest.raises(InvalidInput, match="reason") as refused:
        verb.call(untouched, untouched.admin, reason)
    assert refused.value.field == "reason"
    assert untouched.everything() == before


@pytest.mark.parametrize(("verb", "kind"), WHO_MAY)
def test_who_may_does_it_once_and_is_on_record(scene: Scene, verb: Verb, kind: str) -> None:
    actor = scene.person(kind)
    verb.call(scene, actor, "as agreed")
    changes = scene.rows(
        "select action, reason, before, after from ai_token_changes where actor = %s", str(actor)
    )
    entries = scene.rows(
        "select kind, reason from ai_token_events where actor = %s and kind <> 'plan_change'",
        str(actor),
    )
    if verb.entry is not None:
        assert (entries, changes) == ([(verb.entry, "as agreed")], [])
        return
    assert entries == []
    ((action, reason, before, after),) = changes
    assert (action, reason) == (verb.name.removeprefix("staff_"), "as agreed")
    assert verb.before is not None
    assert verb.before.items() <= (before or dict.fromkeys(verb.before)).items()
    assert verb.after is not None
    assert verb.after.items() <= after.items()


@pytest.mark.one_node
def test_a_person_who_is_being_removed_waits_and_is_refused(scene: Scene) -> None:
    with scene.database.connect() as owner, ThreadPoolExecutor(1) as threads:
        owner.autocommit = False
        owner.execute("delete from tokenlib_staff where user_id = %s", [scene.support])
        acting = threads.submit(_staff_grant, scene, scene.support, "in an old tab")
        _wait_for_lock(scene)
        owner.commit()
        with pytest.raises(PermissionDenied, match="Only staff"):
            acting.result(timeout=20)


def _wait_for_lock(scene: Scene) -> None:
    with scene.database.connect("postgres") as watcher:
        deadline = datetime.now(UTC) + timedelta(seconds=20)
        while datetime.now(UTC) < deadline:
            row = watcher.execute(
                "select count(*) from pg_stat_activity"
                " where datname = current_database() and wait_event_type = 'Lock'"
            ).fetchone()
            if row is not None and row[0]:
                return
    raise AssertionError("nobody waited")
