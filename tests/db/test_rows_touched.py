"""Rows that a call reads, counted: few, whatever an organization has behind it.

Statements are planned when all organizations are small, as they are at first, and asked again when
one has grown: a look-up by what an organization has, where one by a key was meant, then shows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row

from tokenlib import Tokens, batches
from tokenlib.db import statements
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]
FEATURE = "generate_insight"
SMALL, MEMBERS, CHARGES, BATCH = 300, 1_000, 2_000, 50
MOST = 150
"""Rows that a call may read; each of what has grown is far more."""
PREPARED = 8
READ = """
select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) as rows
from pg_stat_xact_user_tables
"""


def asked(person: Person, **more: Any) -> dict[str, Any]:
    base = {"organization_id": person[0], "user_id": person[1], "feature": FEATURE, "units": 1}
    base |= {"metadata": None, "key": str(uuid4()), "limits": True, "mode": None, "actor": "a test"}
    return base | {"hold_for": None, "id": uuid4(), "reason": "a test", "output_units": 7} | more


def many(people: list[Person]) -> dict[str, Any]:
    ids = batches.new_ids(len(people))
    return batches.lists([asked(person) for person in people], ids, wait=False)


class Verbs:
    """Every verb of the gate, on a connection that keeps its plans."""

    def __init__(self, database: TestDatabase, held: ExitStack) -> None:
        conninfo = database.server.conninfo(database.name, "tokenlib_service")
        self.connection = held.enter_context(
            psycopg.connect(conninfo, autocommit=True, row_factory=dict_row)
        )

    def ask(self, name: str, **params: Any) -> dict[str, Any]:
        cursor = self.connection.execute(statements("gate")[name], params, prepare=True)
        return cursor.fetchall()[0]

    def rows(self) -> int:
        """How many were read in this transaction."""
        return int(self.connection.execute(READ).fetchall()[0]["rows"])

    def each(self, person: Person) -> dict[str, int]:
        """Ask everything once; how many rows each read."""
        read = {}

        def read_by(what: str, name: str, **params: Any) -> dict[str, Any]:
            with self.connection.transaction():
                before = self.rows()
                answer = self.ask(name, **params)
                read[what] = self.rows() - before
            assert answer.get("status", "ok") == "ok", (what, answer)
            return answer

        once = asked(person)
        read_by("can_use", "can_use", **once)
        charged = read_by("deduct", "deduct", **once)
        read_by("deduct again", "deduct", **once)
        read_by("deduct_many", "deduct_many", **many([person] * 3))
        held = read_by("reserve", "reserve", **asked(person))
        read_by("deduct_reservation", "deduct_reservation", **once, reservation_id=held["id"])
        held = read_by("reserve", "reserve", **asked(person))
        read_by("release", "release", **once, reservation_id=held["id"])
        read_by("refund", "refund", **asked(person), usage_id=charged["id"])
        return read


def grow(root: psycopg.Connection, tokens: Tokens, verbs: Verbs, person: Person) -> None:
    """Give an organization members, charges, live holds and refusals, past what is known of it."""
    root.execute(
        "insert into user_profiles (organization_id) select %s from generate_series(1, %s)",
        (person[0], MEMBERS),
    )
    for token_type in ("general", "goal_generation"):
        tokens.grant(person[0], token_type, 1_000_000, kind="gift", source="a test")
    for _ in range(CHARGES // BATCH):
        verbs.ask("deduct_many", **many([person] * BATCH))
    for _ in range(MEMBERS):  # not of the wallet of the refund, which looks at all of its holds
        verbs.ask("reserve", **asked(person, feature="generate_goal"))
    root.execute(
        "insert into ai_token_refusals (organization_id, user_id, feature, rule, minute, first_at,"
        " last_at) select %s, %s, %s, 'insufficient_tokens', at, at, at from generate_series("
        " now() - %s * interval '1 minute', now(), '1 minute') as at",
        (*person, FEATURE, MEMBERS),
    )


def test_a_call_reads_few_rows_of_an_organization_that_has_grown(
    tokens: Tokens,
    token_database: TestDatabase,
    pro: Person,
    join: Callable[[str], Person],
) -> None:
    with ExitStack() as held:
        root = held.enter_context(token_database.connect("postgres"))
        root.execute(
            "update ai_token_limits set requests_per_minute = 1000000,"
            " tokens_per_request = 1000000, seconds_between_requests = null"
        )
        before = Verbs(token_database, held)
        small = [join("enterprise") for _ in range(SMALL)]
        for person in small:
            before.each(person)
        root.execute("analyze")
        for person in small[:PREPARED]:
            before.each(person)
        grow(root, tokens, before, pro)
        since = Verbs(token_database, held)
        for person in small[:PREPARED]:
            since.each(person)
        for verbs in (before, since):
            assert not {name: rows for name, rows in verbs.each(pro).items() if rows > MOST}
