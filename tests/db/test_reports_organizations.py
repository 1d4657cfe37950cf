"""Finding an organization, and the people and quests in it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.db import reports_world
from tests.db.reports_world import NOW, World
from tokenlib import InvalidInput, Tokens
from tokenlib.db import statements
from tokenlib.embedded import Embedded
from tokenlib.reports import Reports
from tokenlib.testing import TestClock

Person = tuple[UUID, UUID]


@pytest.fixture(scope="module")
def world(token_server: Embedded) -> Iterator[World]:
    with reports_world.made(token_server) as made:
        yield made


def names(world: World, **filters: Any) -> list[str]:
    page = world.service().organizations(**filters)
    assert page.total >= len(page.rows)
    return [row.name.removeprefix("Organization ") for row in page.rows]


def test_an_organization_is_found_by_name_id_or_a_members_e_mail(world: World) -> None:
    assert names(world) == ["A", "B", "C", "D"]
    assert names(world, search="  zation b ") == ["B"]
    assert names(world, search="ORGANIZATION") == ["A", "B", "C", "D"]
    assert names(world, search=str(world.c)) == ["C"]
    assert names(world, search=str(world.c).upper()) == ["C"]
    assert names(world, search="d1@") == ["D"]
    assert names(world, search="") == ["A", "B", "C", "D"]
    assert names(world, search=str(uuid4())) == []
    assert names(world, search="no such name") == []


def test_an_organization_is_found_by_how_its_id_begins(world: World) -> None:
    whole = str(world.c)
    for length in (4, 8, 11, 18, 36):
        assert "C" in names(world, search=whole[:length])
        assert "C" in names(world, search=f" {whole[:length].upper()} ")
    beyond = "0" if whole[20] != "0" else "1"
    assert names(world, search=whole[:20] + beyond) == []
    assert names(world, search=whole[:3]) == []  # too short to mean an id


SORTS: dict[str, Any] = {
    "name": lambda row: row.name,
    "plan": lambda row: ("starter", "pro", "enterprise").index(row.plan),
    "status": lambda row: row.status,
    "balance": lambda row: row.balance,
    "total_used": lambda row: row.total_used,
    "refresh_date": lambda row: row.refresh_date,
    "last_used_at": lambda row: row.last_used_at,
}


@pytest.mark.parametrize("sort", SORTS)
def test_organizations_are_sorted_by_what_they_show_then_by_name(world: World, sort: Any) -> None:
    ask = world.service().organizations
    for descending in (False, True):
        rows = list(ask(sort=sort, descending=descending).rows)
        by_name = sorted(rows, key=lambda row: row.name, reverse=descending and sort == "name")
        assert rows == sorted(by_name, key=SORTS[sort], reverse=descending)
        paged = [ask(sort=sort, descending=descending, limit=1, offset=n).rows[0] for n in range(4)]
        assert paged == rows


def test_who_runs_out_first_comes_first_and_who_does_not_last(world: World) -> None:
    service = world.service()
    ends: dict[UUID, Any] = {}
    for row in service.run_outs(timedelta(days=365), 1000).rows:
        ends.setdefault(row.organization_id, row.run_out_at)
    assert ends  # else this shows nothing
    rows = service.organizations(sort="run_out").rows
    assert [row.organization_id for row in rows[: len(ends)]] == list(ends)
    rest = [row.name for row in rows[len(ends) :]]
    assert rest == sorted(rest)
    assert len(rows) == 4
    last = service.organizations(sort="run_out", descending=True).rows
    assert [row.organization_id for row in last[: len(ends)]] == list(ends)[::-1]


def test_levels_are_sorted_worst_first_and_none_last(world: World) -> None:
    rows = world.service().organizations(sort="level").rows
    assert [row.name[-1] for row in rows] == ["B", "D", "A", "C"]
    rows = world.service().organizations(sort="level", descending=True).rows
    assert [row.name[-1] for row in rows] == ["A", "B", "D", "C"]
    unknown: Any = "colour"
    with pytest.raises(InvalidInput, match="sort must be one of: name"):
        world.service().organizations(sort=unknown)


def test_the_wallets_of_a_page_are_those_of_each(world: World) -> None:
    reports = world.service()
    found = reports.wallets_of([world.b, world.a, UUID(int=1)])
    assert found == {
        world.a: tuple(reports.wallets(world.a)),
        world.b: tuple(reports.wallets(world.b)),
        UUID(int=1): (),
    }


def test_a_page_reads_its_own_wallets_only(tokens: Tokens, owner: psycopg.Connection) -> None:
    """At 100,000 organizations this is the difference between a page and a coffee."""
    owner.execute(
        "with o as (insert into organizations (name, plan) select 'Company ' || i, 'pro'"
        " from generate_series(1, 2000) i returning id)"
        " insert into ai_tokens (organization_id, token_type, balance, total_allocated, plan,"
        " event_number) select o.id, t.token_type, 5, 5, 'pro', 1 from o, ai_token_types t"
        " where t.token_type <> 'shared'"
    )
    owner.execute("analyze")
    params: dict[str, Any] = {
        "organization_id": None,
        "id_from": None,
        "id_to": None,
        "plan": "pro",
    }
    params |= {
        "status": None,
        "level": None,
        "near": None,
        "pattern": "%mpany 1%",
        "caseless": "% 1%",
    }
    params |= {"sort": "name", "descending": False, "limit": 50, "offset": 100}
    statement = statements("organizations")["organizations"]
    assert wallets_read(owner, statement, params) == 250


def wallets_read(owner: psycopg.Connection, statement: str, params: dict[str, Any]) -> int:
    counted = (
        "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint from"
        " pg_stat_xact_user_tables where relname = 'ai_tokens'"
    )
    with owner.transaction():
        [before] = owner.execute(counted).fetchall()
        owner.execute(statement.encode(), params)
        [after] = owner.execute(counted).fetchall()
    return int(after[0] - before[0])


@pytest.mark.parametrize("name", ["100% sure", "under_score", "back\\slash", "it's; drop table x"])
def test_what_is_typed_is_searched_as_it_stands(tokens: Tokens, name: str) -> None:
    for other in (name, "100 times sure", "underXscore", "backslash", "its"):
        tokens.create_organization(other)
    found = Reports(tokens.database).organizations(search=name)
    assert [row.name for row in found.rows] == [name]


@pytest.mark.parametrize("typed", ["0777", "oak 0777", "OAK 07%7", "k 0", "Ä 0777", "\\_OAK"])
def test_letters_and_what_has_no_case_are_searched_together(tokens: Tokens, typed: str) -> None:
    there = [
        "Oak 0777 a",
        "Oak 0778 b",
        "Ash 0777 c",
        "oak 07%7 d",
        "Ä 0777 e",
        "x\\_oak f",
        "x_oak g",
    ]
    for name in there:
        tokens.create_organization(name)
    found = Reports(tokens.database).organizations(search=typed)
    assert [row.name for row in found.rows] == sorted(
        name for name in there if typed.lower() in name.lower()
    )


def test_organizations_are_narrowed_by_plan_status_and_level(world: World) -> None:
    assert names(world, plan="pro") == ["A", "D"]
    assert names(world, status="limited") == ["B"]
    assert names(world, status="active") == ["A", "C", "D"]
    assert names(world, level="none") == ["C"]
    assert names(world, level="red") == ["B", "D"]
    assert names(world, level="yellow") == ["A"]
    assert names(world, plan="pro", level="red", search="organization") == ["D"]
    assert names(world, plan="no such plan") == []


def test_pages_of_organizations_know_the_whole(world: World) -> None:
    ask = world.service().organizations
    pages = [ask(limit=3, offset=offset) for offset in (0, 3, 6)]
    assert [[row.name[-1] for row in page.rows] for page in pages] == [["A", "B", "C"], ["D"], []]
    assert {page.total for page in pages} == {4}
    assert ask(search="zation b", limit=1).total == 1


def test_an_organization_sums_its_wallets(world: World) -> None:
    for organization in (world.a, world.b, world.c, world.d):
        found = world.service().organization(organization)
        assert found is not None
        assert [
            (found.balance, found.reserved, found.total_used, found.total_allocated)
        ] == world.plain(
            "select sum(balance), sum(reserved), sum(total_used), sum(total_allocated)"
            " from ai_tokens where organization_id = %s",
            organization,
        )
        assert [(found.refresh_date, found.last_used_at)] == world.plain(
            "select min(refresh_date), max(last_used_at) from ai_tokens where organization_id = %s",
            organization,
        )
    assert world.service().organization(uuid4()) is None


def test_an_organization_without_wallets_is_listed(
    tokens: Tokens, owner: psycopg.Connection
) -> None:
    owner.execute("insert into organizations (name, plan) values ('Not set up', 'pro')")
    [row] = Reports(tokens.database).organizations().rows
    assert (row.name, row.level, row.total_allocated, row.refresh_date) == (
        "Not set up",
        "none",
        0,
        None,
    )
    assert row.status == "active"


def test_the_switch_of_an_organization_shows_while_it_is_in_force(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    reports = Reports(tokens.database)

    def mode() -> str | None:
        row = reports.organization(pro[0])
        assert row is not None
        return row.mode

    assert mode() is None
    until = noon + timedelta(hours=1)
    tokens.set_mode("off", pro[0], until=until, actor="A test", reason="a test")
    assert mode() == "off"
    token_clock.set(until)
    assert mode() is None


def test_members_with_their_last_30_days(world: World) -> None:
    found = world.service().members(world.a)
    assert [(row.user, row.email, row.calls, row.tokens) for row in found] == [
        ("User A2", "a2@example.org", 3, 34),
        ("User A1", "a1@example.org", 7, 25),
    ]
    assert {(row.user_id, row.calls, row.tokens, row.last_used_at) for row in found} == set(
        world.plain(
            "select user_id, count(*), sum(tokens_deducted), max(created_at)"
            " from ai_token_usage_log where organization_id = %s and created_at >= %s group by 1",
            world.a,
            NOW - timedelta(days=30),
        )
    )
    assert [row.user for row in found if row.paused_at is not None] == ["User A2"]
    [old] = world.service().members(world.d)
    assert (old.calls, old.tokens) == (3, 93)  # not the charge of 6 February
    [never] = world.service().members(world.c)
    assert (never.calls, never.tokens) == (1, 0)
    assert world.service().members(uuid4()) == []


def test_quests_the_latest_first(world: World) -> None:
    [quest] = world.service().quests(world.a)
    assert (quest.title, quest.created_by) == (f"Quest of {world.a1}", world.a1)
    assert quest.metadata == {"steps": []}
    assert world.service().quests(world.c) == []


def test_bad_pages_name_the_field(world: World) -> None:
    for field, value in {"limit": 0, "offset": -1, "search": "a\x00b"}.items():
        with pytest.raises(InvalidInput) as refused:
            names(world, **{field: value})
        assert refused.value.field == field
