"""What a Citus costs beside one node: `python -m tests.benchmarks.citus`.

One server, and a coordinator with two workers on the same machine, of the PostgreSQL in
TOKENLIB_TEST_POSTGRES, which has to have Citus. They take turns. Their disk is memory, so no flush
is in the figures; the processor time is that of all servers together. What they say stands in
docs/scale.md.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import psutil

from tests import citus
from tests.benchmarks.measure import Caller, Side, table, take_turns, timed
from tokenlib import embedded, migrations
from tokenlib.db import Database
from tokenlib.reports import Reports
from tokenlib.testing import postgres_programs
from tokenlib.tokens import Tokens

ORGANIZATIONS = 60
CALLERS = 8
FEATURE = "generate_insight"
DAY = timedelta(days=1)
People = Sequence[tuple[UUID, UUID]]

QUESTIONS: dict[str, Callable[[Reports, UUID], object]] = {
    "a page of organizations": lambda r, _one: r.organizations(),
    "organizations by balance": lambda r, _one: r.organizations(sort="balance"),
    "wallets of one": lambda r, one: r.wallets(one),
    "a day of one": lambda r, one: r.usage_by_feature(*_today(), one),
    "a day of all": lambda r, _one: r.usage_by_feature(*_today()),
    "attention": lambda r, _one: r.attention(),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds-per-round", type=float, default=3.0)
    options = parser.parse_args()
    with ExitStack() as held:
        one = held.enter_context(embedded.temporary(postgres_programs()))
        migrations.create_roles(one.url("postgres", embedded.SUPERUSER))
        migrations.create_database(one.url("postgres", embedded.SUPERUSER), citus.TEMPLATE)
        migrations.upgrade(one.url(citus.TEMPLATE, "tokenlib_owner"))
        nodes = held.enter_context(citus.nodes(clock=False))
        gates = {
            name: held.enter_context(
                Tokens(Database(server.url(citus.TEMPLATE, "tokenlib_service"), pool_size=CALLERS))
            )
            for name, server in (("one node", one), ("Citus", nodes[0]))
        }
        people = {name: _people(tokens) for name, tokens in gates.items()}

        def compare(
            title: str, makes: Mapping[str, Sequence[Caller]], of: Iterable[embedded.Embedded]
        ) -> None:
            sides = {name: Side(name, partial(timed, calls)) for name, calls in makes.items()}
            meter = partial(_used, list(of))
            take_turns(list(sides.values()), options.rounds, options.seconds_per_round, meter)
            print(table(title, sides, "one node"), flush=True)

        for callers in (1, CALLERS):
            charging = {
                name: [_charge(tokens, people[name], number) for number in range(callers)]
                for name, tokens in gates.items()
            }
            compare(f"charge with a key, callers: {callers}", charging, [one, *nodes])
        lone = {name: [_charge(tokens, people[name], 0)] for name, tokens in gates.items()}
        compare("the same, of Citus the coordinator", lone, [one, nodes[0]])
        for title, ask in QUESTIONS.items():
            asking = {
                name: [partial(ask, Reports(tokens.database), people[name][0][0])]
                for name, tokens in gates.items()
            }
            compare(title, asking, [one, *nodes])


def _people(tokens: Tokens) -> People:
    made = []
    for number in range(ORGANIZATIONS):
        organization = tokens.create_organization(f"Organization {number}", "enterprise")
        tokens.grant(organization, "general", 1_000_000, kind="gift", source="a benchmark")
        made.append(
            (
                organization,
                tokens.add_member(organization, f"User {number}", f"{number}@example.org"),
            )
        )
    return made


def _charge(tokens: Tokens, people: People, number: int) -> Caller:
    chance = random.Random(number)  # noqa: S311 - which wallet is no secret

    def charge() -> object:
        return tokens.deduct_tokens(*chance.choice(people), FEATURE, idempotency_key=str(uuid4()))

    return charge


def _today() -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    return now - DAY, now


def _used(servers: Sequence[embedded.Embedded]) -> tuple[float, float]:
    """Seconds of processor: of this process, and of the servers with those that have ended."""
    used = 0.0
    for server in servers:
        pid = (server.data_dir / "pgdata" / "postmaster.pid").read_text().split()[0]
        postmaster = psutil.Process(int(pid))
        used += sum(postmaster.cpu_times()[2:4])
        for process in postmaster.children():
            with suppress(psutil.NoSuchProcess):
                used += sum(process.cpu_times()[:2])
    return time.process_time(), used


if __name__ == "__main__":
    main()
