"""Send the requests of a recorded trace through the gate, and report what became of them."""

from tokenlib.replay.run import Report, replay
from tokenlib.replay.tenants import Tenants, check_run, own_organization, replay_organizations
from tokenlib.replay.trace import Request, Trace

__all__ = [
    "Report",
    "Request",
    "Tenants",
    "Trace",
    "check_run",
    "own_organization",
    "replay",
    "replay_organizations",
]
