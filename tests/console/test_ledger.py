"""The ledger of an organization: narrowed, turned and taken away as a file, all by its address."""

from __future__ import annotations

import csv
import json
import uuid
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, of, open_page, press, texts
from tests.console.reading import parameter, table
from tokenlib import demo
from tokenlib.console import entries, exporting
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

PAGE = "organization.py"
HEALTHY = demo.SCENARIOS["healthy"]
EMPTY = demo.SCENARIOS["empty"]
LOW = demo.SCENARIOS["low"]


def shown(app: AppTest) -> list[list[object]]:
    """The entries that the ledger shows."""
    names = ["created_at", "token_type", "kind", "balance_change", "balance_after"]
    rows: list[list[object]] = table(app, "balance_after")[names].to_numpy().tolist()
    return rows


def test_the_ledger_is_that_of_the_books(seen: TestDatabase) -> None:
    app = of(HEALTHY, view="Ledger")
    with seen.connect() as owner:
        row = owner.execute(
            "select (select count(*) from ai_token_usage_log where organization_id = %(id)s)"
            " + (select count(*) from ai_token_events where organization_id = %(id)s)",
            {"id": HEALTHY.organization_id},
        ).fetchone()
    assert row is not None
    assert len(table(app, "balance_after")) == row[0]
    kept = table(of(HEALTHY, view="Ledger", entry="Charge", feature_used="Generate leads"), "kind")
    assert kept[["kind", "feature", "balance_change", "balance_after"]].to_numpy().tolist() == [
        ["Charge, refunded", "Generate leads", -5, 45]
    ]
    assert "No entry matches" in texts(of(HEALTHY, view="Ledger", up_to="2020-01-01"))
    assert "No entry matches" in texts(of(HEALTHY, view="Ledger", **{"from": "2030-01-01"}))


def test_the_ledger_of_one_person_has_a_link(seen: TestDatabase) -> None:
    app = of(HEALTHY, view="Ledger", person=str(HEALTHY.colleague_id))
    with seen.connect() as owner:
        charged = owner.execute(
            "select sum(tokens_deducted) from ai_token_usage_log where user_id = %s",
            (HEALTHY.colleague_id,),
        ).fetchone()
    rows = table(app, "balance_after")
    charges = rows[rows["kind"] == "Charge, refunded"]
    assert set(charges["actor"]) == {"healthy colleague"}
    assert charged == (int(charges["used_change"].sum()),)
    assert set(rows["kind"]) == {
        "Charge, refunded",
        "Refund",
    }  # what was given back to them is theirs too
    for nobody in ("x", str(uuid.UUID(int=0)), str(demo.SCENARIOS["low"].user_id)):
        assert len(table(of(HEALTHY, view="Ledger", person=nobody), "kind")) > len(rows)


def test_only_a_charge_that_is_not_refunded_has_the_button(seen: TestDatabase) -> None:
    rows = table(of(HEALTHY, view="Ledger"), "action")
    buttons = {kind: set(each.dropna()) for kind, each in rows.groupby("kind")["action"]}
    assert {kind for kind, labels in buttons.items() if labels} == {"Charge"}
    assert buttons["Charge"] == {"Refund"}
    assert "Charge, refunded" in buttons


@pytest.mark.parametrize(("view", "scenario"), [("Ledger", HEALTHY), ("Refusals", EMPTY)])
def test_the_button_of_a_row_stands_still_where_a_phone_scrolls(
    seen: TestDatabase, view: str, scenario: demo.Scenario
) -> None:
    drawn = next(one for one in of(scenario, view=view).dataframe if "action" in one.value.columns)
    assert json.loads(drawn.proto.columns)["action"]["pinned"] is True


def test_a_day_of_the_ledger_is_a_day_of_the_reader(seen: TestDatabase) -> None:
    now = TestClock(seen).now()
    for zone in ("Europe/Rome", "Asia/Tokyo", "America/Los_Angeles"):
        today = now.astimezone(ZoneInfo(zone)).date()
        with seen.connect() as owner:
            wanted = owner.execute(
                "select count(*) from (select created_at, organization_id from ai_token_usage_log"
                " union all select created_at, organization_id from ai_token_events) as e"
                " where organization_id = %s and (created_at at time zone %s)::date = %s",
                (HEALTHY.organization_id, zone, today),
            ).fetchone()
        app = open_page(
            PAGE,
            timezone=zone,
            id=str(HEALTHY.organization_id),
            view="Ledger",
            up_to=today.isoformat(),
            **{"from": today.isoformat()},
        )
        assert wanted == (len(table(app, "balance_after")),)


