"""Who is admin or support, and the dialog that makes, changes or removes them."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

import streamlit as st

from tokenlib.console import actions, numbers, office, refusals, session, tables
from tokenlib.console import format as fmt
from tokenlib.console.office import Office
from tokenlib.db import as_uuid
from tokenlib.errors import InvalidInput

PERSON = "staff"
NEW = "new"
ROLES: dict[Literal["admin", "support", "nobody"], str] = {
    "admin": "Admin",
    "support": "Support",
    "nobody": "Not staff",
}
_CLICK = "staff_click"
_CLAIM = st.column_config.TextColumn("By a claim of", width=160)


def draw(here: Office) -> None:
    """Every staff person, and what support gave today."""
    rows = here.person.reports.staff()
    names = ["full_name", "email", "role", "grants_per_day", "granted_today", "created_at"]
    by_claim = any(row.issuer for row in rows)
    data = tables.frame(rows, [*names, *(["issuer"] if by_claim else [])], here.context)
    if by_claim:
        data["issuer"] = [(row.issuer or "").removeprefix("https://") or None for row in rows]
    data["role"] = [ROLES[row.role] for row in rows]
    data["grants_per_day"] = [
        None if row.left_today is None else row.grants_per_day for row in rows
    ]
    data["action"] = "Change"
    columns = {
        "full_name": "Name",
        "email": "E-mail",
        "role": "Role",
        **({"issuer": _CLAIM} if by_claim else {}),
        "grants_per_day": tables.number(
            "Gifts a day", note="Tokens that support may give in a UTC day; admins, any."
        ),
        "granted_today": tables.number("Given today"),
        "created_at": tables.time("Since", here.context.zone),
        "action": tables.action(_CLICK),
    }
    tables.show(data[list(columns)], columns, "Staff: admins and support")
    if (row := tables.clicked(_CLICK, rows)) is not None:
        actions.ask(PERSON, None, row.user_id)
    st.button(
        "Add a person",
        key="ask_staff",
        icon=":material/person_add:",
        on_click=actions.ask,
        args=(PERSON, None, NEW),
    )


@st.dialog("Staff", icon=":material/badge:", on_dismiss=actions.close)
def change(here: Office, subject: UUID | str) -> None:
    """Change a person's role and daily limit, take their rights away, or (NEW) add somebody."""
    row = next((row for row in here.person.reports.staff() if row.user_id == subject), None)
    user, email, name = subject, None, None
    if row is None:
        user = st.text_input(
            "User id", key="staff_user", help="The id under which this person signs in."
        )
        name = st.text_input("Name", key="staff_name", max_chars=200)
        email = st.text_input("E-mail", key="staff_email", max_chars=320)
    else:
        st.markdown(f"**{fmt.plain(row.full_name)}**, {fmt.plain(row.email)}")
    key = f"staff_{row.user_id if row else NEW}"
    roles = [role for role in ROLES if row or role != "nobody"]
    if row and row.issuer:
        roles = [row.role, "nobody"]
        st.caption(
            f"Staff by a claim of {fmt.plain(row.issuer)}, which says the role. Ended here, it"
            " comes back with a new sign-in unless the claim goes."
        )
    role = st.segmented_control(
        "Role",
        roles,
        default=row.role if row else "support",
        required=True,
        key=f"{key}_role",
        format_func=ROLES.__getitem__,
    )
    gifts = None
    if role == "support":
        now = row.grants_per_day if row else 0
        gifts = numbers.whole("Gifts a day, in tokens", 0, 1_000_000_000, now, f"{key}_gifts")
        if gifts is None:
            return
    before = ROLES[row.role] if row else ROLES["nobody"]
    limit = row.grants_per_day if row and row.role == "support" else None
    if not office.changes(
        [
            ("Role", before, ROLES[role]),
            ("Gifts a day", office.said(limit, "—"), office.said(gifts, "—")),
        ]
    ):
        return
    st.caption("It holds from the person's next click, in tabs that are open too.")
    if row is None and not (user and name and email):
        st.caption("Fill in user id, name and e-mail first.")
        return
    try:
        user_id = as_uuid(user, "user id")
    except InvalidInput as error:
        refusals.problem(error)
        return
    actions.confirm(
        here,
        "Take the rights away" if role == "nobody" else "Add" if row is None else "Change",
        lambda reason: session.tokens().staff_set_staff(
            here.person.user_id,
            user_id,
            None if role == "nobody" else role,
            gifts,
            email=email,
            name=name,
            reason=reason,
        ),
        f"{row.full_name if row else name}: {ROLES[role].lower()}.",
    )
