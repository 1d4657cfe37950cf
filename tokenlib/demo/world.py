"""The whole history, organization by organization: the same for the same seed, now and size."""

from __future__ import annotations

from collections.abc import Iterator

from tokenlib.demo import demand
from tokenlib.demo.chance import chance
from tokenlib.demo.history import Contract, History, Log, Terms
from tokenlib.demo.people import Organization, organizations
from tokenlib.demo.rhythm import Rhythm

ORGANIZATIONS = 60
USERS = 400
# The history that the levels and weights of `roles` are meant for.
CHARGES = 200_000


def people(seed: int, now: int, old: int, old_members: int) -> list[Organization]:
    """Organizations and members, beside those that the old system brings."""
    return organizations(seed, now, ORGANIZATIONS - old, USERS - old_members)


def histories(
    seed: int, rhythm: Rhythm, known: list[Organization], terms: Terms, charges: int, log: Log
) -> Iterator[History]:
    """Each organization's history: first those that live on their plan; those under a contract
    share what is left of `charges` by weight, and so carry most of it. Each charge goes to `log`.
    """
    left = charges
    for organization in known:
        if not organization.role.contract:
            random = chance("history", seed, organization.id)
            scale = min(1.0, charges / CHARGES)
            requests = demand.within_plan(
                organization, terms.features, terms.allowances, rhythm, random, scale
            )
            history = History(organization, {}, terms, rhythm.now, random, log)
            history.play(requests)
            left -= history.charges
            yield history
    weights = sum(organization.role.contract for organization in known)
    for organization in known:
        role = organization.role
        if role.contract:
            random = chance("history", seed, organization.id)
            count = round(max(0, left) * role.contract / weights)
            requests = demand.under_contract(organization, count, rhythm, random)
            contract: Contract = demand.contract(requests, terms.features, role)
            if role.unlimited:
                contract = dict.fromkeys(contract)
            history = History(organization, contract, terms, rhythm.now, random, log)
            history.play(requests)
            yield history
