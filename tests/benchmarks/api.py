"""Charges over HTTP beside an endpoint that does nothing, in the same server, 32 connections.

Both ways to charge: the old endpoint with a member's JWT, and today's with an API key and a key for
each charge; on one wallet and on a thousand; with one process and with two.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jwt
import psycopg

from tests.api.callers import AUDIENCE, ISSUER, PEPPER, SECRET
from tests.benchmarks import machine
from tests.benchmarks.api_server import NOTHING
from tests.benchmarks.http_load import Load, request
from tests.benchmarks.measure import Side, Target, ratio, table, take_turns
from tests.benchmarks.wallets import FEATURE, World, prepare
from tests.serving import ROOT
from tokenlib import connect
from tokenlib.config import Settings
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.tokens import EMBEDDED_DATABASE, Tokens

CONNECTIONS = 32
WORKERS = (1, 2)
LEAST = 0.6
READY_SECONDS = 60.0
STOP_SECONDS = 30.0
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
        requests = _requests(world, _key(tokens, owner))
        charged = 0
        best: dict[int, dict[str, Side]] = {}
        for workers in [options.workers] if options.workers else WORKERS:
            owner.execute("checkpoint")
            with ExitStack() as serving:
                port = serving.enter_context(_served(folder, workers))
                load = Load(port, CONNECTIONS, serving)
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


def _key(tokens: Tokens, owner: psycopg.Connection[Any]) -> str:
    """The secret of an API key that may charge for everybody."""
    admin = uuid4()
    owner.execute(
        "insert into tokenlib_staff (user_id, email, full_name, role)"
        " values (%s, 'admin@example.org', 'An admin', 'admin')",
        (admin,),
    )
    made = tokens.staff_create_key(admin, "bench", ["spend"], reason="measured")
    return str(made.secret)


def _requests(world: World, secret: str) -> dict[str, Requests]:
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
    claims = {
        "sub": str(user),
        "exp": int(time.time()) + VALID_SECONDS,
        "iss": ISSUER,
        "aud": AUDIENCE,
    }
    body = {"organizationId": str(organization), "featureUsed": FEATURE, "action": "deduct"}
    signed = {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}
    return request("/api/v1/tokens/check-balance", signed, json.dumps(body).encode())


@contextmanager
def _served(folder: Path, workers: int) -> Iterator[int]:
    """The server in processes of its own, once it answers; its port. Stopped afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    environment = {name: text for name, text in os.environ.items() if "TOKENLIB_" not in name} | {
        "TOKENLIB_DATA_DIR": str(folder / "data"),
        "TOKENLIB_JWT_SECRET": SECRET,
        "TOKENLIB_JWT_ISSUER": ISSUER,
        "TOKENLIB_JWT_AUDIENCE": AUDIENCE,
        "TOKENLIB_KEY_PEPPER": PEPPER,
    }
    command = [sys.executable, "-m", "tests.benchmarks.api_server", str(port), str(workers)]
    said = folder / "api.log"
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, process_group=0
        )
    try:
        until = time.monotonic() + READY_SECONDS
        while not _ready(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"The API did not start:\n{said.read_text()}")
            time.sleep(0.1)  # between two looks, until the deadline
        yield port
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/api/v1/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
