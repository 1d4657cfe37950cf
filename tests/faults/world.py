"""A server to break, organizations on it, and client processes that put a load on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from uuid import uuid4

import psutil

from tests.faults.checker import Findings, check
from tests.faults.load import Job, write
from tokenlib import Tokens, embedded, migrations
from tokenlib.cluster import PORT
from tokenlib.db import Database
from tokenlib.testing import TestClock, TestDatabase

ROOT = Path(__file__).parents[2]
TEMPLATE = "faults_template"
# No load and no wait goes on for longer, whatever the machine does.
LOAD_SECONDS = 60.0
WAIT_SECONDS = 60.0

ANSWERED = b'"told": "ok"'
NOT_BOOKED = b'"booked": false'

_RICH, _POOR = 4, 1


@dataclass(frozen=True)
class Server:
    """The bundled PostgreSQL, and the signals that a crash is made of."""

    embedded: embedded.Embedded

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.embedded.data_dir / "run" / f".s.PGSQL.{PORT}"

    def processes(self) -> list[psutil.Process]:
        """Those that stand in its data folder, the oldest first: the postmaster."""
        found = []
        pgdata = str((self.embedded.data_dir / "pgdata").resolve())
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # gone meanwhile, a zombie, or another user's
                if process.name() == "postgres" and process.cwd() == pgdata:
                    found.append(process)
        return sorted(found, key=psutil.Process.create_time)

    def signal(self, number: int) -> None:
        """Send a signal to all of them, the postmaster first."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until nothing of it runs."""
        family = self.processes()
        self.signal(signal.SIGKILL)
        wait_for(lambda: not any(map(_runs, family)))

    def start(self) -> float:
        """Start it again; return how many seconds it took to answer."""
        began = time.monotonic()
        embedded.start(self.embedded.data_dir)
        return time.monotonic() - began


@dataclass
class World:
    """A fresh database on a server, and the load on it."""

    server: Server
    database: TestDatabase
    people: list[tuple[str, str]]
    folder: Path

    def url(self) -> str:
        """The gate's URL."""
        return self.database.url()

    def noted(self, word: bytes) -> int:
        """How often clients have noted it until now."""
        return sum(path.read_bytes().count(word) for path in self.folder.glob("*.jsonl"))

    def wait_for_more(self, word: bytes, more: int = 1) -> None:
        """Wait until clients have noted it so many times more."""
        goal = self.noted(word) + more
        wait_for(lambda: self.noted(word) >= goal)

    def wait_for_acks(self, more: int) -> None:
        """Wait until so many more calls were answered: the load is on."""
        self.wait_for_more(ANSWERED, more)

    def query(self, statement: str, role: str = "tokenlib_owner") -> list[tuple[object, ...]]:
        """Ask the database itself."""
        with self.database.connect(role) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def job(self, **how: object) -> Job:
        """What a client process does unless told otherwise."""
        job = Job(
            url=self.url(),
            acks=str(self.folder),
            name="client",
            people=self.people,
            stop=str(self.folder / "stop"),
            seconds=LOAD_SECONDS,
        )
        return replace(job, **how)  # type: ignore[arg-type]

    def check(self) -> Findings:
        """Hold what was told against the books."""
        with Tokens(Database(self.url())) as tokens, self.database.connect() as owner:
            return check(self.folder, tokens, owner, TestClock(self.database))

    @contextmanager
    def load(self, clients: int = 2, **how: object) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Client processes at work; at the end of the block they are told to come to an end."""
        processes: list[subprocess.Popen[bytes]] = []
        try:
            processes.extend(self.client(f"client-{number}", **how) for number in range(clients))
            yield processes
            (self.folder / "stop").touch()
            for process in processes:
                # A client that a test has killed is no failure; one that fails by itself is.
                assert process.wait(LOAD_SECONDS + WAIT_SECONDS) in (0, -signal.SIGKILL)
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def client(self, name: str, **how: object) -> subprocess.Popen[bytes]:
        """One client process; in JavaScript where `node` names its interpreter."""
        node = how.pop("node", None)
        path = self.folder / f"{name}.json"
        write(self.job(name=name, **how), path)
        command = [sys.executable, "-m", "tests.faults.load"]
        if node is not None:
            command = [str(node), "tests/faults/load.mjs"]
        return subprocess.Popen([*command, str(path)], cwd=ROOT, start_new_session=True)


def prepare(server: embedded.Embedded) -> Server:
    """Roles and a migrated template whose clock can be moved."""
    superuser = server.url("postgres", "postgres")
    migrations.create_roles(superuser)
    migrations.create_database(superuser, TEMPLATE)
    migrations.upgrade(server.url(TEMPLATE, "tokenlib_owner"))
    clock = resources.files("tokenlib").joinpath("sql/test_clock.sql").read_text("utf-8")
    with TestDatabase(server, TEMPLATE).connect() as connection:
        connection.execute(clock.encode())
    return Server(server)


def create(server: Server, folder: Path) -> World:
    """A database with organizations that can pay for a while, and one that soon cannot."""
    database = TestDatabase(server.embedded, f"faults_{uuid4().hex[:12]}")
    with TestDatabase(server.embedded, "postgres").connect("postgres") as connection:
        connection.execute(f'create database "{database.name}" template "{TEMPLATE}"'.encode())
    people = []
    with Tokens(Database(database.url())) as tokens:
        for number in range(_RICH + _POOR):
            organization = tokens.create_organization(f"Load {number}", "pro")
            user = tokens.add_member(organization, "A member", "member@example.org")
            people.append((str(organization), str(user)))
            for token_type in ("goal_generation", "general", "strategy_analysis"):
                if number < _RICH:
                    tokens.upgrade_tokens(organization, token_type, 1_000_000)
    return World(server, database, people, folder)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder through which the server's user may pass."""
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name)


def wait_for(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Wait until it holds; fail when it does not in time."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_root() -> bool:
    """Whether a test may mount and limit what it likes."""
    return os.geteuid() == 0
