"""Faults under load, each with a control: the same fault and a way to be wrong, which the checker
must catch. `make test-faults` prints what happened."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest

from tests.faults.checker import Findings
from tests.faults.conftest import Table
from tests.faults.proxy import Proxy
from tests.faults.world import NOT_BOOKED, Server, World, folder, is_root, prepare, wait_for
from tokenlib import embedded
from tokenlib.testing import TestDatabase

# Charges are let through that the books do not have: what a gate does that fails open.
FAILS_OPEN: dict[str, Any] = {"override": "off"}
NEW_KEYS: dict[str, Any] = {"new_keys": True}

PRLIMIT = shutil.which("prlimit")

pytestmark = pytest.mark.timeout(150)


def clean(findings: Findings) -> None:
    """Nothing lost, nothing twice, the books close; and the load was one."""
    assert findings.problems == []
    assert findings.told["ok"] > 100
    assert findings.replays > 0


# PostgreSQL is killed ----------------------------------------------------------------------------


def kill_again_and_again(world: World, times: int) -> list[float]:
    """SIGKILL to every process of the server as answers are coming in; how long each start took."""
    chance = random.Random("kill")  # noqa: S311
    took = []
    for _ in range(times):
        world.wait_for_acks(30)
        time.sleep(chance.uniform(0, 0.3))
        world.server.kill()
        took.append(world.server.start())
    world.wait_for_acks(30)
    return took


def test_a_killed_server_loses_nothing(world: World, table: Table) -> None:
    with world.load() as clients:
        took = kill_again_and_again(world, 12)
        clients[0].kill()  # a client too, with holds and with calls under way
    findings = world.check()
    table.add("SIGKILL of the server, and of a client", len(took), findings, seconds_to_start=took)
    clean(findings)


def test_control_a_server_that_confirms_before_it_has_written(world: World, table: Table) -> None:
    world.query(f'alter database "{world.database.name}" set synchronous_commit = off', "postgres")
    world.query("alter system set wal_writer_delay = '10s'", "postgres")
    world.query("select pg_reload_conf()", "postgres")
    try:
        with world.load():
            took = kill_again_and_again(world, 3)
    finally:
        world.query("alter system reset wal_writer_delay", "postgres")
        world.query("select pg_reload_conf()", "postgres")
    findings = world.check()
    table.add("control: SIGKILL, synchronous_commit off", len(took), findings)
    assert findings.kinds["lost"] > 0


# Connections are cut -----------------------------------------------------------------------------


@contextmanager
def cutting(world: World) -> Iterator[Proxy]:
    """A way to the server that loses one reply in eight, and one request in twenty."""
    chance = random.Random("cut")  # noqa: S311
    with Proxy(world.server.socket) as proxy:
        proxy.drop = lambda _request: chance.random() < 1 / 8
        proxy.cut = lambda _request: chance.random() < 1 / 20
        yield proxy


@pytest.mark.parametrize("control", [False, True])
def test_a_reply_lost_after_the_commit(world: World, table: Table, control: bool) -> None:
    with cutting(world) as proxy:
        with world.load(url=proxy.url(world.url()), **(NEW_KEYS if control else {})):
            wait_for(lambda: proxy.broken > 150)
            proxy.drop = proxy.cut = lambda _request: False
        broken = proxy.broken
    findings = world.check()
    if control:
        table.add("control: replies lost, a new key per retry", broken, findings)
        assert findings.kinds["booked twice"] > 0
    else:
        table.add("connections cut, most after the commit", broken, findings)
        clean(findings)


@pytest.mark.parametrize("control", [False, True])
def test_a_server_that_stands_still(world: World, table: Table, control: bool) -> None:
    """SIGSTOP: it is there and says nothing, and then goes on with what it had in hand."""
    times = 3
    with world.load(threads=6, deadline=0.5, **(NEW_KEYS if control else {})):
        for _ in range(times):
            world.wait_for_acks(30)
            world.server.signal(signal.SIGSTOP)
            try:
                time.sleep(2.5)
            finally:
                world.server.signal(signal.SIGCONT)
        world.wait_for_acks(30)
    findings = world.check()
    if control:
        table.add("control: SIGSTOP, a new key per retry", times, findings)
        assert findings.kinds["booked twice"] > 0
    else:
        table.add("SIGSTOP of the server", times, findings)
        assert findings.told["unknown"] > 0
        clean(findings)


# Somebody stands in the way ----------------------------------------------------------------------


@pytest.mark.parametrize("control", [False, True])
def test_a_lock_holder_that_hangs(world: World, table: Table, control: bool) -> None:
    organization, _ = world.people[0]
    times = 2
    with world.load(deadline=1.0, **(FAILS_OPEN if control else {})):
        for _ in range(times):
            world.wait_for_acks(30)
            with world.database.connect() as holder, holder.transaction():
                holder.execute(
                    "select from ai_tokens where organization_id = %s for update", (organization,)
                )
                time.sleep(2.5)
                # Nobody else waits for it: the other organizations are served.
                world.wait_for_acks(10)
        world.wait_for_acks(30)
    findings = world.check()
    if control:
        table.add("control: a lock holder, and a gate that fails open", times, findings)
        assert findings.kinds["lost"] > 0
    else:
        table.add("a lock holder hangs", times, findings)
        assert findings.told["not_charged"] > 0
        assert any("busy" in why for why in findings.whys)
        assert findings.longest < 20  # seconds; a deadline of 1, on a machine that may be slow
        clean(findings)


@pytest.mark.parametrize("control", [False, True])
def test_a_pool_that_runs_dry(world: World, table: Table, control: bool) -> None:
    """Two connections, six who charge, and two who sit on a connection."""
    how: dict[str, Any] = {"pool_size": 1, "threads": 6, "hogs": 2, "deadline": 1.0}
    with world.load(**how, **(FAILS_OPEN if control else {})):
        world.wait_for_acks(150)
        world.wait_for_more(NOT_BOOKED if control else b"connection is busy")
    findings = world.check()
    if control:
        table.add("control: a dry pool, and a gate that fails open", 1, findings)
        assert findings.kinds["lost"] > 0
    else:
        table.add("the pool runs dry", 1, findings)
        assert findings.told["not_charged"] > 0
        clean(findings)


# Writes fail -------------------------------------------------------------------------------------


class Disk(Protocol):
    """A disk that can be full, and room again."""

    folder: Path
    says: str  # what somebody is then told

    def fill(self, server: Server) -> None: ...
    def free(self, server: Server) -> None: ...


class MemoryDisk:
    """A small tmpfs. What is full is full for tables and for the log of the server."""

    says = "No space left on device"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, server: Server) -> None:
        with (self.folder / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while ballast.write(bytes(1 << 20)):
                pass

    def free(self, server: Server) -> None:
        (self.folder / "ballast").unlink()


class ShortFiles:
    """A limit to the size of the server's files, at which even its write-ahead log fails."""

    says = "server closed the connection"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, server: Server) -> None:
        owner = (server.embedded.data_dir / "pgdata").stat()
        done = [
            # As the server's user, since not every root may limit other people's processes.
            subprocess.run(
                [PRLIMIT or "", "--pid", str(process.pid), "--fsize=65536:"],
                user=owner.st_uid if is_root() else None,
                group=owner.st_gid if is_root() else None,
                extra_groups=[] if is_root() else None,
                capture_output=True,
                timeout=30,
                check=False,
            )
            for process in server.processes()
        ]
        assert done[0].returncode == 0  # the postmaster; others may be gone by then

    def free(self, server: Server) -> None:
        # It has crashed and cannot recover; what is left of it may stay so.
        server.kill()


