"""The old system: four organizations as it left them, with the four known faults.

They stand twice. In a small database `tokenlib_legacy` beside the bundled one as they were: no
constraints, an update policy that lets members raise their own balance, impossible figures. And in
the main database as tokenlib takes them in: balances kept, sums closed, each fault a finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from psycopg.types.json import Jsonb

from tokenlib.db import statements
from tokenlib.demo.cast import fixed_id
from tokenlib.demo.chance import chance, draw_id
from tokenlib.demo.history import Terms
from tokenlib.demo.moments import DAY, HOUR, moment
from tokenlib.demo.owner import Owner, connected, first
from tokenlib.demo.people import Member, member, name
from tokenlib.demo.roles import PERIOD

DATABASE = "tokenlib_legacy"
COUNT = 4
MEMBERS = 3
_LIFE = 75 * DAY

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault that the old monitoring queries find: a stored figure and what it should be."""

    kind: str
    organization_id: UUID
    organization: str
    token_type: str
    stored: int
    expected: int


@dataclass(frozen=True, slots=True)
class Old:
    """One organization of the old system, as rows of its tables. `departed` have no profile."""

    id: UUID
    name: str
    members: tuple[Member, ...]
    departed: tuple[UUID, ...]
    wallets: tuple[Row, ...]
    log: tuple[Row, ...]


def database_url(url: str | sa.URL) -> sa.URL:
    """The legacy database on the same server as this one."""
    return sa.make_url(url).set(database=DATABASE)


def figures(url: str | sa.URL) -> list[Fault]:
    """What the old monitoring queries say, read-only; empty where there is no legacy database.

    `url` is any database of the same server, as the service or the owner.
    """
    named = statements("legacy", "demo")
    with connected(url) as connection:
        if not first(connection, named["beside"], {"name": DATABASE})["beside"]:
            return []
    with connected(database_url(url), options="-c default_transaction_read_only=on") as connection:
        return [Fault(**row) for row in connection.execute(named["figures"]).fetchall()]


def create(owner_url: str, known: list[Old]) -> None:
    """Make the legacy database on the bundled server, once. Needs its trusted logins."""
    from tokenlib import embedded, migrations

    server = sa.make_url(owner_url).set(username=embedded.SUPERUSER, database="postgres")
    migrations.create_database(server.render_as_string(hide_password=False), DATABASE)
    named = statements("legacy", "demo")
    with connected(database_url(owner_url)) as connection, connection.transaction():
        if first(connection, named["made"])["made"]:
            return
        connection.execute(named["tables"])
        _insert(connection, known)
        for old in known:
            connection.cursor().executemany(named["wallet"], old.wallets)


def adopt(connection: Owner, known: list[Old]) -> None:
    """Take the organizations into the books, inside the caller's transaction.

    Their usable balance is kept; our constraints refuse the rest of a faulty row, so it comes with
    sums that close, and what it was goes to the findings.
    """
    named = statements("legacy", "demo")
    _insert(connection, known)
    for old in known:
        for wallet in old.wallets:
            connection.execute(named["adopted_wallet"], wallet)
            found = {key: wallet[key] for key in ("balance", "total_allocated", "total_used")}
            connection.execute(named["adopt"], {**wallet, "found": Jsonb(found)})


def organizations(seed: int, now: int, terms: Terms, start: int) -> list[Old]:
    """The old organizations, numbered from `start`; the same for the same seed and now."""
    faults = ("emergency", "raised", "unlogged", "departed")
    return [
        _old(chance("legacy", seed, fault), fault, now, terms, start + place)
        for place, fault in enumerate(faults)
    ]


def _insert(connection: Owner, known: list[Old]) -> None:
    named = statements("legacy", "demo")
    cursor = connection.cursor()
    for old in known:
        cursor.execute(named["organization"], {"id": old.id, "name": old.name, "plan": "pro"})
        for person in old.members:
            row = {"id": person.id, "organization_id": old.id, "role": person.role}
            cursor.execute(named["member"], {**row, "name": person.name, "email": person.email})
        cursor.executemany(named["entry"], old.log)


def _old(random: Random, fault: str, now: int, terms: Terms, number: int) -> Old:
    organization_id = fixed_id(f"organization legacy {fault}")
    everybody = [
        member(random, fixed_id(f"user legacy {fault} {place}"), number, place)
        for place in range(1, MEMBERS + 3)
    ]
    members = tuple(everybody[:MEMBERS])
    departed = tuple(person.id for person in everybody[MEMBERS:])
    users = [person.id for person in members]
    if fault == "departed":
        users += departed
    refresh_at = now + random.randrange(5 * DAY, 25 * DAY)
    wallets, log = [], []
    for token_type in terms.token_types:
        allowance = terms.allowances.get(("pro", token_type))
        if not allowance:
            continue
        entries = list(
            _entries(random, organization_id, users, token_type, allowance, now, refresh_at, terms)
        )
        log += entries
        begun = moment(refresh_at - PERIOD)
        used = sum(e["tokens_deducted"] for e in entries if e["created_at"] >= begun)
        wallet = {
            "id": UUID(draw_id(random)),
            "organization_id": organization_id,
            "plan": "pro",
            "token_type": token_type,
            "balance": allowance - used,
            "total_allocated": allowance,
            "total_used": used,
            "refresh_date": moment(refresh_at),
            "created_at": moment(now - _LIFE),
            "last_used_at": max((e["created_at"] for e in entries), default=None),
        }
        wallets.append(_faulty(wallet, fault))
    return Old(organization_id, name(number), members, departed, tuple(wallets), tuple(log))


def _faulty(wallet: Row, fault: str) -> Row:
    match fault, wallet["token_type"]:
        case "emergency", "goal_generation":
            return {**wallet, "balance": 9999}
        case "raised", "lead_generation":
            return {**wallet, "balance": wallet["total_allocated"] + 75}
        case "unlogged", "strategy_analysis":
            # Charges that were logged and never counted.
            used = wallet["total_used"] // 2
            return {**wallet, "total_used": used, "balance": wallet["total_allocated"] - used}
    return wallet


def _entries(
    random: Random,
    organization_id: UUID,
    users: list[UUID],
    token_type: str,
    allowance: int,
    now: int,
    refresh_at: int,
    terms: Terms,
) -> Iterator[Row]:
    """Charges of one wallet, within its allowance in every period."""
    features = [f for f in terms.features.values() if f.token_type == token_type]
    left: dict[int, int] = {}
    count = allowance * _LIFE // PERIOD // (2 * max(feature.cost for feature in features))
    for at in sorted(random.randrange(now - _LIFE, now - HOUR) for _ in range(count)):
        feature = random.choice(features)
        period = (at - refresh_at) // PERIOD
        balance = left.setdefault(period, allowance) - feature.cost
        if balance < 0:
            continue
        left[period] = balance
        yield {
            "id": UUID(draw_id(random)),
            "organization_id": organization_id,
            "user_id": random.choice(users),
            "token_type": token_type,
            "feature_used": feature.feature,
            "tokens_deducted": feature.cost,
            "remaining_balance": balance,
            "created_at": moment(at),
        }
