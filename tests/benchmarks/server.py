"""A server in processes of its own, on the data in a folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil

from tests.api.callers import AUDIENCE, ISSUER, PEPPER, SECRET
from tests.serving import ROOT

READY_SECONDS = 180.0
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """Where it listens, and its process."""

    port: int
    process: psutil.Process


@contextmanager
def served(folder: Path, command: Sequence[str], ready: str = "/api/v1/ready") -> Iterator[Server]:
    """Python with these arguments, `{port}` being a free one, once it answers. Stopped after."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    environment = {name: text for name, text in os.environ.items() if "TOKENLIB_" not in name} | {
        "TOKENLIB_DATA_DIR": str(folder / "data"),
        "TOKENLIB_JWT_SECRET": SECRET,
        "TOKENLIB_JWT_ISSUER": ISSUER,
        "TOKENLIB_JWT_AUDIENCE": AUDIENCE,
        "TOKENLIB_KEY_PEPPER": PEPPER,
    }
    words = [sys.executable, *(word.format(port=port) for word in command)]
    said = folder / "server.log"
    with said.open("wb") as output:
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=output, stderr=output, process_group=0
        )
    try:
        until = time.monotonic() + READY_SECONDS
        while not _answers(port, ready):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"The server did not start:\n{said.read_text()}")
            time.sleep(0.1)  # between two looks, until the deadline
        yield Server(port, psutil.Process(process.pid))
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
