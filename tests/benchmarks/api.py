"""Charges over HTTP beside an endpoint that does nothing, in the same server, 32 connections.

Both ways to charge: the old endpoint with a member's JWT, and today's with an API key and a key for
each charge; on one wallet and on a thousand; with one process and with two.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import jwt
import psycopg

from tests.api.callers import PEPPER, SECRET, claims
from tests.benchmarks import machine
from tests.benchmarks.api_server import NOTHING
from tests.benchmarks.http_load import Load, request
from tests.benchmarks.measure import Side, Target, ratio, table, take_turns
from tests.benchmarks.server import served
from tests.benchmarks.wallets import FEATURE, World, prepare
from tokenlib import connect
from tokenlib.config import Settings
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.tokens import EMBEDDED_DATABASE, Tokens

CONNECTIONS = 32
WORKERS = (1, 2)
LEAST = 0.6
VALID_SECONDS = 3600
Requests = list[tuple[bytes, bytes]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said about this part."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds-per-round", type=float, default=2.0)
    parser.add_argument("--workers", type=int, choices=WORKERS, help="only with so many")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; the figures, with the targets under `targets`."""
    targets: list[Target] = []
    scenarios: dict[str, Any] = {}
    with ExitStack() as held:
        folder = held.enter_context(machine.folder())
        tokens = held.enter_context(
            connect(settings=Settings(data_dir=folder / "data", key_pepper=PEPPER))
        )
        conninfo = Embedded(folder / "data").conninfo(EMBEDDED_DATABASE, SUPERUSER)
        owner = held.enter_context(psycopg.connect(conninfo, autocommit=True))
        world = prepare(owner)
        for organization in world.organizations:
            tokens.initialize_tokens(organization)
        owner.execute("vacuum analyze")
        about = machine.about(folder, owner)
        print(machine.lines(about))
        requests = requests_of(world, key_for_all(tokens, owner))
        charged = 0
        best: dict[int, dict[str, Side]] = {}
        for workers in [options.workers] if options.workers else WORKERS:
            owner.execute("checkpoint")
            with ExitStack() as serving:
                command = ["-m", "tests.benchmarks.api_server", "{port}", str(workers)]
                server = serving.enter_context(served(folder, command))
                load = Load(server.port, CONNECTIONS, serving)
                sides = {
                    name: Side(name, partial(load.turn, some)) for name, some in requests.items()
                }
                take_turns(list(sides.values()), options.rounds, options.seconds_per_round)
            title = f"{workers} process{'es' if workers > 1 else ''}, {CONNECTIONS} connections"
            scenarios[title] = {name: side.figures() for name, side in sides.items()}
            best[workers] = sides
            print(table(title, sides, "nothing"))
            for name, side in sides.items():
                if name != "nothing":
                    charged += side.calls
                    what = f"{name}, {title.partition(',')[0]}"
                    targets.append(Target(what, ratio(sides, name, "nothing"), least=LEAST))
                    print(targets[-1].line())
            print()
        scaling = {
            name: best[2][name].median("rate") / best[1][name].median("rate")
            for name in (requests if len(best) > 1 else ())
        }
        for name, gain in scaling.items():
            print(f"  {name + ', two processes to one':56}{gain:>10.2f}")
        [[logged]] = owner.execute("select count(*) from ai_token_usage_log").fetchall()
        targets.append(Target("charges that log and answers differ by", logged - charged, most=0))
        problems = len(tokens.verify().problems)
        targets.append(Target("problems that verify found", problems, most=0))
        for target in targets[-2:]:
            print(target.line())
    return {
        **about,
        "scenarios": scenarios,
        "two_processes_to_one": scaling,
        "targets": [target.figures() for target in targets],
    }


def key_for_all(tokens: Tokens, owner: psycopg.Connection[Any]) -> str:
    """The secret of an API key that may charge for everybody."""
    admin = uuid4()
    owner.execute(
        "insert into tokenlib_staff (user_id, email, full_name, role)"
        " values (%s, %s, 'An admin', 'admin')",
        (admin, f"{admin}@example.org"),
    )
    made = tokens.staff_create_key(admin, "bench", ["spend"], reason="measured")
    return str(made.secret)


def requests_of(world: World, secret: str) -> dict[str, Requests]:
    """What is sent, by what it is called."""
    key = {"Authorization": f"Bearer {secret}"}
    busy = [(world.busy, member) for member in world.members]
    nothing = request(f"/api{NOTHING}", key, _charge(busy[0][1]))
    return {
        "nothing": [nothing],
        "charges, one wallet": [_today(*who, key) for who in busy],
        "charges, 1,000 wallets": [_today(*who, key) for who in world.spread],
        "check-balance, one wallet": [_old(*who) for who in busy],
        "check-balance, 1,000 wallets": [_old(*who) for who in world.spread],
    }


def _charge(user: UUID) -> bytes:
    return json.dumps({"userId": str(user), "feature": FEATURE}).encode()


def _today(organization: UUID, user: UUID, key: dict[str, str]) -> tuple[bytes, bytes]:
    return request(f"/api/v1/organizations/{organization}/charges", key, _charge(user))


def _old(organization: UUID, user: UUID) -> tuple[bytes, bytes]:
    said = claims(sub=str(user), exp=int(time.time()) + VALID_SECONDS)
    body = {"organizationId": str(organization), "featureUsed": FEATURE, "action": "deduct"}
    signed = {"Authorization": f"Bearer {jwt.encode(said, SECRET, 'HS256')}"}
    return request("/api/v1/tokens/check-balance", signed, json.dumps(body).encode())
