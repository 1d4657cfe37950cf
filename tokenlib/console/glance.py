"""What staff see first: figures and their trend, what needs somebody, what moved, what runs now."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal
from uuid import UUID

import streamlit as st

from tokenlib.console import cards, charges, links, process, session, shapes, tables
from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.console.ranges import Window
from tokenlib.reports.overview import Attention, Figure, Movers, Overview

NAMED = 3
"""Organizations that an item of attention names; its cause has the rest."""
STRIP = 8
EVERY_SECONDS = 5


def figures(found: Overview, window: Window) -> None:
    """Five figures, each with its days and the change to the time before."""
    draw = partial(_figure, whole_days=found.whole_days)
    before = "Below: the change against the time before, and whole days."
    with st.grid(5, min_column_width=180, row_height=190):
        draw("Tokens charged", found.tokens, f"{found.tokens.value:,.0f}", f"Gross. {before}")
        draw(
            "Active organizations",
            found.organizations,
            f"{found.organizations.value:,.0f}",
            f"Organizations with a charge. {before}",
        )
        draw(
            "Refusal rate",
            found.refusal_rate,
            f"{found.refusal_rate.value:.1%}",
            f"Refusals of all that was asked for {window.phrase}. {before}",
            good="down",
            points=True,
        )
        draw(
            "Tokens refunded",
            found.refunded,
            f"{found.refunded.value:,.0f}",
            f"Given back {window.phrase}. {before}",
            good="down",
        )
        cost, revenue = found.cost_cents.value, found.revenue_cents.value
        draw(
            "Estimated AI cost",
            found.cost_cents,
            f"${cost / 100:,.0f}",
            f"Against ${revenue / 100:,.0f} that the present plans bring in. {before}",
            tail=f"{cost / revenue:.0%} of revenue" if revenue else "no revenue",
        )


def attention(found: Attention, context: Context) -> None:
    """What needs somebody now. Each line leads to its cause."""
    at_100, at_80 = found.at_100, found.at_80
    order = {"sort": "Lowest level"}
    checked = found.verification
    failed = checked.problems if checked else 0
    items = [
        _Item("block", "red", at_100.total, "wallet", "used up", "organizations.py", order),
        _Item(
            "battery_2_bar", "orange", at_80.total, "wallet", "at 80 %", "organizations.py", order
        ),
        _Item("speed", "red", found.abuse.total, "person", "beyond a limit today", "spenders.py"),
        _Item("lock_clock", "orange", found.expired_holds.total, "hold", "stuck", "health.py"),
        _Item("update", "orange", found.overdue.total, "refresh", "overdue", "health.py"),
        _Item("gpp_bad", "red", failed, "problem", "in the last verification", "health.py"),
        _Item("flag", "blue", found.findings.total, "finding", "open", "health.py"),
    ]
    names: Sequence[Sequence[tuple[UUID, str]]] = [
        [(row.organization_id, row.name) for row in at_100.rows],
        [(row.organization_id, row.name) for row in at_80.rows],
        [(row.organization_id, f"{row.user}, {row.organization}") for row in found.abuse.rows],
        [(row.organization_id, row.organization) for row in found.expired_holds.rows],
        [(row.organization_id, row.name) for row in found.overdue.rows],
        [],
        [(row.organization_id, row.organization) for row in found.findings.rows],
    ]
    for place, (item, named) in enumerate(zip(items, names, strict=True)):
        if item.count:
            item.draw(place, dict.fromkeys(named))
    if not any(item.count for item in items):
        cards.empty("Nothing needs you now.", ":material/task_alt:")
    if checked is None:
        st.page_link(
            process.pages_folder() / "health.py",
            label="The books were not verified yet",
            icon=":material/fact_check:",
            help="",
        )
    elif not failed:
        st.caption(f"Books verified {context.time(checked.at)}: every sum closes.")


class _Item:
    """A line of attention: how many of what, and the page of its cause."""

    def __init__(
        self,
        icon: str,
        color: Literal["red", "orange", "blue"],
        count: int,
        noun: str,
        what: str,
        page: str,
        query: dict[str, str] | None = None,
    ) -> None:
        self.icon, self.color, self.count = f":material/{icon}:", color, count
        self.page, self.query = page, query
        many = {"person": "people", "refresh": "refreshes"}.get(noun, f"{noun}s")
        self.words = f"{count:,} {noun if count == 1 else many} {what}"

    def draw(self, place: int, named: dict[tuple[UUID, str], None]) -> None:
        """The line, and the first organizations that it is about."""
        with st.container(gap="xsmall"):
            st.page_link(
                process.pages_folder() / self.page,
                label=f":{self.color}[**{self.words}**]",
                icon=self.icon,
                query_params=self.query,
                help="",
            )
            with st.container(horizontal=True, gap="small"):
                for at, (organization_id, name) in enumerate(list(named)[:NAMED]):
                    if st.button(fmt.plain(name), key=f"attention_{place}_{at}", type="tertiary"):
                        links.organization(organization_id)


def moved(found: Movers, context: Context) -> None:
    """What used more or less than in the same days of the week before."""
    if not found.moved:
        st.caption("Nothing moved since then.")
        return
    data = tables.frame(found.moved, ["name", "tokens"], context)
    data["change"] = [shapes.change(row.tokens, row.before) for row in found.moved]
    columns = {
        "name": links.column("moved"),
        "tokens": tables.number("Tokens", note="Against the same days of the week before."),
        "change": st.column_config.TextColumn("Change", width=80),
    }
    tables.show(data, columns, "Organizations whose use changed most, in tokens")
    links.follow("moved", [row.organization_id for row in found.moved])


def run_outs(found: Movers, context: Context) -> None:
    """Who is empty or will be within a week, before the refresh."""
    rows = found.run_outs.rows
    if not rows:
        st.caption("Nobody runs out within a week at the present pace.")
        return
    data = tables.frame(rows, ["name"], context)
    data["left"] = [f"{row.balance:,} {context.token_type(row.token_type)}" for row in rows]
    data["out"] = ["is empty" if row.balance <= 0 else context.days(row.run_out_at) for row in rows]
    columns = {
        "name": links.column("run_outs"),
        "left": st.column_config.TextColumn("Left", width=125),
        "out": st.column_config.TextColumn("Runs out", width=75),
    }
    tables.show(data, columns, "Wallets that run out first at the pace of the last 7 days")
    links.follow("run_outs", [row.organization_id for row in rows])
    if found.run_outs.total > len(rows):
        st.caption(f"The first {len(rows)} of {fmt.count(found.run_outs.total, 'wallet')}.")


def upgrades(found: Movers, context: Context) -> None:
    """Who would have been helped by more tokens or another plan, by refusals."""
    if not found.upgrades:
        st.caption("Nobody was refused for an empty wallet or a plan since then.")
        return
    columns: dict[str, Any] = {
        "organization": links.column("upgrades"),
        "plan": "Plan",
        "refusals": tables.number("Refused", note="For an empty wallet or a plan without it."),
    }
    tables.draw(
        found.upgrades, columns, context, "Organizations refused most often, for an upgrade"
    )
    links.follow("upgrades", [row.organization_id for row in found.upgrades], view="Refusals")


@st.fragment(run_every=EVERY_SECONDS)
def strip() -> None:
    """The latest charges, asked again every few seconds by whoever may still see them."""
    reports = session.require(*session.STAFF).reports
    context = session.context(reports)
    rows = reports.latest_charges(STRIP)
    if not rows:
        cards.empty("No charge yet. Generate a quest, and it stands here.", ":material/bolt:")
        return
    charges.table(rows, context, "strip")
    st.caption(f"As of {context.now.astimezone(context.zone):%H:%M:%S}; asked every few seconds.")


def _figure(
    label: str,
    figure: Figure,
    shown: str,
    note: str,
    *,
    good: Literal["up", "down", "neither"] = "neither",
    points: bool = False,
    tail: str = "vs. before",
    whole_days: int,
) -> None:
    # A day that is not over would end every line in a dive.
    days = list(figure.daily[:whole_days])
    st.metric(
        label,
        shown,
        _change(figure, points),
        delta_color="inverse" if good == "down" else "off",
        delta_arrow="off" if figure.change is None else "auto",
        delta_description=tail,
        chart_data=days,
        chart_type="area",
        help=note,
        border=True,
        height="stretch",
    )


def _change(figure: Figure, points: bool) -> str | int:
    if points:
        moved = (figure.value - figure.before) * 100
        return f"{moved:+.1f} points" if abs(moved) >= 0.05 else 0
    if figure.change is None:
        return "new" if figure.value else 0
    return f"{figure.change:+.0%}" if abs(figure.change) >= 0.005 else 0
