"""The daily limit of support, and previews: what an action would do is what it does."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from tests.db.conftest import Person
from tests.db.test_staff import employ, set_up
from tokenlib import (
    AlreadyRefunded,
    IdempotencyConflict,
    InvalidInput,
    PermissionDenied,
    Tokens,
    UnknownPlan,
)
from tokenlib.domain import Balance, Preview
from tokenlib.embedded import Embedded
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase

pytestmark = pytest.mark.usefixtures("books_close")


@pytest.fixture(scope="module")
def token_database(token_server: Embedded) -> Iterator[TestDatabase]:
    """One database for this file: each test has people and organizations of its own."""
    with set_up(token_server) as make:
        yield make().database


@pytest.fixture(autouse=True)
def real_time(owner: psycopg.Connection) -> Iterator[None]:
    """The clock runs, unless a test stops it."""
    yield
    owner.execute("update tokenlib.test_clock set stopped_at = null, ahead = '0'")


@pytest.fixture
def admin(owner: psycopg.Connection) -> UUID:
    return employ(owner, uuid.uuid4(), "admin")


@pytest.fixture
def support(owner: psycopg.Connection) -> UUID:
    return employ(owner, uuid.uuid4(), "support", 100)


def granted(owner: psycopg.Connection, by: UUID) -> int:
    row = owner.execute(
        "select coalesce(sum(g.amount), 0) from ai_token_grants g"
        " join ai_token_events e on e.subject_id = g.id and e.kind = 'grant'"
        " where g.kind = 'gift' and e.actor = %s",
        [str(by)],
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_the_limit_is_of_the_day_over_all_organizations(
    tokens: Tokens, token_clock: TestClock, join: Callable[[str], Person], support: UUID
) -> None:
    token_clock.set(datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC))
    one, other = join("pro")[0], join("enterprise")[0]
    tokens.staff_grant(support, one, "general", 60, reason="goodwill")
    tokens.staff_grant(support, other, "shared", 40, reason="goodwill")
    with pytest.raises(PermissionDenied, match="100 tokens a day; 0 are left today"):
        tokens.staff_grant(support, one, "forecast", 1, reason="goodwill")
    token_clock.set(datetime(2026, 3, 2, tzinfo=UTC))
    with pytest.raises(PermissionDenied, match="100 are left today"):
        tokens.staff_grant(support, one, "general", 101, reason="goodwill")
    tokens.staff_grant(support, one, "general", 100, reason="goodwill")


def test_one_more_than_the_limit_is_refused_and_the_rest_said(
    tokens: Tokens, pro: Person, support: UUID, owner: psycopg.Connection
) -> None:
    tokens.staff_grant(support, pro[0], "general", 70, reason="goodwill")
    with pytest.raises(PermissionDenied, match="30 are left today"):
        tokens.staff_grant(support, pro[0], "general", 31, reason="goodwill")
    assert granted(owner, support) == 70
    (person,) = [one for one in Reports(tokens.database).staff() if one.user_id == support]
    assert (person.granted_today, person.left_today) == (70, 30)


def test_many_tabs_cannot_exceed_the_limit(
    tokens: Tokens, join: Callable[[str], Person], support: UUID, owner: psycopg.Connection
) -> None:
    organizations = [join("pro")[0] for _ in range(4)]

    def give(number: int) -> bool:
        try:
            tokens.staff_grant(
                support, organizations[number % 4], "general", 30, reason="in a hurry"
            )
        except PermissionDenied:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(give, range(16)))
    assert sum(given) == 3
    assert granted(owner, support) == 90


def test_a_replay_gives_nothing_and_needs_no_room(
    tokens: Tokens, pro: Person, support: UUID, owner: psycopg.Connection
) -> None:
    first = tokens.staff_grant(
        support, pro[0], "general", 100, reason="goodwill", idempotency_key="one click"
    )
    again = tokens.staff_grant(
        support, pro[0], "general", 100, reason="goodwill", idempotency_key="one click"
    )
    assert again.replayed
    assert again.id == first.id
    with pytest.raises(IdempotencyConflict):
        tokens.staff_grant(
            support, pro[0], "general", 1, reason="goodwill", idempotency_key="one click"
        )
    assert granted(owner, support) == 100


def test_support_gives_gifts_at_once_and_nothing_else(
    tokens: Tokens, pro: Person, support: UUID, owner: psycopg.Connection
) -> None:
    soon = datetime.now(UTC) + timedelta(days=3)
    for kind in ("purchase", "adjustment"):
        with pytest.raises(PermissionDenied, match="gifts"):
            tokens.staff_grant(support, pro[0], "general", 1, kind=kind, reason="r")
    with pytest.raises(PermissionDenied, match="at once"):
        tokens.staff_grant(support, pro[0], "general", 1, effective_at=soon, reason="r")
    with pytest.raises(InvalidInput, match="amount"):
        tokens.staff_grant(support, pro[0], "general", 0, reason="r")
    assert granted(owner, support) == 0
    gift = tokens.staff_grant(support, pro[0], "general", 1, expires_at=soon, reason="r")
    assert gift.expires_at == soon


def test_an_admin_has_no_limit_and_every_choice(
    tokens: Tokens, pro: Person, admin: UUID, owner: psycopg.Connection
) -> None:
    start = datetime.now(UTC) + timedelta(days=3)
    tokens.staff_grant(admin, pro[0], "general", 1_000_000, reason="r")
    tokens.staff_grant(
        admin,
        pro[0],
        "shared",
        500,
        kind="purchase",
        source="pack_500",
        effective_at=start,
        expires_at=start + timedelta(days=365),
        reason="paid by invoice",
    )
    row = owner.execute(
        "select kind, source, amount, arrived_at from ai_token_grants"
        " where token_type = 'shared' and organization_id = %s",
        [pro[0]],
    ).fetchone()
    assert row == ("purchase", "pack_500", 500, None)


# Previews ----------------------------------------------------------------------------------------


def wallets(tokens: Tokens, organization: UUID) -> dict[str, Balance]:
    found = tokens.get_token_stats(organization).by_type
    return {wallet.token_type: wallet for wallet in found}


def foresees(
    tokens: Tokens, organization: UUID, preview: Preview, act: Callable[[], object]
) -> None:
    """Nothing was done by the preview, and what is done then is what it said."""
    assert wallets(tokens, organization) == {one.token_type: one for one in preview.before}
    act()
    assert wallets(tokens, organization) == {one.token_type: one for one in preview.after}


@pytest.mark.parametrize(
    ("plan", "to"), [("pro", "enterprise"), ("enterprise", "pro"), ("pro", "starter")]
)
def test_a_plan_change_does_what_its_preview_said(
    tokens: Tokens, noon: datetime, join: Callable[[str], Person], admin: UUID, plan: str, to: str
) -> None:
    assert noon.tzinfo
    organization, member = join(plan)
    tokens.deduct_tokens(organization, member, "generate_goal", 5)
    tokens.grant(organization, "goal_generation", 7, expires_at=noon + timedelta(days=2))
    tokens.reserve(organization, member, "generate_goal")
    tokens.deduct_tokens(organization, member, "generate_insight", 40)
    preview = tokens.preview_plan_change(admin, organization, to)
    assert len(preview.changed) == 5
    foresees(
        tokens,
        organization,
        preview,
        lambda: tokens.staff_change_plan(admin, organization, to, reason="r"),
    )


def test_a_grant_does_what_its_preview_said(
    tokens: Tokens, noon: datetime, pro: Person, admin: UUID
) -> None:
    organization = pro[0]
    preview = tokens.preview_grant(admin, organization, "shared", 500, kind="purchase")
    ((before, after),) = preview.changed
    assert before is None
    assert (after.token_type, after.balance) == ("shared", 500)
    foresees(
        tokens,
        organization,
        preview,
        lambda: tokens.staff_grant(admin, organization, "shared", 500, kind="purchase", reason="r"),
    )
    later = tokens.preview_grant(
        admin, organization, "general", 5, effective_at=noon + timedelta(days=1)
    )
    assert later.changed == ()
    assert later.text == "Takes effect on 2026-03-02 12:00 UTC."


def test_a_refund_does_what_its_preview_said(
    tokens: Tokens, noon: datetime, token_clock: TestClock, pro: Person, admin: UUID
) -> None:
    assert noon.tzinfo
    organization, member = pro
    for days in (0, 31):
        usage = tokens.deduct_tokens(organization, member, "generate_goal")
        token_clock.advance(timedelta(days=days))
        preview = tokens.preview_refund(admin, usage)
        assert preview.text.startswith("3 charged for Generate a quest ")
        assert ("as a grant" in preview.text) == (days == 31)
        foresees(
            tokens,
            organization,
            preview,
            lambda used=usage: tokens.staff_refund(admin, used, reason="r"),  # type: ignore[misc]
        )
        with pytest.raises(AlreadyRefunded):
            tokens.preview_refund(admin, usage.id, organization)


def everything(owner: psycopg.Connection) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, and every sequence."""
    tables = owner.execute(
        "select format('%I.%I', schemaname, tablename) from pg_tables"
        " where schemaname in ('public', 'tokenlib') order by 1"
    ).fetchall()
    rows = {
        name: owner.execute(f"select t::text from {name} as t order by 1").fetchall()  # noqa: S608
        for (name,) in tables
    }
    return {**rows, "sequences": owner.execute("select * from pg_sequences").fetchall()}


