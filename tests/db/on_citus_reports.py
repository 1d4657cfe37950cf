"""Every question on a Citus, against the same rows on one node; for `make test-citus`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import Any, get_args
from uuid import UUID

import pytest

from tests import citus
from tests.db import reports_world
from tests.db.reports_world import DAY_AGO, SINCE, UNTIL, World
from tests.db.test_reports_isolation import ABOUT_ONE, LISTS, NARROWABLE, PLATFORM
from tokenlib import InvalidInput, PermissionDenied
from tokenlib.db import Database, statements
from tokenlib.domain import plain
from tokenlib.embedded import Embedded
from tokenlib.reports import Page, Reports, Viewer
from tokenlib.reports.organizations import OrganizationRow, OrganizationSort
from tokenlib.reports.series import Grouping

Both = tuple[World, Database]
# Asked about one of the organizations, or of all of them.
Question = Callable[[Reports, UUID], Any]
CROWD = 20


def _of_all(ask: Callable[[Reports, UUID | None], Any], reports: Reports, _one: UUID) -> Any:
    return ask(reports, None)


def _alone(ask: Callable[[Reports], Any], reports: Reports, _one: UUID) -> Any:
    return ask(reports)


QUESTIONS: dict[str, Question] = {
    **{name: partial(_of_all, ask) for name, ask in NARROWABLE.items()},
    **{f"{name} of one": ask for name, ask in NARROWABLE.items()},
    **ABOUT_ONE,
    **{name: partial(_alone, ask) for name, ask in {**LISTS, **PLATFORM}.items()},
    "now": lambda r, _o: r.now(),
    "spenders by organization": lambda r, _o: r.spenders(SINCE, UNTIL),
    "run_outs of a year": lambda r, _o: r.run_outs(timedelta(days=365), 3),
    "run_outs of some": lambda r, o: r.run_outs(organization_ids=[o]),
    "explain a moment": lambda r, o: r.explain(o, "general", SINCE + timedelta(days=12)),
    "abuse of one": lambda r, o: r.abuse(SINCE, UNTIL, organization_id=o),
    "abuse of a day": lambda r, _o: r.abuse(DAY_AGO, UNTIL),
    "reservations expired": lambda r, _o: r.reservations(expired_only=True),
    "ledger of charges": lambda r, o: r.ledger(o, kind="charge", limit=3),
    "changes of one": lambda r, o: r.changes(organization_id=o),
    "changes, the first": lambda r, _o: r.changes(limit=2),
}
del QUESTIONS["database_size"]  # that of the coordinator, and another

ORGANIZATIONS: dict[str, dict[str, Any]] = {
    "near 80": {"near": 80},
    "near 100": {"near": 100},
    "near 80 by balance": {"near": 80, "sort": "balance"},
    "a name": {"search": "zation"},
    "an address": {"search": "a1@example"},
    "a plan": {"plan": "pro"},
    "a status": {"status": "limited"},
    "red": {"level": "red", "limit": 3},
    "without": {"level": "none"},
    "a plan by run out": {"plan": "pro", "sort": "run_out"},
    "a name by last use": {"search": "Crowd", "sort": "last_used_at", "limit": 2, "offset": 1},
    "a page": {"sort": "balance", "limit": 4, "offset": 7},
    "past the end": {"offset": 1000},
}
# With or without whom and what; `o` and `u` stand for the organization and its user.
FILTERS: tuple[dict[str, str], ...] = (
    {},
    {"organization_id": "o"},
    {"user_id": "u"},
    {"feature": "generate_goal"},
    {"plan": "pro"},
    {"feature": "generate_goal", "plan": "pro"},
    {"organization_id": "o", "user_id": "u"},
)


@pytest.fixture(scope="module")
def both(token_server: Embedded) -> Iterator[Both]:
    """A world on all nodes, and its rows in a database of one."""
    with reports_world.made(token_server) as world:
        database = world.database
        _crowd(world)
        with database.connect() as owner:
            reports_world.break_books(owner, world.a, world.b)
            owner.execute(
                "select tokenlib.record_change(null, 'set_staff', gen_random_uuid(), 'left',"
                " jsonb_build_object('user_id', gen_random_uuid(), 'email', 'x@example.org'), null)"
            )
        world.tokens.database.call(
            statements("plans")["record_latency"], {"operation": "check", "milliseconds": 1.0}
        )
        world.tokens.verify()
        with citus.on_one_node(database) as twin, closing(Database(twin.url())) as one:
            yield world, one


def _crowd(world: World) -> None:
    """So many that some lie on each node and a page does not hold all."""
    for number in range(CROWD):
        plan = ("starter", "pro", "enterprise")[number % 3]
        organization = world.tokens.create_organization(f"Crowd {number:02}", plan)
        user = world.tokens.add_member(organization, f"User {number}", f"{number}@example.org")
        if plan != "starter":
            world.tokens.deduct_tokens(organization, user, "generate_insight", 2 * number + 9)


def same(both: Both, question: Question) -> list[Any]:
    """What service, staff and a member are answered, the same on both."""
    world, one = both
    viewers = (
        None,
        Viewer(world.staff, "tokenlib_reader"),
        Viewer(world.a1, "authenticated"),
    )
    answers = [_answer(question, Reports(world.tokens.database, v), world) for v in viewers]
    assert answers == [_answer(question, Reports(one, v), world) for v in viewers]
    return answers


def _answer(question: Question, reports: Reports, world: World) -> Any:
    try:
        return plain(question(reports, world.a))
    except PermissionDenied as refused:
        return type(refused)  # that of a Citus names the table of a shard


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_citus_answers_as_one_node_does(both: Both, question: str) -> None:
    service, staff, _member = same(both, QUESTIONS[question])
    assert staff == service
    if question not in ("closing", "rollup_differences", "api_keys", "run_outs of one"):
        assert service


@pytest.mark.parametrize("sort", get_args(OrganizationSort))
@pytest.mark.parametrize("descending", [False, True])
def test_organizations_of_all_nodes_are_one_sorted_list(
    both: Both, sort: OrganizationSort, descending: bool
) -> None:
    def listed(reports: Reports, _o: UUID) -> Page[OrganizationRow]:
        return reports.organizations(sort=sort, descending=descending)

    service, _staff, member = same(both, listed)
    assert (service["total"], len(service["rows"]), member["total"]) == (CROWD + 4, CROWD + 4, 1)


@pytest.mark.parametrize("narrowed", ORGANIZATIONS)
def test_organizations_of_all_nodes_are_narrowed_and_paged(both: Both, narrowed: str) -> None:
    service, *_ = same(both, lambda r, _o: r.organizations(**ORGANIZATIONS[narrowed]))
    assert bool(service["rows"]) == (narrowed != "past the end")
    assert service["total"]


@pytest.mark.parametrize("by", get_args(Grouping))
@pytest.mark.parametrize("named", FILTERS, ids=" and ".join)
def test_series_of_all_nodes_are_merged(both: Both, by: Grouping, named: dict[str, str]) -> None:
    only = _meant(both[0], named)
    service, *_ = same(
        both, lambda r, _o: r.usage_series(SINCE, UNTIL, by, "day", "Asia/Kolkata", top=2, **only)
    )
    assert service


@pytest.mark.parametrize("named", FILTERS, ids=" and ".join)
def test_totals_and_charges_of_all_nodes_are_merged(both: Both, named: dict[str, str]) -> None:
    only = _meant(both[0], named)
    totals, *_ = same(both, lambda r, _o: r.usage_totals(SINCE, UNTIL, **only))
    rows, *_ = same(both, lambda r, _o: r.usage_rows(SINCE, UNTIL, 1000, **only))
    assert totals["uses"] == len(rows) > 0


def _meant(world: World, named: dict[str, str]) -> dict[str, Any]:
    who = {"o": world.a, "u": world.a1}
    return {name: who.get(value, value) for name, value in named.items()}


def test_an_unknown_time_zone_is_refused_also_by_the_nodes(both: Both) -> None:
    world, _ = both
    for viewer in (None, Viewer(world.a1, "authenticated")):
        reports = Reports(world.tokens.database, viewer)
        for since in (SINCE, UNTIL + timedelta(days=1000)):  # where nothing is, too
            until = since + timedelta(days=1)
            with pytest.raises(InvalidInput, match="is not a time zone"):
                reports.usage_by_day(since, until, "Mars/Olympus")
            with pytest.raises(InvalidInput, match="is not a time zone"):
                reports.usage_series(since, until, timezone="Mars/Olympus")


def test_what_is_asked_otherwise_on_a_citus_is_a_question_elsewhere() -> None:
    for name in statements("citus"):
        noun, _, question = name.partition("_")
        assert question in statements(noun)
