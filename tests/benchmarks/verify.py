"""`tokenlib verify` over many entries: its time, and memory that does not grow with them.

And what a charge takes on the disk, by table and index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.benchmarks import machine
from tests.benchmarks.loaded import environment, loaded
from tests.benchmarks.measure import Target
from tests.serving import ROOT
from tokenlib import connect
from tokenlib.config import Settings
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.tokens import EMBEDDED_DATABASE

SMALL, LARGE = 100_000, 10_000_000
MOST = 1.5
"""How much more memory a hundred times the entries may take."""
LOOK_SECONDS = 0.2
# One charge of the log, with each of its indexes; what else is written is by the period or less.
_DISK = """
select c.relname, pg_relation_size(c.oid) from pg_class c
where c.oid = 'ai_token_usage_log'::regclass
union all
select i.indexrelid::regclass::text, pg_relation_size(i.indexrelid) from pg_index i
where i.indrelid = 'ai_token_usage_log'::regclass
order by 2 desc
"""
_EVERYTHING = """
select sum(pg_total_relation_size(oid)) from pg_class
where relkind = 'r' and relnamespace in ('public'::regnamespace, 'tokenlib'::regnamespace)
"""


@dataclass(frozen=True)
class Verified:
    """One run of the command; memory in MB."""

    entries: int
    problems: int
    seconds: float
    memory: float
    server_memory: float


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said about this part."""
    parser.add_argument("--rows", type=int, default=LARGE)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; the figures, with the targets under `targets`."""
    found: dict[int, Verified] = {}
    about: dict[str, Any] = {}
    disk: dict[str, float] = {}
    for rows in (SMALL, options.rows):
        folder, seconds = loaded(rows)
        with ExitStack() as held:
            held.enter_context(connect(settings=Settings(data_dir=folder / "data")))
            conninfo = Embedded(folder / "data").conninfo(EMBEDDED_DATABASE, SUPERUSER)
            owner = held.enter_context(psycopg.connect(conninfo, autocommit=True))
            about = machine.about(folder, owner) | {"load_seconds": seconds}
            found[rows] = verified(folder)
            disk = _disk(owner)
    print(machine.lines(about))
    print(f"{'entries':>14}{'seconds':>10}{'MB':>8}{'MB of the server':>18}{'problems':>10}")
    for one in found.values():
        print(
            f"{one.entries:>14,}{one.seconds:>10.1f}{one.memory:>8.0f}{one.server_memory:>18.0f}"
            f"{one.problems:>10}"
        )
    print(f"\n{options.rows:,} rows took {about['load_seconds']:.0f} s to load. Bytes per charge:")
    for name, size in disk.items():
        print(f"  {name:40}{size:>8.0f}")
    small, large = found[SMALL], found[options.rows]
    more = f"verify, {options.rows // SMALL} times the rows: "
    targets = [
        Target(f"{more}memory", large.memory / small.memory, most=MOST),
        Target(f"{more}the server's", large.server_memory / small.server_memory, most=MOST),
        Target("problems that verify found", large.problems + small.problems, most=0),
    ]
    for target in targets:
        print(target.line())
    return {
        **about,
        "verify": {rows: vars(one) for rows, one in found.items()},
        "bytes_per_charge": disk,
        "targets": [target.figures() for target in targets],
    }


def verified(folder: Path) -> Verified:
    """Run the command on a server that runs, and look at its memory and at the server's."""
    start = time.monotonic()
    words = [sys.executable, "-m", "tokenlib", "verify", "--json"]
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    most = [0.0]
    ended = threading.Event()
    looking = threading.Thread(target=_look, args=(folder, most, ended))
    looking.start()
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.read())
        _, _, usage = os.wait4(process.pid, 0)
    finally:
        ended.set()
        looking.join()
    seconds = time.monotonic() - start
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    problems = len(said["problems"])
    return Verified(said["entries"], problems, seconds, kilobytes / 1024, most[0])


def _look(folder: Path, most: list[float], ended: threading.Event) -> None:
    """The largest that any process of the server was by itself, without what they share."""
    [postmaster, *_] = (folder / "data" / "pgdata" / "postmaster.pid").read_text().split()
    while not ended.wait(LOOK_SECONDS):
        for process in psutil.Process(int(postmaster)).children():
            try:
                most[0] = max(most[0], process.memory_full_info().uss / 1024**2)
            except psutil.NoSuchProcess:
                continue


def _disk(owner: psycopg.Connection[Any]) -> dict[str, float]:
    [[charges]] = owner.execute("select count(*) from ai_token_usage_log").fetchall()
    sizes = {name: size / charges for name, size in owner.execute(_DISK).fetchall()}
    [[everything]] = owner.execute(_EVERYTHING).fetchall()
    whole = {"one charge": sum(sizes.values()), "everything, by charge": everything / charges}
    return {name: round(float(size), 1) for name, size in {**sizes, **whole}.items()}