def test_the_ledger_turns_its_pages_in_the_url(
    seen: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = shown(of(HEALTHY, view="Ledger"))
    monkeypatch.setattr(entries, "ROWS", 3)
    app, found = of(HEALTHY, view="Ledger"), []
    while True:
        found.append(shown(app))
        if not [button for button in app.button if button.label == "Older"]:
            break
        place = parameter(app, "before")
        press(app, "Older")
        assert parameter(app, "before") != place
    assert all(len(rows) == 3 for rows in found[:-1])
    assert [row for rows in found for row in rows] == everything
    linked = of(HEALTHY, view="Ledger", before=parameter(app, "before"))
    assert shown(linked) == found[-1]
    press(app, "Latest")
    assert shown(app) == found[0]
    assert "before" not in app.query_params


@pytest.mark.parametrize(
    "before",
    ["x", "~~~~", f"2026-01-01~general~1~1~{uuid.UUID(int=1)}"]
    + [f"2026-01-01T00:00:00+00:00~general~{n}~1~{uuid.UUID(int=1)}" for n in ("-1", "9" * 40)],
)
def test_a_place_that_nobody_wrote_is_the_first_page(seen: TestDatabase, before: str) -> None:
    assert shown(of(HEALTHY, view="Ledger", before=before)) == shown(of(HEALTHY, view="Ledger"))


def test_what_staff_did_has_their_name_and_a_waived_charge_its_word(
    console: Open, tokens: Tokens
) -> None:
    support = demo.PERSONAS["support"]
    admin = demo.PERSONAS["admin"].user_id
    tokens.staff_set_staff(admin, support.user_id, "support", 5, reason="goodwill")
    tokens.staff_grant(support.user_id, LOW.organization_id, "general", 1, reason="goodwill")
    tokens.staff_set_mode(admin, "off", None, until=None, reason="night")
    tokens.deduct_tokens(LOW.organization_id, LOW.user_id, "generate_goal")
    rows = table(of(LOW, view="Ledger"), "balance_after")
    first = rows[["kind", "used_change", "waived"]].to_numpy().tolist()[0]
    assert first == ["Charge, waived", 0, 3]
    granted = rows[rows["kind"] == "Grant"]["actor"]
    assert next(iter(granted)) == f"{support.name} (support)"
    assert rows["waived"].isna().sum() == len(rows) - 1
    tokens.staff_set_staff(admin, support.user_id, None, reason="left")
    rows = table(of(LOW, view="Ledger"), "balance_after")
    granted = rows[rows["kind"] == "Grant"]["actor"]
    assert next(iter(granted)) == f"{support.email} (was staff)"


def test_the_exported_ledger_is_the_books(told: tuple[Tokens, TestDatabase]) -> None:
    rows = Reports(told[0].database).ledger(HEALTHY.organization_id, limit=1000)
    data = entries.frame(rows, {HEALTHY.user_id: "=healthy"})
    lines = list(csv.DictReader(exporting.csv(data).decode("utf-8-sig").splitlines()))
    with told[1].connect() as owner:
        wanted = owner.execute(
            "select id, created_at at time zone 'UTC' from ai_token_usage_log"
            " where organization_id = %(id)s union all select id, created_at at time zone 'UTC'"
            " from ai_token_events where organization_id = %(id)s",
            {"id": HEALTHY.organization_id},
        ).fetchall()
    stored = {(str(one), f"{at.isoformat()}Z") for one, at in wanted}
    assert {(line["id"], line["created_at"]) for line in lines} == stored
    assert {"'=healthy", "System"} <= {line["actor_name"] for line in lines}


def test_an_export_opens_as_data(seen: TestDatabase) -> None:
    data = pd.DataFrame({"reason": ["=1+1", "@x", "fine"], "change": [-3, 0, 5]})
    lines = exporting.csv(data).decode("utf-8-sig").splitlines()
    assert lines == ["reason,change", "'=1+1,-3", "'@x,0", "fine,5"]
