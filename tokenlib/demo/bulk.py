"""The bulk path: the history is played in memory and copied in as the owner, all or nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable

from tokenlib.db import statements
from tokenlib.demo.cast import PERSONAS
from tokenlib.demo.history import History, Terms
from tokenlib.demo.moments import text
from tokenlib.demo.owner import Owner
from tokenlib.demo.people import Organization
from tokenlib.demo.rhythm import Rhythm
from tokenlib.demo.wallet import Values, stored
from tokenlib.demo.world import histories

_GOODWILL_PER_DAY = 100
_ADMIN = str(PERSONAS["admin"].user_id)


def store(
    connection: Owner,
    seed: int,
    rhythm: Rhythm,
    known: list[Organization],
    terms: Terms,
    charges: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Play and store the history, inside the caller's transaction; `progress` counts charges."""
    named = statements("load", "demo")
    connection.execute(named["stage"])
    rows: dict[str, list[Values]] = defaultdict(list)
    rows["staff"] = staff()
    done = 0
    with connection.cursor().copy(named["copy_log"]) as copy:
        for history in histories(seed, rhythm, known, terms, charges, copy.write_row):
            _collect(rows, history)
            done += history.charges
            if progress is not None:
                progress(min(done, charges), charges)
    for table, entries in rows.items():
        _copy(connection, named[f"copy_{table}"], entries)
    connection.execute(named["store"])


def staff() -> list[Values]:
    """The personas that work for the operator, in the order of `stage_staff`."""
    return [
        (str(p.user_id), p.email, p.name, p.role, _GOODWILL_PER_DAY if p.role == "support" else 0)
        for p in PERSONAS.values()
        if p.role != "member"
    ]


def _copy(connection: Owner, statement: str, rows: Iterable[Values]) -> None:
    with connection.cursor().copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def _collect(rows: dict[str, list[Values]], history: History) -> None:
    """Everything but the log, which is large and goes straight to the database."""
    organization = history.organization
    owner = str(organization.id)
    rows["organizations"].append((owner, organization.name, organization.role.plan))
    rows["members"] += [(str(m.id), owner, m.name, m.email, m.role) for m in organization.members]
    rows["contracts"] += [(owner, *allowance) for allowance in history.contract.items()]
    for wallet in history.wallets.values():
        rows["wallets"].append(wallet.row())
        rows["events"] += wallet.events
        rows["grants"] += wallet.grant_rows()
    rows["refusals"] += history.refusal_rows()
    _collect_states(rows, organization)


def _collect_states(rows: dict[str, list[Values]], organization: Organization) -> None:
    """Outages and pauses, and the changes on record that made them."""
    owner, role = str(organization.id), organization.role
    outage = role.outage
    if outage is not None:
        steps = [("active", outage.status, outage.reason, outage.since)]
        if outage.until is not None:
            steps.append((outage.status, "active", "Settled", outage.until))
        for before, after, reason, at in steps:
            old, new = stored({"status": before}), stored({"status": after})
            rows["changes"].append((owner, "set_status", outage.actor, reason, old, new, text(at)))
        _, status, _, since = steps[-1]
        rows["settings"].append((owner, status, text(since)))
    if role.member_paused_at is not None:
        member, paused_at = str(organization.members[0].id), text(role.member_paused_at)
        rows["paused"].append((owner, member, paused_at))
        paused = json.dumps({"user_id": member, "paused": True})
        reason = "Requests without pause"
        rows["changes"].append((owner, "pause_user", _ADMIN, reason, None, paused, paused_at))
