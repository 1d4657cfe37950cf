"""The bundled PostgreSQL, shared by any number of processes that name the same data folder.

Two files in the folder say who is there, as locks that the kernel drops with the process:

    lock    held while somebody starts or stops the server
    users   every user of the server holds a shared lock; who can get it alone is the last one

The rest of the folder is :mod:`tokenlib.cluster`'s. The server listens on a socket in the folder
and nowhere else. Linux and macOS only.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import quote

from psycopg.conninfo import make_conninfo

from tokenlib.cluster import PORT, SUPERUSER, Cluster
from tokenlib.errors import ConfigurationError

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("tokenlib")

_MEMORY_BYTES = 2 * 1024**3

__all__ = [
    "SUPERUSER",
    "Embedded",
    "memory_folder",
    "revive",
    "running",
    "start",
    "stop",
    "temporary",
]


@dataclass(frozen=True)
class Embedded:
    """A server that answers, and how to reach it. Its superuser is SUPERUSER; no role needs a
    password."""

    data_dir: Path

    def url(self, database: str, role: str) -> str:
        """The SQLAlchemy URL of one database as one role."""
        host = quote(str(self.data_dir / "run"))
        return f"postgresql+psycopg://{quote(role)}@/{quote(database)}?host={host}&port={PORT}"

    def conninfo(self, database: str, role: str) -> str:
        """The same for psycopg alone: `psycopg.connect(conninfo)`."""
        host = str(self.data_dir / "run")
        return make_conninfo(host=host, port=PORT, dbname=database, user=role)


def start(data_dir: Path) -> Embedded:
    """Make sure that the server of this folder runs: attach to it, or repair, create, start it.

    It then runs until :func:`stop`, or until the last :func:`running` leaves. Raises
    ConfigurationError (folder, version, missing wheel) or DatabaseUnavailable (it does not come
    up, with the end of its log).
    """
    cluster = _prepared(data_dir)
    with _alone(cluster):
        cluster.ensure_running()
    return Embedded(cluster.data_dir)


def revive(data_dir: Path) -> None:
    """Start the server of this folder again if it has died. For those who use it: see `running`.

    A folder without a database stays without one. Raises as :func:`start` does.
    """
    if not (data_dir / "pgdata").exists():
        return
    cluster = _prepared(data_dir)
    with _alone(cluster):
        if cluster.ensure_running():
            log.warning("The bundled PostgreSQL had died and was started again.")


def stop(data_dir: Path) -> None:
    """Stop the server of this folder, whoever uses it; do nothing when there is none."""
    if (data_dir / "pgdata").exists():
        cluster = _prepared(data_dir)
        with _alone(cluster):
            cluster.ensure_stopped()


@contextmanager
def running(data_dir: Path, programs: Path | None = None) -> Iterator[Embedded]:
    """Use the server of this folder; the last user to leave stops it, whoever started it.

    A user that is killed counts as gone. In the main thread SIGTERM and SIGHUP, unless somebody
    handles them, unwind the block as SIGINT does (exit code 128 + signal). Raises as
    :func:`start` does. `programs` is the folder of another PostgreSQL's, for tests.
    """
    cluster = _prepared(data_dir, programs)
    with _signals_unwind():
        users = _open(cluster.data_dir / "users")
        joined = False
        try:
            with _alone(cluster):
                fcntl.flock(users, fcntl.LOCK_SH)
                cluster.ensure_running()
                joined = True
            yield Embedded(cluster.data_dir)
        finally:
            if joined:
                with _alone(cluster), suppress(BlockingIOError):
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    cluster.ensure_stopped()
            _close(users)


@contextmanager
def temporary(programs: Path | None = None) -> Iterator[Embedded]:
    """A server in a new temporary folder; afterwards both are gone. For tests.

    It is the bundled one, or that of another PostgreSQL's folder of programs.

    The folder lies in memory where the system offers that: a database for each test is then made in
    hundredths of a second.
    """
    folder = Path(tempfile.mkdtemp(prefix="tokenlib-", dir=memory_folder()))
    try:
        folder.chmod(0o711)  # when root runs, the server's user passes through
        with running(folder / "data", programs) as embedded:
            yield embedded
    finally:
        shutil.rmtree(folder)


def memory_folder() -> Path | None:
    """A folder in memory with room for test servers; None where the system has none."""
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a private folder in it
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < _MEMORY_BYTES:
        return None
    return memory


def _prepared(data_dir: Path, programs: Path | None = None) -> Cluster:
    cluster = Cluster(data_dir, programs)
    try:
        if not cluster.data_dir.is_dir():
            cluster.data_dir.mkdir(parents=True)
            # When root runs, the server's user passes through, and nobody looks around.
            cluster.data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)
        _close(_open(cluster.data_dir / "lock"))
    except OSError as error:
        raise ConfigurationError(
            f"The data folder {cluster.data_dir} cannot be used: {error.strerror}."
            " Name another with TOKENLIB_DATA_DIR."
        ) from error
    return cluster


@contextmanager
def _alone(cluster: Cluster) -> Iterator[None]:
    """Undisturbed by other processes and by signals. The wait is short: every step is bounded."""
    with _uninterrupted():
        lock = _open(cluster.data_dir / "lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            _close(lock)


def _open(path: Path) -> int:
    """Open a lock file, creating it for the folder's owner even when root runs."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def _close(descriptor: int) -> None:
    # Unlocked by name: a forked child that inherited the file would otherwise keep the lock.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, where they would just end the process, raise SystemExit."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours = []
    if threading.current_thread() is threading.main_thread():
        candidates = (signal.SIGTERM, signal.SIGHUP)
        ours = [number for number in candidates if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold signals back, and deliver the first of them afterwards."""
    before = {}
    arrived: list[int] = []
    if threading.current_thread() is threading.main_thread():
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = ((number, signal.getsignal(number)) for number in watched)
        # None is a handler that was not set from Python, and could not be put back.
        before = {number: handler for number, handler in handlers if handler is not None}
    for number in before:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
