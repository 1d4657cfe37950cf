"""Where it was measured: machine, versions, load, disk; and a folder on that disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
import psycopg

SYNCS = 200
BLOCK = b"\0" * 8192
IN_MEMORY = ("tmpfs", "ramfs")
# What each side's charges stand on; the rest is what the wheel and tokenlib set.
SETTINGS = (
    "server_version",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "wal_sync_method",
    "wal_level",
    "commit_delay",
    "shared_buffers",
    "max_wal_size",
)
DURABLE = ("fsync", "full_page_writes", "synchronous_commit")


def home() -> Path:
    """Where the data lie: TOKENLIB_BENCH_DIR, else /var/tmp, which is on a disk everywhere."""
    return Path(os.environ.get("TOKENLIB_BENCH_DIR") or "/var/tmp")  # noqa: S108 - only the parent


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder on a disk; gone afterwards. Ends the benchmark where it would lie in memory."""
    home().mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="tokenlib-bench-", dir=home()))
    try:
        made.chmod(0o711)  # when root runs, the database's user passes through
        if filesystem(made) in IN_MEMORY:
            sys.exit(f"{home()} lies in memory. Name a folder on a disk with TOKENLIB_BENCH_DIR.")
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def filesystem(path: Path) -> str:
    """What the folder lies on."""
    mounts = [
        one for one in psutil.disk_partitions(all=True) if path.is_relative_to(one.mountpoint)
    ]
    return max(mounts, key=lambda one: len(one.mountpoint)).fstype if mounts else "unknown"


def sync_milliseconds(path: Path) -> tuple[float, float]:
    """Median and p99 of writing a page and having it on the disk."""
    taken = []
    with (path / "sync").open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            file.write(BLOCK)
            start = time.perf_counter()
            os.fdatasync(file.fileno()) if hasattr(os, "fdatasync") else os.fsync(file.fileno())
            taken.append((time.perf_counter() - start) * 1000)
    (path / "sync").unlink()
    return median(taken), quantiles(taken, n=100)[98]


def about(path: Path, connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """The machine now. Ends the benchmark when the server could lose what it confirmed."""
    server = {}
    for name in SETTINGS:
        row = connection.execute("select current_setting(%s)", (name,)).fetchone()
        server[name] = row[0] if row else None
    if off := [name for name in DURABLE if server[name] != "on"]:
        sys.exit(f"Not durable: {', '.join(off)}. Nothing measured here would mean anything.")
    usual, slow = sync_milliseconds(path)
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{os.cpu_count()} cores ({_processor()})",
        "memory_gb": round(psutil.virtual_memory().total / 1024**3),
        "system": platform.platform(),
        "load_average": [round(one, 2) for one in os.getloadavg()],
        "filesystem": filesystem(path),
        "fsync_ms": {"median": round(usual, 3), "p99": round(slow, 3)},
        "server": server,
        "python": platform.python_version(),
        **{name: version(name) for name in ("psycopg", "sqlalchemy")},
    }


def lines(found: dict[str, Any]) -> str:
    """The same for people."""
    server, sync = found["server"], found["fsync_ms"]
    said = ", ".join(f"{name} {value}" for name, value in list(server.items())[1:])
    return (
        f"{found['machine']}, {found['memory_gb']} GB, {found['system']}\n"
        f"Python {found['python']}, psycopg {found['psycopg']}, SQLAlchemy {found['sqlalchemy']},"
        f" PostgreSQL {server['server_version']}\n{said}\n"
        f"{found['filesystem']}; a page is on the disk in {sync['median']:.2f} ms,"
        f" p99 {sync['p99']:.2f} ms. Load average {found['load_average'][0]:.2f}.\n"
    )


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        for line in cpus.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
