"""Limits, staff, the audit of every change, verifications, and what a new cost would have meant."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.db.conftest import Person
from tests.db.test_staff import employ
from tokenlib import InsufficientTokens, InvalidInput, PermissionDenied, Tokens
from tokenlib.domain import Limits
from tokenlib.reports import Reports, Viewer
from tokenlib.reports.settings import ChangeRow
from tokenlib.testing import TestClock

DAY = timedelta(days=1)


@pytest.fixture
def admin(owner: psycopg.Connection) -> UUID:
    return employ(owner, uuid4(), "admin")


@pytest.fixture
def reports(tokens: Tokens, admin: UUID) -> Reports:
    return Reports(tokens.database, Viewer(admin, "tokenlib_reader"))


def test_limits_and_parameters_are_what_is_in_force(
    tokens: Tokens, noon: datetime, reports: Reports, admin: UUID, pro: Person
) -> None:
    own = Limits(1, Decimal("2.5"), 3, 4, 5, 6)
    tokens.staff_set_limits(admin, pro[0], own, reason="r")
    everyone, acme = reports.limits()
    assert (everyone.organization_id, everyone.limits.requests_per_minute) == (None, 30)
    assert (acme.organization_id, acme.organization, acme.limits) == (pro[0], "Acme pro", own)
    until = noon + timedelta(hours=1)
    tokens.staff_set_mode(admin, "log_only", until=until, reason="r")
    tokens.staff_set_parameters(admin, hold_life=timedelta(minutes=3), reason="r")
    found = reports.parameters()
    assert (found.mode, found.mode_until) == ("log_only", until)
    assert (found.hold_life, found.top_up_block) == (timedelta(minutes=3), 1000)


def test_keys_stand_with_their_state_and_without_their_secrets(
    tokens: Tokens,
    noon: datetime,
    token_clock: TestClock,
    reports: Reports,
    admin: UUID,
    pro: Person,
) -> None:
    tokens.pepper = "a pepper of the tests, which nobody has but the test"
    ends = noon + timedelta(hours=1)
    everywhere = tokens.staff_create_key(admin, "ERP", ["metrics"], expires_at=ends, reason="r")
    own = tokens.staff_create_key(admin, "Product", ["spend", "check"], pro[0], reason="r")
    gone = tokens.staff_create_key(admin, "Gone", ["read"], reason="r")
    tokens.staff_revoke_key(admin, gone.id, reason="r")
    tokens.staff_rotate_key(admin, own.id, overlap=timedelta(minutes=30), reason="r")
    assert everywhere.secret is not None
    tokens.key_of(everywhere.secret)
    found = {row.name: row for row in reports.api_keys()}
    assert [(name, row.state) for name, row in found.items()][-1] == ("Gone", "revoked")
    erp, product = found["ERP"], found["Product"]
    assert (erp.organization, erp.scopes, erp.expires_at) == (None, ["metrics"], ends)
    assert (erp.last_used_at, erp.old_until, erp.start) == (noon, None, everywhere.start)
    assert (product.organization, product.scopes) == ("Acme pro", ["spend", "check"])
    assert (product.old_until, product.state) == (noon + timedelta(minutes=30), "good")
    assert str(everywhere.secret) not in repr(found)
    token_clock.advance(timedelta(hours=1))
    states = [(row.name, row.state, row.old_until) for row in reports.api_keys()]
    assert states[0] == ("Product", "good", None)
    assert sorted(states[1:]) == [("ERP", "expired", None), ("Gone", "revoked", None)]


def test_request_limits_are_everyones_and_of_who_differs(
    tokens: Tokens, reports: Reports, admin: UUID, pro: Person
) -> None:
    (everyone,) = reports.request_limits()
    before = everyone.requests_per_minute
    tokens.staff_set_request_limit(admin, pro[0], 7, reason="r")
    everyone, acme = reports.request_limits()
    assert everyone.requests_per_minute == before
    assert (acme.organization_id, acme.organization) == (pro[0], "Acme pro")
    assert acme.requests_per_minute == 7
    tokens.staff_set_request_limit(admin, None, 600, reason="r")
    tokens.staff_set_request_limit(admin, pro[0], None, reason="r")
    assert [row.requests_per_minute for row in reports.request_limits()] == [600]


def test_the_switch_is_back_after_its_time(
    tokens: Tokens, noon: datetime, token_clock: TestClock, reports: Reports, admin: UUID
) -> None:
    tokens.staff_set_mode(admin, "off", until=noon + timedelta(hours=1), reason="r")
    token_clock.advance(timedelta(hours=1))
    found = reports.parameters()
    assert (found.mode, found.mode_until) == ("enforce", None)


def test_the_audit_has_what_people_did_in_both_books(
    tokens: Tokens,
    noon: datetime,
    token_clock: TestClock,
    reports: Reports,
    admin: UUID,
    owner: psycopg.Connection,
    pro: Person,
) -> None:
    organization, member = pro
    support = employ(owner, uuid4(), "support", 10)
    usage = tokens.deduct_tokens(organization, member, "generate_goal")
    held = tokens.reserve(organization, member, "generate_goal")
    tokens.release(tokens.reserve(organization, member, "generate_goal"))  # nobody's decision
    acts: list[Callable[[], object]] = [
        lambda: tokens.staff_grant(support, organization, "general", 10, reason="sorry"),
        lambda: tokens.staff_refund(admin, usage, reason="mistake"),
        lambda: tokens.staff_release(support, held, reason="stuck"),
        lambda: tokens.staff_change_plan(admin, organization, "enterprise", reason="bought"),
        lambda: tokens.staff_set_cost(admin, "generate_goal", 4, reason="dearer"),
    ]
    for act in acts:
        token_clock.advance(DAY / 24 / 60)
        act()
    found = reports.changes()
    assert [(row.action, row.actor_name, row.reason) for row in found] == [
        ("set_cost", "The admin", "dearer"),
        ("change_plan", "The admin", "bought"),
        ("release", "The support", "stuck"),
        ("refund", "The admin", "mistake"),
        ("grant", "The support", "sorry"),
    ]
    assert [row.organization for row in found] == [None, *["Acme pro"] * 4]
    grant = found[-1].after
    assert grant is not None
    assert (grant["amount"], grant["balance_change"], grant["token_type"]) == (10, 10, "general")
    assert (found[0].before, found[0].after) == (
        {"cost": 3, "feature": "generate_goal"},
        {"cost": 4, "feature": "generate_goal"},
    )

    pages: list[ChangeRow] = []
    while page := reports.changes(limit=2, before=pages[-1] if pages else None):
        pages += page
    assert pages == found
    assert [row.action for row in reports.changes(organization)] == [r.action for r in found[1:]]
    assert [row.action for row in reports.changes(actor=str(support))] == ["release", "grant"]
    assert [row.reason for row in reports.changes(action="refund")] == ["mistake"]
    assert noon < found[-1].created_at


def test_who_left_keeps_a_name_in_the_audit(
    tokens: Tokens, reports: Reports, admin: UUID, owner: psycopg.Connection, pro: Person
) -> None:
    support = employ(owner, uuid4(), "support", 10)
    held = tokens.reserve(*pro, "generate_goal")
    tokens.staff_release(support, held, reason="stuck")
    tokens.staff_grant(support, pro[0], "general", 1, reason="sorry")
    tokens.staff_set_staff(admin, support, None, reason="left")
    left = reports.changes(actor=str(support))
    assert [(row.action, row.actor_name) for row in left] == [
        ("grant", f"{support}@example.org"),
        ("release", f"{support}@example.org"),
    ]
    assert [person.user_id for person in reports.staff()] == [admin]
    assert reports.former_staff() == {support: f"{support}@example.org"}
    tokens.staff_set_staff(
        admin, support, "support", 10, email="back@example.org", name="Back", reason="is back"
    )
    assert reports.former_staff() == {}


def test_a_member_may_not_ask(tokens: Tokens, pro: Person) -> None:
    member = Reports(tokens.database, Viewer(pro[1], "authenticated"))
    questions: list[Callable[[], object]] = [
        member.limits,
        member.parameters,
        member.staff,
        member.api_keys,
        member.request_limits,
        member.former_staff,
        member.changes,
        member.verifications,
    ]
    for question in questions:
        with pytest.raises(PermissionDenied):
            question()


def test_a_run_over_everybody_is_kept(
    tokens: Tokens, noon: datetime, token_clock: TestClock, reports: Reports, pro: Person
) -> None:
    tokens.verify(pro[0])
    assert reports.verifications() == []
    first = tokens.verify()
    token_clock.advance(DAY)
    tokens.verify()
    latest, oldest = reports.verifications()
    assert (oldest.at, latest.at) == (noon, noon + DAY)
    assert (oldest.wallets, oldest.entries, oldest.problems) == (first.wallets, first.entries, 0)
    assert reports.verifications(limit=1) == [latest]


# What a new cost would have meant ----------------------------------------------------------------


def replay(
    tokens: Tokens, clock: TestClock, people: list[Person], pattern: list[tuple[int, str, int]]
) -> dict[UUID, int]:
    """Charges one a minute; returns at which use each organization first ran out."""
    out: dict[UUID, int] = {}
    for number, (who, feature, units) in enumerate(pattern):
        clock.advance(timedelta(minutes=1))
        try:
            tokens.deduct_tokens(*people[who], feature, units)
        except InsufficientTokens:
            out.setdefault(people[who][0], number)
    return out


def test_a_new_cost_runs_out_whom_it_would_have_run_out(
    tokens: Tokens,
    noon: datetime,
    token_clock: TestClock,
    reports: Reports,
    admin: UUID,
    join: Callable[[str], Person],
) -> None:
    """The same use is played again at the new cost, for organizations of their own."""
    plans = ["pro", "pro", "enterprise"]
    pattern = [  # of 50 tokens of `general` on pro
        (0, "generate_insight", 20),
        (1, "generate_insight", 10),
        (2, "generate_insight", 60),
        (0, "analyze_efficiency", 10),  # passes 50 where the first has cost 2 a unit
        (1, "generate_insight", 10),
        (0, "generate_insight", 9),
        (1, "generate_goal", 6),  # another wallet
    ]
    before = [join(plan) for plan in plans]
    assert replay(tokens, token_clock, before, pattern) == {}
    token_clock.advance(DAY)
    found = reports.preview_cost("generate_insight", 2)
    assert {one.organization_id: one.tokens for one in found.organizations} == {
        before[0][0]: 29,
        before[1][0]: 20,
        before[2][0]: 60,
    }
    assert (found.tokens, found.new_tokens) == (109, 218)
    assert (found.since, found.used_by) == (noon.replace(hour=0) - 29 * DAY, 3)
    froms = {one.organization_id: one.runs_out_from for one in found.organizations}
    assert (froms[before[0][0]], froms[before[1][0]]) == (2, 3)
    assert found.organizations[0].organization_id == before[0][0]
    assert found.run_outs == 1
    first = reports.preview_cost("generate_insight", 2, limit=1)
    assert (first.organizations, first.used_by) == (found.organizations[:1], 3)

    tokens.staff_set_cost(admin, "generate_insight", 2, reason="r")
    again = [join(plan) for plan in plans]
    out = replay(tokens, token_clock, again, pattern)
    assert out == {again[0][0]: 3}


def test_a_new_cost_is_carried_within_a_period_and_not_over_it(
    tokens: Tokens, noon: datetime, token_clock: TestClock, reports: Reports, pro: Person
) -> None:
    token_clock.set(noon + 29 * DAY)
    tokens.deduct_tokens(*pro, "generate_insight", 20)
    token_clock.set(noon + 31 * DAY)
    tokens.deduct_tokens(*pro, "generate_insight", 20)
    token_clock.set(noon + 32 * DAY)
    at_two = reports.preview_cost("generate_insight", 2)
    assert (at_two.tokens, at_two.new_tokens, at_two.run_outs) == (40, 80, 0)
    at_three = reports.preview_cost("generate_insight", 3)
    (one,) = at_three.organizations
    assert (one.uses, one.units, one.runs_out_from, at_three.run_outs) == (2, 40, 3, 1)
    token_clock.set(noon + 62 * DAY)
    assert reports.preview_cost("generate_insight", 3).organizations == ()


def test_what_was_waived_or_is_unlimited_stays_so(
    tokens: Tokens, owner: psycopg.Connection, token_clock: TestClock, reports: Reports, pro: Person
) -> None:
    organization, member = pro
    tokens.set_mode("off", organization, actor="tests", reason="r")
    tokens.deduct_tokens(organization, member, "generate_insight", 40)
    tokens.set_mode("enforce", organization, actor="tests", reason="r")
    tokens.deduct_tokens(organization, member, "generate_insight", 30)
    token_clock.advance(timedelta(minutes=1))
    found = reports.preview_cost("generate_insight", 2)
    assert (found.tokens, found.new_tokens) == (30, 60)
    assert found.run_outs == 1
    owner.execute("update ai_tokens set allowance = null where token_type = 'general'")
    assert reports.preview_cost("generate_insight", 2).run_outs == 0
    with pytest.raises(InvalidInput, match="cost"):
        reports.preview_cost("generate_insight", 0)
