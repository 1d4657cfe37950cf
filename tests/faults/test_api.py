"""The same over HTTP: a Python and a JavaScript program spend while the API is killed and replies
are lost. The control takes a new key for each attempt, and is found out."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from playwright._impl._driver import compute_driver_executable

from tests.api.callers import PEPPER
from tests.api.flaky import CUT, DROP, PASS, Flaky, flaky
from tests.faults.conftest import Table
from tests.faults.test_faults import NEW_KEYS, clean
from tests.faults.world import ROOT, World, wait_for
from tokenlib import Client, DatabaseUnavailable, Tokens
from tokenlib.db import Database

KILLS = 3

pytestmark = pytest.mark.timeout(150)


class Api:
    """`tokenlib serve --api-only` in a process of its own."""

    def __init__(self, world: World) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.environment = os.environ | {
            "TOKENLIB_DATABASE_URL": world.url(),
            "TOKENLIB_KEY_PEPPER": PEPPER,
        }
        self.log = world.folder / "api.log"
        self.key = _key(world)
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it and wait until it answers."""
        command = ["-m", "tokenlib", "serve", "--api-only", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.answers)
        return self.process

    def answers(self) -> bool:
        """Whether it serves."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            with Client(f"http://127.0.0.1:{self.port}", self.key, deadline=0.2) as client:
                client.catalog()
        except DatabaseUnavailable:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL, as answers are on their way."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _key(world: World) -> str:
    admin = uuid4()
    with world.database.connect() as owner:
        owner.execute(
            "insert into tokenlib_staff (user_id, email, full_name, role)"
            " values (%s, 'admin@example.org', 'An admin', 'admin')",
            (admin,),
        )
    with Tokens(Database(world.url()), pepper=PEPPER) as tokens:
        made = tokens.staff_create_key(admin, "load", ["spend", "read", "admin"], reason="a load")
    return str(made.secret)


@contextmanager
def served(world: World) -> Iterator[tuple[Api, Flaky]]:
    """The API, and a way to it that loses one reply in eight and one request in twenty."""
    chance = random.Random("flaky")  # noqa: S311
    api = Api(world)
    try:
        with flaky(api.port) as way:
            way.rule = lambda _asked: chance.choices((DROP, CUT, PASS), (12, 5, 83))[0]
            yield api, way
    finally:
        api.kill()


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("language", ["Python", "JavaScript"])
def test_the_api_is_killed_and_replies_are_lost(
    world: World, table: Table, language: str, control: bool
) -> None:
    node = str(compute_driver_executable()[0]) if language == "JavaScript" else None
    with served(world) as (api, way):
        how: dict[str, Any] = {"url": way.url, "api_key": api.key, "node": node, "deadline": 10.0}
        with world.load(**how, **(NEW_KEYS if control else {})) as clients:
            for _ in range(0 if control else KILLS):
                world.wait_for_acks(40)
                time.sleep(random.uniform(0, 0.2))  # noqa: S311
                api.kill()
                api.start()
            wait_for(lambda: way.broken > 40)
            way.rule = lambda _asked: PASS
            world.wait_for_acks(40)
            if not control:
                clients[0].kill()  # with holds and calls under way
        broken = way.broken
    findings = world.check()
    name = f"HTTP API, {language}"
    if control:
        table.add(f"control: {name}, a new key per retry", broken, findings)
        assert findings.kinds["booked twice"] > 0
    else:
        table.add(f"{name}: SIGKILL of the API and of a client, replies lost", broken, findings)
        clean(findings)
