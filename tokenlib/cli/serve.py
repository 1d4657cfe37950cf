"""The command that serves console and API in this process, or the API alone in several."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from tokenlib.cli.data import load_demo
from tokenlib.cli.output import EXIT_CODES, Failure, Whole, gate, json_option
from tokenlib.config import Settings, own_machine
from tokenlib.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenlib.tokens import Tokens

_POLL_SECONDS = 0.1
# What an address that means "every interface" is reached by.
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - is looked up, not bound
_LOOPBACK = ("127.0.0.1", "::1")
# What says that the console, and that the API answers.
_ALIVE = "/_stcore/health"
_READY = "/api/v1/ready"


@click.command(epilog=EXIT_CODES)
@click.option("--host", help="Address to listen on.  [default: TOKENLIB_HOST or 127.0.0.1]")
@click.option(
    "--port",
    type=Whole(1, 65535),
    help="Port to listen on.  [default: TOKENLIB_PORT or 8501]",
)
@click.option(
    "--open-demo",
    is_flag=True,
    help="Let everybody who reaches --host be one of the demo's people, admins included.",
)
@click.option(
    "--api-only", is_flag=True, help="The API without the console; its log is JSON lines."
)
@click.option(
    "--workers",
    type=Whole(1, 64),
    default=1,
    show_default=True,
    help="Processes behind the port, with --api-only.",
)
@json_option
def serve(
    host: str | None,
    port: int | None,
    open_demo: bool,
    api_only: bool,
    workers: int,
    as_json: bool,
) -> None:
    """Serve console and API until Ctrl-C or SIGTERM.

    Without TOKENLIB_DATABASE_URL this starts the bundled PostgreSQL, migrates it, and fills it with
    demo data the first time; it ends together with the server. Whoever reaches it may then be one
    of the demo's people without a password, so another address than this machine's own is refused
    unless --open-demo is given. A database of your own must be migrated already (`tokenlib
    migrate`) and gets no demo data.
    """
    began = time.monotonic()
    settings = Settings.from_env()
    host, port = host or settings.host, port or settings.port
    if workers > 1 and not api_only:
        raise click.UsageError("--workers goes with --api-only: the console is one process.")
    server, alive = (_api(settings, workers), _READY) if api_only else (_console(_app()), _ALIVE)
    _require_free(host, port)
    # The demo's people are the console's: the API asks everybody for credentials.
    open_demo = open_demo or settings.open_demo
    if settings.demo_people and not api_only and not open_demo and not own_machine(host):
        raise ConfigurationError(
            f"The demo's people need no password, so {host} would let the whole network be admin."
            " Listen on 127.0.0.1, set TOKENLIB_DATABASE_URL to a database of your own, or give"
            " --open-demo."
        )
    if open_demo:
        os.environ["TOKENLIB_OPEN_DEMO"] = "true"  # the console refuses for itself, too
    with gate(settings) as tokens:
        if settings.embedded:
            _fill(tokens, settings)
        _require_free(host, port)  # it may have been taken while the demo data were loaded
        stopped = threading.Event()
        announcer = threading.Thread(
            target=_announce, args=(host, port, alive, began, stopped, as_json)
        )
        announcer.start()
        try:
            _run(server, host, port)
        finally:
            stopped.set()
            announcer.join()


def _app() -> Path:
    """The console's entry: inside an installed package, or beside pyproject.toml in a checkout."""
    if find_spec("streamlit") is None:
        raise ConfigurationError("The console is not installed. Install tokenlib-ai[console].")
    package = Path(__file__).parents[1]
    installed = package / "_app" / "app.py"
    checkout = package.parent / "app.py"
    if installed.is_file():
        return installed
    if checkout.is_file() and checkout.with_name("pyproject.toml").is_file():
        return checkout
    raise ConfigurationError(f"The installation is incomplete: {installed} is missing.")


def _require_free(host: str, port: int) -> None:
    """Raise ConfigurationError unless somebody could listen there now."""
    try:
        # As the server itself does, so that connections that linger do not count.
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"Port {port} on {host} is taken. Stop what listens there, or name another with"
                " --port."
            ) from None
        raise ConfigurationError(
            f"Cannot listen on {host}, port {port}: {error.strerror}. Name others with --host and"
            " --port."
        ) from None


def _fill(tokens: Tokens, settings: Settings) -> None:
    from tokenlib import demo

    if not demo.loaded(tokens):
        load_demo(tokens, settings)


def _console(app: Path) -> Callable[[str, int], None]:
    """Streamlit's own command in this process."""

    def run(host: str, port: int) -> None:
        importlib.import_module("tokenlib.api.connection").use_everywhere()
        importlib.import_module("tokenlib.api.lines").log_requests()
        # Only the console knows Streamlit; this runs a program that happens to be Python's.
        streamlit = importlib.import_module("streamlit.web.cli")
        options = {
            "server.address": host,
            "server.port": str(port),
            "server.headless": "true",
            "logger.hideWelcomeMessage": "true",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        streamlit.main(["run", *words, str(app)], prog_name="streamlit", standalone_mode=False)

    return run


def _api(settings: Settings, workers: int) -> Callable[[str, int], None]:
    """The API in processes of its own, or with one worker in this one."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise ConfigurationError("The API is not installed. Install tokenlib-ai[api].")
    # What cannot be meant is said here, once, and not by each process.
    importlib.import_module("tokenlib.api.auth").BearerJwt(settings)

    def run(host: str, port: int) -> None:
        alone = importlib.import_module("tokenlib.api.alone")
        alone.serve(host, port, workers)

    return run


def _run(server: Callable[[str, int], None], host: str, port: int) -> None:
    """Serve until it is told to stop."""
    # uvicorn shuts down at SIGTERM and then raises it again; it does not know SIGHUP.
    ends = {signal.SIGTERM: _leave, signal.SIGHUP: lambda *_: signal.raise_signal(signal.SIGTERM)}
    before = {
        number: signal.getsignal(number)
        for number in ends
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    try:
        for number in before:
            signal.signal(number, ends[number])
        server(host, port)
    except (_Stopped, click.Abort):
        return  # by a signal, or by Ctrl-C, after the server has shut down
    except SystemExit:
        raise Failure("It did not start. The lines above say why.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stopped(BaseException):
    """Somebody asked for the end."""


def _leave(_number: int, _frame: FrameType | None) -> None:
    # Once is enough: what comes while we leave would break off the leaving.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise _Stopped


def _announce(
    host: str, port: int, alive: str, began: float, stopped: threading.Event, as_json: bool
) -> None:
    """Print the address once the server answers there, in one line."""
    address = _EVERY_INTERFACE.get(host, host)
    while not stopped.wait(_POLL_SECONDS):
        with suppress(OSError, HTTPException):
            connection = HTTPConnection(address, port, timeout=5)
            try:
                connection.request("GET", alive)
                ready = connection.getresponse().status == 200
            finally:
                connection.close()
            if ready:
                name = "localhost" if address in _LOOPBACK else address
                url, seconds = f"http://{name}:{port}", round(time.monotonic() - began, 1)
                if as_json:
                    click.echo(json.dumps({"url": url, "seconds": seconds}))
                else:
                    click.echo(
                        f"tokenlib is ready on {url} after {seconds} s. Stop it with Ctrl-C."
                    )
                return
