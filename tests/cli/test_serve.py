"""serve: a real process on a real port, and nothing of it left afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError

import psutil
import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.cli.shell import DELAYED_SECONDS, Shell, free_port
from tokenlib import embedded
from tokenlib.testing import TestDatabase

CHECKOUT = Path(__file__).parents[2]
READY = re.compile(r"tokenlib is ready on (http://localhost:(\d+)) after \d+\.\d s\. .*\n")


class Served:
    """A `tokenlib serve` of its own process group."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TOKENLIB_")}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the fixture closes it
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokenlib", "serve", *arguments],
            cwd=CHECKOUT,
            env={**inherited, **environment},
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def ready(self) -> str:
        """Wait for the line that says so; return the address in it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = READY.fullmatch(line)
        assert found, (line, self.said())
        return found[1]

    def said(self) -> str:
        """What it has written to stderr."""
        self.errors.seek(0)
        return self.errors.read()

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, and ends those that the test leaves running."""
    started: list[Served] = []

    def start(data_dir: Path, *arguments: str, **environment: str) -> Served:
        folder = {"TOKENLIB_DATA_DIR": str(data_dir), "TOKENLIB_PORT": str(free_port())}
        started.append(Served({**folder, **environment}, *arguments))
        return started[-1]

    yield start
    for served in started:
        served.process.kill()
        served.process.communicate()
        served.errors.close()


@contextmanager
def folder() -> Iterator[Path]:
    # Not pytest's own folder: it is closed to everybody else, so to the server's user under root.
    parent = Path(tempfile.mkdtemp(prefix="tokenlib-"))
    parent.chmod(0o711)
    try:
        yield parent / "data"
        embedded.stop(parent / "data")
    finally:
        shutil.rmtree(parent)


@pytest.fixture
def new() -> Iterator[Path]:
    """A data folder that does not exist yet."""
    with folder() as data_dir:
        yield data_dir


@pytest.fixture(scope="module")
def filled() -> Iterator[Path]:
    """A data folder with a small demo in it."""
    with folder() as data_dir:
        demo = Shell({"TOKENLIB_DATA_DIR": str(data_dir), "TOKENLIB_DATABASE_URL": None})
        assert demo.json("demo", "--charges", 1000)["fresh"] is True
        yield data_dir


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - our own server
        return response.status, response.read().decode()