def test_a_preview_leaves_nothing_anywhere(
    tokens: Tokens, pro: Person, admin: UUID, support: UUID, owner: psycopg.Connection
) -> None:
    organization = pro[0]
    usage = tokens.deduct_tokens(*pro, "generate_goal")
    before = everything(owner)
    assert len(before) > 15
    assert tokens.preview_grant(support, organization, "shared", 5).changed
    assert tokens.preview_plan_change(admin, organization, "enterprise").changed
    assert tokens.preview_refund(admin, usage).changed
    with pytest.raises(PermissionDenied):
        tokens.preview_grant(support, organization, "general", 101)
    assert everything(owner) == before
    tokens.staff_refund(admin, usage, reason="r")
    assert everything(owner) != before


def test_who_may_not_act_may_not_look(
    tokens: Tokens, pro: Person, support: UUID, owner: psycopg.Connection
) -> None:
    usage = tokens.deduct_tokens(*pro, "generate_goal")
    with pytest.raises(PermissionDenied):
        tokens.preview_plan_change(support, pro[0], "enterprise")
    with pytest.raises(PermissionDenied):
        tokens.preview_refund(support, usage)
    with pytest.raises(PermissionDenied, match="a day"):
        tokens.preview_grant(support, pro[0], "general", 101)
    assert tokens.preview_grant(support, pro[0], "general", 100).changed
    with pytest.raises(UnknownPlan):
        tokens.preview_plan_change(employ(owner, uuid.uuid4(), "admin"), pro[0], "gold")
