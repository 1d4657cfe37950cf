"""The figures of `/metrics` in Prometheus' text format.

Those of the books come from the database, so every process of a server says the same. Requests are
counted by each process, which names itself. There are a dozen, so the format is written here.
"""

from __future__ import annotations

from itertools import groupby

from tokenlib.api.counts import Requests
from tokenlib.api.door import Reading

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_HELP = {
    "recent_charges": "Charges of the last 5 minutes.",
    "recent_tokens": "Tokens charged in the last 5 minutes.",
    "recent_refusals": "Refusals by rule, of those refused in the last 5 minutes.",
    "holds": "Reservations that nobody has ended, live or past their expiry.",
    "wallets_due": "Wallets with something due that the next touch or refresh brings up to date.",
    "open_findings": "Findings of an adoption that nobody has settled.",
    "switched_organizations": "Organizations whose emergency switch is not on enforce.",
    "switched_for_everyone": "1 while the switch for everyone is not on enforce.",
    "api_keys": "API keys that are good.",
    "verification_problems": "What the last verification of the books found.",
    "verification_age_seconds": "How long ago the books were last verified.",
}


def text(read: Reading, requests: Requests) -> str:
    """Every figure, each with its help and type. Raises PermissionDenied."""
    rows = sorted(read.ask("metrics"), key=lambda row: (row["name"], row["label_value"] or ""))
    lines = []
    for name, figures in groupby(rows, key=lambda row: row["name"]):
        lines += [f"# HELP tokenlib_{name} {_HELP[name]}", f"# TYPE tokenlib_{name} gauge"]
        lines += [
            f"tokenlib_{name}{_label(row['label'], row['label_value'])} {row['value']:g}"
            for row in figures
        ]
    return "\n".join([*lines, *requests.lines()]) + "\n"


def _label(label: str | None, value: str | None) -> str:
    if label is None or value is None:
        return ""
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{{{label}="{escaped}"}}'