@contextmanager
def disk(kind: str) -> Iterator[Disk]:
    with folder() as outer:
        if kind == "file size limit":
            if PRLIMIT is None:
                pytest.skip("there is no prlimit")
            yield ShortFiles(outer)
            return
        mount = outer / "disk"
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=256m,mode=711", "none", str(mount)]
        command_to_end = ["umount", "--lazy", str(mount)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        except OSError as error:
            pytest.skip(f"no mount: {error}")
        if done.returncode != 0:
            pytest.skip(f"no tmpfs may be mounted here: {done.stderr.decode().strip()}")
        try:
            yield MemoryDisk(mount)
        finally:
            subprocess.run(command_to_end, timeout=30, check=True)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("kind", ["tmpfs", "file size limit"])
def test_a_disk_that_is_full(
    make_world: Callable[[Server], World], table: Table, kind: str, control: bool
) -> None:
    times = 1 if control else 2
    with disk(kind) as full, embedded.running(full.folder / "data") as started:
        server = prepare(started)
        world = make_world(server)
        with world.load(deadline=1.0, **(FAILS_OPEN if control else {})):
            for _ in range(times):
                world.wait_for_acks(30)
                full.fill(server)
                world.wait_for_more(NOT_BOOKED if control else b"did not answer", 10)
                full.free(server)
                server.start()
            world.wait_for_acks(30)
        findings = world.check()
    if control:
        table.add(f"control: {kind} reached, and a gate that fails open", times, findings)
        assert findings.kinds["lost"] > 0
    else:
        table.add(f"the disk is full: {kind}", times, findings)
        assert any(full.says in why for why in findings.whys), findings.whys
        clean(findings)


def test_a_server_stops_on_a_full_disk_and_starts_again() -> None:
    with disk("tmpfs") as full:
        data = full.folder / "data"
        with embedded.running(data) as started:
            server = Server(started)
            with TestDatabase(started, "postgres").connect("postgres") as connection:
                connection.execute("create table kept (id int)")
                full.fill(server)
                with pytest.raises(psycopg.errors.DiskFull):
                    connection.execute("insert into kept select generate_series(1, 10000000)")
        assert server.processes() == []
        full.free(server)
        with embedded.running(data), TestDatabase(started, "postgres").connect("postgres") as again:
            assert again.execute("select count(*) from kept").fetchone() == (0,)
