"""A route that gets the organization wrong reads and charges nothing: the database sees to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tokenlib.api.door import Reading
from tokenlib.db import Database, Row
from tokenlib.reports import Reports
from tokenlib.reports.asking import Asking
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Api, Books, World


@pytest.fixture
def buggy_routes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever organization is asked about, the database hears of the other one."""

    def forged(params: dict[str, Any]) -> dict[str, Any]:
        if "organization_id" not in params:
            return params
        return {**params, "organization_id": world.other}

    call, call_all, ask = Database.call, Database.call_all, Asking._ask

    def forged_call(self: Database, statement: str, params: dict[str, Any], *kind: Any) -> Row:
        return call(self, statement, forged(params), *kind)

    def forged_call_all(
        self: Database, statement: str, params: dict[str, Any], *kind: Any
    ) -> list[Row]:
        return call_all(self, statement, forged(params), *kind)

    def forged_ask(self: Asking, noun: str, question: str, **params: Any) -> list[Row]:
        return ask(self, noun, question, **forged(params))

    def unchecked(self: Reading, _: object) -> Reports:
        return Reports(self.tokens.database, self._viewer())

    monkeypatch.setattr(Database, "call", forged_call)
    monkeypatch.setattr(Database, "call_all", forged_call_all)
    monkeypatch.setattr(Asking, "_ask", forged_ask)
    monkeypatch.setattr(Reading, "reports", unchecked)


@pytest.fixture
def theirs(world: World, tokens: Tokens) -> dict[str, str]:
    """What the other organization has."""
    usage = tokens.deduct_tokens(world.other, world.other_user, "generate_goal")
    hold = tokens.reserve(world.other, world.other_user, "generate_goal")
    return {"usage": str(usage.id), "hold": str(hold.id)}


@pytest.mark.parametrize("who", ["member", "key"])
@pytest.mark.usefixtures("buggy_routes")
def test_reads_find_nothing(api: Api, world: World, theirs: dict[str, str], who: str) -> None:
    caller = world.member if who == "member" else world.keys["own"]
    for path in (
        "balances",
        "balances/goal_generation",
        "stats",
        "explain/goal_generation",
        f"can-use?feature=generate_goal&userId={world.other_user}",
    ):
        answer = api.client.get(f"/api/v1{world.path}/{path}", headers=caller)
        assert answer.status_code == 404, path
        assert str(world.other) not in answer.text
    for path in ("history", "entries"):
        answer = api.get(f"{world.path}/{path}", caller)
        assert answer.json() == {"rows": [], "nextCursor": None}
        assert theirs["usage"] not in answer.text


@pytest.mark.parametrize("who", ["member", "key", "staff"])
@pytest.mark.usefixtures("buggy_routes")
def test_writes_do_nothing(
    api: Api, world: World, theirs: dict[str, str], who: str, books: Books
) -> None:
    caller = {"member": world.member, "key": world.keys["own"], "staff": world.staff["support"]}[
        who
    ]
    users = {"userId": str(world.other_user)} if who == "key" else {}
    before = books()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("charges", {"feature": "generate_goal", **users}),
        ("reservations", {"feature": "generate_goal", **users}),
        (f"reservations/{theirs['hold']}/deduct", {}),
        (f"reservations/{theirs['hold']}/release", {}),
        (f"charges/{theirs['usage']}/refund", {"reason": "mine"}),
        ("plan", {"plan": "enterprise", "reason": "more"}),
        ("status", {"status": "suspended", "reason": "less"}),
        (f"users/{world.other_user}/pause", {"reason": "less"}),
        ("request-limit", {"requestsPerMinute": 1, "reason": "less"}),
    ]
    if who != "staff":  # support may give, in every organization
        grant = {"tokenType": "general", "amount": 5, "reason": "more"}
        calls.append(("grants", grant))
    for path, body in calls:
        answer = api.post(f"{world.path}/{path}", caller, **body)
        assert answer.status_code in (403, 404), (path, answer.text)
        assert str(world.other) not in answer.text
    assert books() == before


@pytest.mark.usefixtures("buggy_routes")
def test_the_forgery_is_one(api: Api, world: World, tokens: Tokens) -> None:
    """The control: who may act everywhere hits the other organization."""
    answer = api.post(
        f"{world.path}/charges",
        world.keys["all"],
        feature="generate_goal",
        userId=str(world.other_user),
    )
    assert answer.json()["organizationId"] == str(world.other)
    told = api.get(f"{world.path}/history", world.keys["all"])
    assert [row["userId"] for row in told.json()["rows"]] == [str(world.other_user)]
