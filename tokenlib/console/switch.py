"""The emergency switch: a banner where it lets charges through, its state, and its dialog."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pandas as pd
import streamlit as st

from tokenlib.console import actions, office, session, tables
from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.console.office import Office
from tokenlib.console.session import Person
from tokenlib.domain import Mode, SwitchSetting

MODE = "mode"
EVERYONE = "everyone"
ORGANIZATION = "organization"
MODES: dict[Mode, tuple[str, str]] = {
    "enforce": ("Enforce", "Every rule holds, and every charge is paid from a balance."),
    "log_only": (
        "Log only",
        "Every rule runs and records what it would refuse; every charge is let through.",
    ),
    "off": ("Off", "No rule runs, and every charge is let through."),
}
UNTIL: dict[str, timedelta | None] = {
    "1 hour": timedelta(hours=1),
    "4 hours": timedelta(hours=4),
    "24 hours": timedelta(hours=24),
    "Until changed": None,
}
_CLICK = "switch_click"


def banner(person: Person) -> None:
    """Say on every page where charges are let through. Members hear of what concerns them."""
    state = session.tokens().switch_state()
    if not state.lets_through:
        return
    staff = person.role != "member"
    if state.override is not None:
        said = [
            f"TOKENLIB_SWITCH is {word(state.override)} on this server: it goes before every"
            " setting."
            if staff
            else "AI features run without taking tokens for now."
        ]
    else:
        own = [
            setting
            for setting in state.settings
            if staff or setting.organization_id in (None, person.organization_id)
        ]
        said = _sentences(person, own) if staff else _plain(own)
    if said:
        st.warning(
            "  \n".join([*said, "No balance moves; each use is on record as waived."]),
            title="Emergency switch",
            icon=":material/warning:",
        )


def _plain(settings: list[SwitchSetting]) -> list[str]:
    # An organization's own mode, which comes last, goes before everyone's.
    free = bool(settings) and settings[-1].mode != "enforce"
    return ["AI features run without taking tokens for now."] if free else []


def _sentences(person: Person, settings: list[SwitchSetting]) -> list[str]:
    everyone = [setting for setting in settings if setting.organization_id is None]
    others = sum(s.organization_id is not None and s.mode != "enforce" for s in settings)
    said = []
    for setting in everyone:
        until = f" until {fmt.minute(setting.until, session.timezone())}" if setting.until else ""
        people = {str(row.user_id): row.full_name for row in person.reports.staff()}
        who = people.get(setting.actor or "", setting.actor)
        by = f", set by {fmt.plain(who)}" if who else ""
        why = f": {fmt.plain(setting.reason)}" if setting.reason else ""
        said.append(f"{word(setting.mode)} for everyone{until}{by}{why}.")
    if others:
        hint = " Settings has them." if person.role == "admin" else ""
        said.append(f"On for {fmt.count(others, 'organization')}.{hint}")
    return said


def word(mode: Mode) -> str:
    """A mode as people read it."""
    return MODES[mode][0]


def draw(here: Office) -> None:
    """Where the switch stands, for everyone and for each organization that differs."""
    state = session.tokens().switch_state()
    if state.override is not None:
        st.warning(
            f"TOKENLIB_SWITCH is {word(state.override)} on this server, and goes before what stands"
            " here. Take it away and start again to return to these settings.",
            icon=":material/warning:",
        )
    settings = {setting.organization_id: setting for setting in state.settings}
    rows = [settings.pop(None, None), *settings.values()]
    people = {str(row.user_id): row.full_name for row in here.person.reports.staff()}
    tables.show(
        pd.DataFrame([_line(here, row, people) for row in rows]),
        {
            "who": "Who",
            "mode": "Switch",
            "until": {**tables.time("Until", here.context.zone), "width": 150},
            "by": "By",
            "reason": "Reason",
            "since": tables.time("Since", here.context.zone),
            "action": tables.action(_CLICK),
        },
        "The emergency switch for everyone, and for organizations with a mode of their own",
    )
    subjects = [(row and row.organization_id) or EVERYONE for row in rows]
    if (subject := tables.clicked(_CLICK, subjects)) is not None:
        actions.ask(MODE, None, subject)
    st.caption("  \n".join(f"**{name}**: {meaning}" for name, meaning in MODES.values()))
    st.button(
        "Switch one organization",
        key="ask_mode",
        icon=":material/add:",
        on_click=actions.ask,
        args=(MODE, None, ORGANIZATION),
    )


def _line(here: Office, row: SwitchSetting | None, people: dict[str, str]) -> dict[str, object]:
    if row is None:
        return {"who": "Everyone", "mode": "✓ Enforce", "until": None, "action": "Change"}
    return {
        "who": _name(here, row.organization_id),
        "mode": f"{'✓' if row.mode == 'enforce' else '△'} {word(row.mode)}",
        "until": row.until,
        "by": people.get(row.actor or "", row.actor),
        "reason": row.reason,
        "since": row.since,
        "action": "Change",
    }


def _name(here: Office, organization_id: UUID | None) -> str:
    if organization_id is None:
        return "Everyone"
    row = here.person.reports.organization(organization_id)
    return row.name if row else str(organization_id)


@st.dialog("Emergency switch", icon=":material/emergency:", on_dismiss=actions.close)
def change(here: Office, subject: UUID | str) -> None:
    """Set the switch for everyone, an organization, or (subject "organization") one found."""
    organization_id: UUID | None = None
    name = EVERYONE
    if subject == ORGANIZATION:
        found = office.find(here, "mode_organization")
        if found is None:
            return
        organization_id, name = found
    elif isinstance(subject, UUID):
        organization_id, name = subject, _name(here, subject)
    settings = {
        each.organization_id: each.mode for each in session.tokens().switch_state().settings
    }
    now: Mode = settings.get(organization_id, "enforce")
    mode: Mode = st.segmented_control(
        f"Switch for {name}",
        list(MODES),
        default="enforce" if now != "enforce" else "log_only",
        required=True,
        key="mode_to",
        format_func=word,
    )
    until = None
    if mode != "enforce":
        span = st.segmented_control(
            "For", list(UNTIL), default="1 hour", required=True, key="mode_until"
        )
        life = UNTIL[span]
        until = None if life is None else here.context.now + life
    elif organization_id is not None and None not in settings:
        until = here.context.now  # takes its own mode away: everyone's is enforce as well
    with st.container(border=True, gap="small"):
        st.markdown(f"**What it changes**: {word(now)} → {word(mode)}")
        st.markdown(MODES[mode][1])
        st.caption(f"No balance is touched. {_end(here.context, mode, until)}")
    actions.confirm(
        here,
        f"Set to {word(mode).lower()}",
        lambda reason: session.tokens().staff_set_mode(
            here.person.user_id, mode, organization_id, until=until, reason=reason
        ),
        f"Switch for {name}: {word(mode).lower()}.",
    )


def _end(context: Context, mode: Mode, until: datetime | None) -> str:
    if mode == "enforce":
        return "Charges are paid again from the next request on."
    if until is None:
        return "It stays until somebody changes it."
    return f"It goes back to enforce by itself on {context.time(until)}."
