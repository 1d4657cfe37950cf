"""The people of an organization: what each used, and who is paused."""

from __future__ import annotations

from tokenlib.console import actions, cards, tables
from tokenlib.console.actions import Desk

CLICK = "people_action"


def draw(desk: Desk) -> None:
    """A row for each person; an admin pauses or resumes one."""
    context = desk.context
    rows = desk.person.reports.members(desk.organization_id)
    if not rows:
        cards.empty("Nobody belongs to this organization.", ":material/group_off:")
        return
    data = tables.frame(rows, ["user", "email", "role", "calls", "tokens", "last_used_at"], context)
    data["state"] = ["AI paused" if row.paused_at else "Active" for row in rows]
    columns = {
        "user": "Person",
        "email": "E-mail",
        "role": "Role",
        "state": "State",
        "calls": tables.number("Calls", note="In the last 30 days."),
        "tokens": tables.number("Tokens", note="In the last 30 days, gross."),
        "last_used_at": tables.time("Last use", context.zone),
    }
    if desk.admin:
        data["action"] = ["Resume" if row.paused_at else "Pause" for row in rows]
        columns["action"] = tables.action(CLICK)
    tables.show(data, columns, "The people of this organization and what each used")
    if (row := tables.clicked(CLICK, rows)) is not None:
        actions.ask("user", desk.organization_id, row.user_id)
