"""A PgBouncer in transaction mode before the test server, as Debian packages it."""

from __future__ import annotations

import configparser
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo

from tokenlib.cluster import PORT as SERVER_PORT
from tokenlib.embedded import Embedded

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
PORT = "6432"
ROLES = ("postgres", "tokenlib_owner", "tokenlib_service")


@dataclass
class PgBouncer:
    """One process that listens on a socket in a folder of its own."""

    program: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / f".s.PGSQL.{PORT}"

    def url(self, url: str) -> str:
        """The same database by way of here."""
        here = sa.make_url(url).update_query_dict({"host": str(self.folder), "port": PORT})
        return here.render_as_string(hide_password=False)

    def conninfo(self, database: str, role: str = "tokenlib_service") -> str:
        """The same for psycopg alone."""
        return make_conninfo(host=str(self.folder), port=PORT, dbname=database, user=role)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        words = [self.program, "--quiet", str(self.folder / "pgbouncer.ini")]
        owner = self.folder.stat().st_uid
        if os.geteuid() == 0:  # which it refuses to be
            words.insert(1, f"--user={pwd.getpwuid(owner).pw_name}")
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        give_up_at = time.monotonic() + 30
        while not self._listens():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < give_up_at, self.log()
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)

    def log(self) -> str:
        """What it has said."""
        path = self.folder / "pgbouncer.log"
        return path.read_text() if path.exists() else "It has said nothing."

    def _listens(self) -> bool:
        try:
            psycopg.connect(self.conninfo("pgbouncer", "postgres"), autocommit=True).close()
        except psycopg.OperationalError:
            return False
        return True


def program() -> str:
    """The program; without it a test is skipped, and fails where nothing may be skipped."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("there is no pgbouncer: on Debian, apt install pgbouncer")
    return found


def documented() -> dict[str, str]:
    """The settings that the page about deploying tells operators to make."""
    [block] = re.findall(r"^```ini\n(.+?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    page = configparser.ConfigParser()
    page.read_string(block)
    return dict(page["pgbouncer"])


@contextmanager
def running(
    server: Embedded, *, behind: Path | None = None, **settings: object
) -> Iterator[PgBouncer]:
    """Before a server, with settings besides; or before what listens for it in another folder."""
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    words = {
        **documented(),
        "listen_addr": "",
        "listen_port": PORT,
        "unix_socket_dir": folder,
        "auth_type": "trust",
        "auth_file": folder / "users.txt",
        "admin_users": "postgres",
        "logfile": folder / "pgbouncer.log",
        **settings,
    }
    sockets = server.data_dir / "run"
    lines = ["[databases]", f"* = host={behind or sockets} port={SERVER_PORT}", "[pgbouncer]"]
    lines += [f"{name} = {value}" for name, value in words.items()]
    (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
    (folder / "users.txt").write_text("".join(f'"{role}" ""\n' for role in ROLES))
    if os.geteuid() == 0:
        # It refuses to be root; the server's own user may pass into the folder of its socket.
        owner = sockets.stat()
        for path in (folder, *folder.iterdir(), *((behind, *behind.iterdir()) if behind else ())):
            os.chown(path, owner.st_uid, owner.st_gid)
    pgbouncer = PgBouncer(program(), folder)
    try:
        pgbouncer.start()
        yield pgbouncer
    finally:
        pgbouncer.kill()
        shutil.rmtree(folder)
