"""Databases with many log rows, made by `tokenlib demo --rows` and kept for a day.

They lie in folders of their own in TOKENLIB_BENCH_DIR, else /var/tmp; ten million rows take 8 GB
there and minutes to make. Data of another schema, of another loader or of yesterday are made anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks import machine
from tests.serving import ROOT

KEPT_SECONDS = 24 * 3600
MADE_OF = ("sql/migrations/*.sql", "sql/demo/*.sql", "demo/*.py")


def loaded(rows: int) -> tuple[Path, float]:
    """A folder with so many log rows in its `data`, and how many seconds they took to load."""
    machine.home().mkdir(parents=True, exist_ok=True)
    folder = machine.home() / f"tokenlib-bench-rows-{rows}-{_made_of()}"
    took = folder / "seconds"
    if took.exists() and time.time() - took.stat().st_mtime < KEPT_SECONDS:
        return folder, float(took.read_text())
    for old in machine.home().glob(f"tokenlib-bench-rows-{rows}-*"):
        shutil.rmtree(old)
    folder.mkdir()
    folder.chmod(0o711)  # when root runs, the database's user passes through
    if machine.filesystem(folder) in machine.IN_MEMORY:
        sys.exit(f"{folder} lies in memory. Name a folder on a disk with TOKENLIB_BENCH_DIR.")
    print(f"Loading {rows:,} rows into {folder}, once a day.", flush=True)
    start = time.monotonic()
    words = [sys.executable, "-m", "tokenlib", "demo", "--rows", str(rows)]
    subprocess.run(words, cwd=ROOT, env=environment(folder), check=True)
    seconds = time.monotonic() - start
    took.write_text(f"{seconds:.1f}")
    return folder, seconds


def environment(folder: Path) -> dict[str, str]:
    """What a command needs to work on the data in a folder."""
    kept = {name: text for name, text in os.environ.items() if "TOKENLIB_" not in name}
    return {**kept, "TOKENLIB_DATA_DIR": str(folder / "data")}


def _made_of() -> str:
    package = ROOT / "tokenlib"
    files = sorted(file for pattern in MADE_OF for file in package.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