def left(data_dir: Path) -> list[psutil.Process]:
    """Processes that name the data folder, or work in it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        places = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
        if any(str(data_dir) in place for place in places):
            found.append(process)
    return found


@pytest.mark.timeout(300)
def test_the_first_start_fills_the_demo_and_the_second_keeps_it(serve: Serve, new: Path) -> None:
    served = serve(new)
    url = served.ready()
    assert get(url)[0] == 200
    assert get(f"{url}/_stcore/health") == (200, "ok")
    for path in ("/api", "/api/", "/api/nothing", "/api/v1/nothing?a=b"):
        with pytest.raises(HTTPError) as refused:
            get(url + path)
        assert refused.value.code == 404, path
        assert "json" in refused.value.headers["content-type"], path
        refused.value.close()
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process(served.process.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", int(url.rpartition(":")[2]))}
    assert served.end(signal.SIGINT) == 0
    assert "Traceback" not in served.said()
    assert not left(new)

    again = serve(new)
    again.ready()
    assert again.end(signal.SIGTERM) == 0
    demo = Shell({"TOKENLIB_DATA_DIR": str(new), "TOKENLIB_DATABASE_URL": None})
    summary = demo.json("demo")
    assert summary["fresh"] is False
    assert summary["charges"] > 190_000
    assert demo.json("verify")["closed"] is True


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.thorough),
        pytest.param(signal.SIGHUP, marks=pytest.mark.thorough),
    ],
)
def test_a_signal_leaves_no_process_behind_even_with_a_tab_open(
    serve: Serve, filled: Path, number: signal.Signals
) -> None:
    served = serve(filled)
    url = served.ready()
    with connect(
        url.replace("http", "ws") + "/_stcore/stream", subprotocols=[Subprotocol("streamlit")]
    ):
        assert left(filled)
        assert served.end(number) == 0
    assert "Traceback" not in served.said()
    assert not left(filled)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_starts_leaves_no_process_behind(
    serve: Serve, new: Path, number: signal.Signals, code: int
) -> None:
    served = serve(new)
    while not (new / "pgdata" / "postmaster.pid").exists():
        assert served.process.poll() is None, served.said()
    assert served.end(number) == code
    assert "Traceback" not in served.said()
    assert not left(new)


def test_after_a_kill_it_starts_again(serve: Serve, filled: Path) -> None:
    served = serve(filled)
    served.ready()
    served.end(signal.SIGKILL)
    assert left(filled)  # the database outlives it, and is found again
    again = serve(filled)
    again.ready()
    assert again.end(signal.SIGTERM) == 0
    assert not left(filled)


def test_two_share_one_database_and_the_last_ends_it(serve: Serve, filled: Path) -> None:
    first, second = serve(filled), serve(filled, "--json")
    first.ready()
    assert second.process.stdout is not None
    url = json.loads(second.process.stdout.readline())["url"]
    assert first.end(signal.SIGTERM) == 0
    assert get(url)[0] == 200
    assert second.end(signal.SIGTERM) == 0
    assert not left(filled)


def test_a_port_that_is_taken_ends_with_3_before_anything_starts(nowhere: Shell, new: Path) -> None:
    shell = nowhere.set(TOKENLIB_DATA_DIR=str(new))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        message = shell.error("serve", "--port", port, exit_code=3)
    assert message == (
        f"Port {port} on 127.0.0.1 is taken. Stop what listens there, or name another with --port."
    )
    assert not new.exists()


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host"])
def test_a_host_that_is_not_ours_ends_with_3(nowhere: Shell, host: str) -> None:
    message = nowhere.error("serve", "--host", host, exit_code=3)
    assert message.startswith(f"Cannot listen on {host}, port ")
    assert message.endswith(" Name others with --host and --port.")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_demo_is_not_open_to_the_network(nowhere: Shell, new: Path, host: str) -> None:
    shell = nowhere.set(TOKENLIB_DATA_DIR=str(new))
    message = shell.error("serve", "--host", host, exit_code=3)
    assert message.startswith(f"The demo's people need no password, so {host} would let")
    assert message == shell.set(TOKENLIB_HOST=host).error("serve", exit_code=3)
    assert not new.exists()


def test_the_demo_is_open_when_told_so(serve: Serve, filled: Path) -> None:
    served = serve(filled, "--host", "0.0.0.0", "--open-demo")
    assert served.process.stdout is not None
    assert "tokenlib is ready on http://localhost:" in served.process.stdout.readline()
    assert served.end(signal.SIGHUP) == 0
    assert "Traceback" not in served.said()


def test_head_and_answer_are_bounded_beside_the_console_too(serve: Serve, filled: Path) -> None:
    served = serve(filled)
    url = served.ready()
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    with (
        connect(
            url.replace("http", "ws") + "/_stcore/stream", subprotocols=[Subprotocol("streamlit")]
        ) as tab,
        socket.create_connection(address, timeout=60) as slow,
    ):
        slow.sendall(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n")
        # The first answer of a connection is never delayed.
        caller = HTTPConnection(*address, timeout=60)
        times: list[float] = []
        while len(times) < 2 or min(times[1:]) >= DELAYED_SECONDS:
            assert len(times) < 300
            began = time.monotonic()
            caller.request("GET", "/api/v1/health", headers={"X-Request-Id": "quick"})
            assert caller.getresponse().read() == b'{"status":"ok"}'
            times.append(time.monotonic() - began)
        caller.close()
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert tab.ping().wait(30)  # opened before it, and no head is waited for there
    served.end(signal.SIGTERM)
    [line, *_] = [line for line in served.said().splitlines() if '"requestId": "quick"' in line]
    assert json.loads(line)["route"] == "/v1/health"


def test_a_database_of_ones_own_gets_no_demo_data(
    serve: Serve, token_database: TestDatabase, new: Path
) -> None:
    served = serve(new, TOKENLIB_DATABASE_URL=token_database.url())
    assert get(served.ready())[0] == 200
    assert served.end(signal.SIGTERM) == 0
    assert not new.exists()
    with token_database.connect() as connection:
        assert connection.execute("select count(*) from organizations").fetchone() == (0,)
