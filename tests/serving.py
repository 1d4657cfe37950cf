"""A Streamlit server, its demo data and a browser: what the browser tests and the benchmark share.

The browser is Chromium at TOKENLIB_CHROMIUM, else at /usr/bin/chromium.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tokenlib import connect, demo, embedded
from tokenlib.config import Settings
from tokenlib.embedded import Embedded

ROOT = Path(__file__).parents[1]
SHARED = "PYTEST_SHARED"
"""The variable that names the folder which the processes of one run of tests share."""
CHROMIUM = Path(os.environ.get("TOKENLIB_CHROMIUM") or "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-gpu",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
]
READY_SECONDS = 240.0  # it fills itself with demo data, maybe beside others that do
STOP_SECONDS = 60.0


@contextmanager
def served(
    script: Path, folder: Path, settings: Callable[[str], Mapping[str, str]] = lambda _address: {}
) -> Iterator[str]:
    """`streamlit run` of a script on a free port; the address, once it answers. Stopped after.

    Its data and its output, `<script's name>.log`, lie in the folder. `settings` gives more of the
    environment for the address.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: text for name, text in os.environ.items() if "TOKENLIB_" not in name}
    environment["TOKENLIB_DATA_DIR"] = str(folder / "data")
    environment.update(settings(f"http://127.0.0.1:{port}"))
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(port)]
    said = folder / f"{script.stem}.log"
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, process_group=0
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{script.name} did not start:\n{said.read_text()}")
            time.sleep(0.1)  # between two looks, until the deadline
        yield address
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def with_demo(folder: Path) -> None:
    """Put a data folder with the demo into this folder: a copy of one that a run of tests loads."""
    shared = Path(os.environ[SHARED])
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other process of this run waits, and copies
        if not (shared / "loaded").exists():
            with connect(settings=Settings(shared / "data")) as tokens:
                demo.load(Embedded(shared / "data").url("tokenlib", "tokenlib_owner"), tokens)
            embedded.stop(shared / "data")
            (shared / "loaded").touch()
    # Its files are of PostgreSQL's own user when root runs.
    subprocess.run(["cp", "-a", shared / "data", folder / "data"], check=True)  # noqa: S607


def _answers(address: str) -> bool:
    try:
        with urlopen(f"{address}/_stcore/health", timeout=5) as answer:  # noqa: S310 - our own
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
