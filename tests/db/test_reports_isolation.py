"""A member sees its own organization through any question, and nothing of another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.db import reports_world
from tests.db.reports_world import NOW, SINCE, UNTIL, World
from tokenlib import InvalidInput, PermissionDenied
from tokenlib.db import statements
from tokenlib.domain import plain
from tokenlib.embedded import Embedded
from tokenlib.reports import Reports

Question = Callable[[Reports, UUID | None], Any]

# Questions that can be narrowed to one organization, and are about what the viewer may see if not.
NARROWABLE: dict[str, Question] = {
    "usage_by_feature": lambda r, o: r.usage_by_feature(SINCE, UNTIL, o),
    "usage_by_day": lambda r, o: r.usage_by_day(SINCE, UNTIL, "Asia/Kolkata", o, True),
    "top_users": lambda r, o: r.top_users(SINCE, UNTIL, organization_id=o),
    "refunds": lambda r, o: r.refunds(SINCE, UNTIL, o),
    "wallets": lambda r, o: r.wallets(o),
    "reservations": lambda r, o: r.reservations(organization_id=o),
    "refusals_by_rule": lambda r, o: r.refusals_by_rule(SINCE, UNTIL, o),
    "refusals": lambda r, o: r.refusals(SINCE, UNTIL, o),
    "usage_series": lambda r, o: r.usage_series(
        SINCE, UNTIL, "user", "hour", top=100, organization_id=o
    ),
    "usage_before": lambda r, o: r.usage_before(
        SINCE, UNTIL, (SINCE, UNTIL), "user", organization_id=o
    ),
    "usage_totals": lambda r, o: r.usage_totals(SINCE, UNTIL, organization_id=o),
    "usage_rows": lambda r, o: r.usage_rows(SINCE, UNTIL, organization_id=o),
    "latest_charges": lambda r, o: r.latest_charges(100, o),
    "spenders": lambda r, o: r.spenders(SINCE, UNTIL, "user", organization_id=o),
    "run_outs": lambda r, o: r.run_outs(organization_ids=None if o is None else [o]).rows,
}
# Questions about one organization.
ABOUT_ONE: dict[str, Callable[[Reports, UUID], Any]] = {
    "organization": lambda r, o: r.organization(o),
    "members": lambda r, o: r.members(o),
    "quests": lambda r, o: r.quests(o),
    "ledger": lambda r, o: r.ledger(o),
    "explain": lambda r, o: r.explain(o, "general"),
    "grants": lambda r, o: r.grants(o, closed=True),
    "wallets_of": lambda r, o: r.wallets_of([o])[o],
}
# Questions about everybody that the viewer may see.
LISTS: dict[str, Callable[[Reports], Any]] = {
    "top_organizations": lambda r: r.top_organizations(SINCE, UNTIL),
    "organizations": lambda r: r.organizations(),
    "movers": lambda r: [*r.movers().moved, *r.movers().run_outs.rows, *r.movers().upgrades],
    "preview_cost": lambda r: list(r.preview_cost("generate_insight", 2).organizations),
    "upgrade_candidates": lambda r: r.upgrade_candidates(SINCE, UNTIL),
    "stuck_tokens": lambda r: r.stuck_tokens(),
    "sums_that_do_not_close": lambda r: r.sums_that_do_not_close(),
    "overdue_periods": lambda r: r.overdue_periods(),
    "findings": lambda r: r.findings(),
    "plan_drift": lambda r: r.plan_drift(),
    "frequent_refusals": lambda r: r.frequent_refusals(SINCE, UNTIL, by="user"),
}
# Questions about the platform, which a member may not ask.
PLATFORM: dict[str, Callable[[Reports], Any]] = {
    "cost_against_revenue": lambda r: r.cost_against_revenue(SINCE, UNTIL),
    "latencies": lambda r: r.latencies(SINCE),
    "latest_latencies": lambda r: r.latest_latencies(),
    "database_size": lambda r: r.database_size(),
    "overview": lambda r: r.overview(SINCE, UNTIL),
    "rollup_differences": lambda r: r.rollup_differences(),
    "closing": lambda r: r.closing(),
    "attention": lambda r: r.attention(),
    "abuse": lambda r: r.abuse(SINCE, UNTIL),
    "verifications": lambda r: r.verifications(),
    "limits": lambda r: r.limits(),
    "parameters": lambda r: r.parameters(),
    "staff": lambda r: r.staff(),
    "api_keys": lambda r: r.api_keys(),
    "request_limits": lambda r: r.request_limits(),
    "output_limit": lambda r: r.output_limit(uuid4()),
    "former_staff": lambda r: r.former_staff(),
    "changes": lambda r: r.changes(),
}


@pytest.fixture(scope="module")
def world(token_server: Embedded) -> Iterator[World]:
    with reports_world.made(token_server) as made:
        with made.database.connect("tokenlib_owner") as owner:
            reports_world.break_books(owner, made.a, made.b)
            made.tokens.close_usage(anew=True)
            owner.execute("update ai_token_usage_sums set waived = waived + 1")
            owner.execute(  # in use, and nearly empty
                "update ai_tokens set balance = 1 where token_type = 'forecast'"
                " and organization_id = %s",
                [made.b],
            )
            owner.execute(
                "select tokenlib.record_change(null, 'set_staff', gen_random_uuid(), 'left',"
                " jsonb_build_object('user_id', gen_random_uuid(), 'email', 'x@example.org'), null)"
            )
            owner.execute(
                "insert into ai_token_api_keys"
                " (id, name, start, digest, scopes, owner_id, created_at) values"
                " (gen_random_uuid(), 'A key', 'tkl_', '', '{read}', gen_random_uuid(), now())"
            )
        made.tokens.database.call(
            statements("plans")["record_latency"], {"operation": "check", "milliseconds": 1.0}
        )
        made.tokens.verify()
        yield made


def said(answer: Any) -> str:
    return repr(plain(answer))


def marks(world: World, organization: UUID) -> set[str]:
    """Everything by which an organization could be recognized in an answer."""
    found = world.plain(
        "select id::text from organizations where id = %(o)s union"
        " select name from organizations where id = %(o)s union"
        " select unnest(array[id::text, full_name, email]) from user_profiles"
        " where organization_id = %(o)s union"
        " select id::text from ai_token_usage_log where organization_id = %(o)s union"
        " select id::text from ai_token_events where organization_id = %(o)s union"
        " select id::text from ai_token_reservations where organization_id = %(o)s union"
        " select id::text from ai_token_findings where organization_id = %(o)s union"
        " select unnest(array[id::text, title]) from quests where organization_id = %(o)s",
        o=organization,
    )
    return {mark for (mark,) in found}


def shows(answer: Any, of: set[str]) -> bool:
    text = said(answer)
    return any(mark in text for mark in of)


def test_every_question_is_in_one_of_the_lists() -> None:
    public = {name for name in dir(Reports) if not name.startswith("_")}
    assert public == {"now", "together", *NARROWABLE, *ABOUT_ONE, *LISTS, *PLATFORM}


def test_what_is_asked_together_is_asked_as_the_same_viewer(world: World) -> None:
    member = world.member(world.a1)
    with member.together() as asked:
        assert asked.wallets() == member.wallets() != world.service().wallets()
        with asked.together() as again:
            assert again.wallets() == member.wallets()
        with pytest.raises(PermissionDenied):
            asked.staff()
    assert member.wallets() == member.wallets(world.a)
    with world.service().together() as asked, pytest.raises(InvalidInput, match="time zone"):
        asked.usage_by_day(SINCE, UNTIL, "Mars/Olympus")


@pytest.mark.parametrize("question", NARROWABLE)
def test_a_member_that_asks_about_everything_gets_its_own(world: World, question: str) -> None:
    ask = NARROWABLE[question]
    service, member = world.service(), world.member(world.a1)
    own = ask(service, world.a)
    assert ask(member, None) == own == ask(member, world.a)
    assert ask(service, None) != own != ask(service, world.b)  # else this shows nothing


@pytest.mark.parametrize("question", NARROWABLE)
def test_a_member_that_asks_about_another_organization_gets_nothing(
    world: World, question: str
) -> None:
    ask = NARROWABLE[question]
    nothing = ask(world.service(), uuid4())
    assert ask(world.member(world.a1), world.b) == nothing
    assert ask(world.service(), world.b) != nothing


@pytest.mark.parametrize("question", ABOUT_ONE)
def test_a_member_sees_its_own_organization_and_no_other(world: World, question: str) -> None:
    ask = ABOUT_ONE[question]
    service, member = world.service(), world.member(world.a1)
    assert ask(member, world.a) == ask(service, world.a)
    assert shows(ask(service, world.b), marks(world, world.b))
    assert not ask(member, world.b)


@pytest.mark.parametrize("question", LISTS)
def test_a_members_lists_hold_its_own_organization_alone(world: World, question: str) -> None:
    ask = LISTS[question]
    found, everything = ask(world.member(world.a1)), ask(world.service())
    assert shows(everything, marks(world, world.a))
    assert shows(everything, marks(world, world.b))
    assert shows(found, marks(world, world.a))
    for other in (world.b, world.c, world.d):
        assert not shows(found, marks(world, other))


def test_neither_share_nor_total_tells_of_others(world: World) -> None:
    member = world.member(world.a1)
    assert [row.share for row in member.top_organizations(SINCE, UNTIL)] == [1.0]
    page = member.organizations(search="Organization")
    assert page.total == 1
    assert member.organizations(search="b1@example.org").total == 0
    assert member.organizations(search=str(world.b)).total == 0
    assert member.refusals(SINCE, UNTIL, user_id=world.b1) == []


@pytest.mark.parametrize("question", PLATFORM)
def test_a_member_may_not_ask_about_the_platform(world: World, question: str) -> None:
    ask = PLATFORM[question]
    assert ask(world.service())
    with pytest.raises(PermissionDenied):
        ask(world.member(world.a1))


@pytest.mark.parametrize("question", [*NARROWABLE, *LISTS, *PLATFORM])
def test_staff_see_what_the_service_sees(world: World, question: str) -> None:
    staff, service = world.as_staff(world.staff), world.service()
    if question in NARROWABLE:
        ask = NARROWABLE[question]
        assert ask(staff, None) == ask(service, None)
        assert ask(staff, world.b) == ask(service, world.b)
    else:
        whole = {**LISTS, **PLATFORM}[question]
        assert whole(staff) == whole(service)


@pytest.mark.parametrize("question", [*NARROWABLE, *LISTS])
@pytest.mark.parametrize("reader", ["tokenlib_reader", "authenticated"])
def test_strangers_see_nothing(world: World, question: str, reader: str) -> None:
    # A member is a stranger among staff, and staff are no organization's members.
    reports = world.as_staff(world.a1) if reader == "tokenlib_reader" else world.member(world.staff)
    if question in NARROWABLE:
        ask = NARROWABLE[question]
        nothing = ask(world.service(), uuid4())
        assert ask(reports, None) == ask(reports, world.a) == nothing
    elif question == "organizations":
        assert reports.organizations().total == 0
    else:
        assert LISTS[question](reports) == []


def test_what_one_viewer_asked_does_not_stick_to_the_connection(world: World) -> None:
    for _ in range(3):
        assert {row.organization_id for row in world.member(world.a1).wallets()} == {world.a}
        assert {row.organization_id for row in world.member(world.b1).wallets()} == {world.b}
        assert len({row.organization_id for row in world.service().wallets()}) == 4


def test_now_is_the_clock_of_the_books_for_everybody(world: World) -> None:
    for reports in (world.service(), world.member(world.a1), world.as_staff(world.staff)):
        assert reports.now() == NOW
    world.clock.set(NOW + timedelta(days=1))
    try:
        assert world.member(world.a1).now() == NOW + timedelta(days=1)
    finally:
        world.clock.set(NOW)
