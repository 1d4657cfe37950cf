"""What staff see first: figures and their trend, what needs somebody, what moved, what runs now."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import streamlit as st

from tokenlib.console import (
    balances,
    cards,
    charges,
    checks,
    heavy,
    links,
    process,
    ranges,
    session,
    shapes,
    tables,
)
from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.console.ranges import Window
from tokenlib.reports import Page
from tokenlib.reports.overview import Attention, Figure, Movers, Overview
from tokenlib.reports.series import SeriesPoint
from tokenlib.reports.spend import AbuseRow

Color = Literal["red", "orange", "blue"]

NAMED = 3
"""Organizations or people that a line of attention names; its cause has the rest."""
STRIP = 8
EVERY_SECONDS = 5

_CHANGE = {
    "tokens": tables.number("Tokens", note="Charged since then."),
    "change": st.column_config.TextColumn(
        "Change", help="Against the same days of the week before.", width=80
    ),
}


def figures(found: Overview, window: Window) -> None:
    """Five figures, each with its days and the change to the time before."""
    draw = partial(_figure, whole_days=found.whole_days)
    before = "Below: the change against the time before, and whole days."
    with st.grid(5, min_column_width=150, row_height=190):
        draw(
            "Tokens charged",
            found.tokens,
            fmt.number(round(found.tokens.value)),
            f"Gross. {before}",
        )
        draw(
            "Organizations",
            found.organizations,
            fmt.number(round(found.organizations.value)),
            f"Active ones, with a charge in this time. {before}",
        )
        draw(
            "Refusal rate",
            found.refusal_rate,
            fmt.permille(found.refusal_rate.value),
            f"Refusals of all that was asked for {window.phrase}. {before}",
            good="down",
            points=True,
            tail=None,  # beside points it would be cut on a phone
        )
        draw(
            "Tokens refunded",
            found.refunded,
            fmt.number(round(found.refunded.value)),
            f"Given back {window.phrase}. {before}",
            good="down",
        )
        cost, revenue = found.cost_cents.value, found.revenue_cents.value
        draw(
            "Estimated AI cost",
            found.cost_cents,
            f"${fmt.number(round(cost / 100))}",
            f"What these tokens cost to serve. {before}",
        )
    share = fmt.percent(cost / revenue) if revenue else "—"
    st.caption(
        f"The estimated AI cost is {share} of what the plans bring in over this time at present"
        rf" prices, \${fmt.number(round(revenue / 100))}."
    )


def attention(found: Attention, context: Context) -> None:
    """What needs somebody now. Each line leads to its cause."""
    checked = found.verification
    failed = checked.problems if checked else 0
    full, near = ({"level": balances.filter_word(name)} for name in ("used100", "used80"))
    beyond = {"list": heavy.LISTS["beyond"], ranges.KEY: "24h"}
    holds, overdue, findings = ({checks.ASKED: name} for name in ("holds", "overdue", "findings"))
    lines = [
        _line(
            "block",
            "red",
            found.at_100,
            "organization",
            "with a wallet used up",
            "organizations.py",
            full,
        ),
        _line(
            "timelapse",
            "orange",
            found.at_80,
            "organization",
            "with a wallet at 80 %",
            "organizations.py",
            near,
        ),
        _line("speed", "red", found.abuse, "person", "beyond a limit today", "spenders.py", beyond),
        _line("lock_clock", "orange", found.expired_holds, "hold", "stuck", "health.py", holds),
        _line("update", "orange", found.overdue, "refresh", "overdue", "health.py", overdue),
        _line("flag", "blue", found.findings, "finding", "open", "health.py", findings),
    ]
    books = {checks.ASKED: "books"}
    if failed:
        _link("gpp_bad", "red", f"{_many(failed, 'problem')} in the books", "health.py", books)
    elif checked is None:
        _link("fact_check", "blue", "The books were not verified yet", "health.py", books)
    if not failed and not any(lines):
        cards.empty("Nothing needs you now.", ":material/task_alt:")
    if checked is not None and not failed:
        st.caption(f"Books verified {context.time(checked.at)}: every sum closes.")


def _line(
    icon: str,
    color: Color,
    found: Page[Any],
    noun: str,
    what: str,
    page: str,
    query: dict[str, str],
) -> bool:
    """How many of what, and the first that it is about; nothing, and False, for none."""
    if not found.total:
        return False
    with st.container(horizontal=True, vertical_alignment="center", gap="xxsmall"):
        _link(icon, color, f"{_many(found.total, noun)} {what}", page, query)
        names = list(dict.fromkeys(_named(row) for row in found.rows))
        more = ", …" if len(names) > NAMED else ""
        st.caption(fmt.plain(", ".join(names[:NAMED])) + more, width="content")
    return True


def _link(icon: str, color: Color, words: str, page: str, query: dict[str, str]) -> None:
    st.page_link(
        process.pages_folder() / page,
        label=f":{color}[**{words}**]",
        icon=f":material/{icon}:",
        query_params=query,
        help="",
    )


def _many(count: int, noun: str) -> str:
    many = {"person": "people", "refresh": "refreshes"}.get(noun, f"{noun}s")
    return f"{fmt.number(count)} {noun if count == 1 else many}"


def _named(row: Any) -> str:
    if isinstance(row, AbuseRow):
        return f"{row.user} of {row.organization}"
    return str(getattr(row, "organization", None) or row.name)


def moved(found: Movers, context: Context) -> None:
    """Who used more or less than in the same days of the week before."""
    if not found.moved:
        st.caption("Nothing moved since then.")
        return
    data = tables.frame(found.moved, ["name", "tokens"], context)
    data["change"] = [shapes.change(row.tokens, row.before) for row in found.moved]
    columns = {"name": links.column("moved"), **_CHANGE}
    tables.show(data, columns, "Organizations whose use changed most, in tokens")
    links.follow("moved", [row.organization_id for row in found.moved])


def grown(rows: Sequence[SeriesPoint], before: Sequence[SeriesPoint]) -> None:
    """What each feature took, the one that grew most first."""
    if not rows:
        st.caption("No AI feature was used since then.")
        return
    data = shapes.compared(rows, before, shapes.titles(rows))
    data = data.assign(more=data["tokens"] - data["before"]).sort_values("more", ascending=False)
    columns = {"group": "Feature", **_CHANGE}
    tables.show(data[list(columns)], columns, "Features by how much their use grew, in tokens")


def run_outs(found: Movers, context: Context) -> None:
    """Who is empty or will be within a week, before the refresh, going on as in the last one."""
    st.caption("Wallets in use in the last 7 days. One that was used up before is counted above.")
    rows = found.run_outs.rows
    if not rows:
        st.caption("Nobody runs out within a week at the present pace.")
        return
    data = tables.frame(rows, ["name"], context)
    data["out"] = ["is empty" if row.balance <= 0 else context.days(row.run_out_at) for row in rows]
    data["left"] = [
        f"{fmt.number(row.balance)} {context.token_type(row.token_type)}" for row in rows
    ]
    columns = {
        "name": links.column("run_outs"),
        "out": st.column_config.TextColumn("Runs out", width=80),
        "left": st.column_config.TextColumn("Left", width=140),
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
    when = st.column_config.DatetimeColumn(
        "When", format="D MMM, HH:mm:ss", timezone=str(context.zone), width=130
    )
    charges.table(rows, context, "strip", when)
    st.caption(f"As of {context.now.astimezone(context.zone):%H:%M:%S}; asked every few seconds.")


def _figure(
    label: str,
    figure: Figure,
    shown: str,
    note: str,
    *,
    good: Literal["up", "down", "neither"] = "neither",
    points: bool = False,
    tail: str | None = "vs. before",
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
        return (
            f"{'+' if moved > 0 else '-'}{fmt.tenths(abs(moved))} points"
            if abs(moved) >= 0.05
            else 0
        )
    if figure.change is None:
        return "new" if figure.value else 0
    return fmt.change(figure.change) if abs(figure.change) >= 0.005 else 0
