"""Callers over HTTP: connections that stay, in processes of their own, with next to no work each.

A caller sends bytes that were made before, but for a key of its own, and reads the answer's length
and status. It so leaves the processor to the server.
"""

from __future__ import annotations

import random
import re
import selectors
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from uuid import uuid4

from tests.benchmarks.measure import Round, summed

PROCESSES = 2
START_SECONDS = 0.2
"""Until every process is at its line."""
LONG_SECONDS = 30.0

_KEY = b"\r\nIdempotency-Key: "
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
Done = tuple[float, float, list[float]]


@dataclass
class Line:
    """One connection."""

    socket: socket.socket
    sent: float = 0.0
    got: bytes = b""


def request(path: str, headers: dict[str, str], body: bytes) -> tuple[bytes, bytes]:
    """A POST in two pieces; the key goes between."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *(f"{name}: {it}" for name, it in headers.items())]
    return "\r\n".join(lines).encode() + _KEY, b"\r\n\r\n" + body


class Load:
    """So many connections to one port, shared out among the processes."""

    def __init__(self, port: int, connections: int, held: ExitStack) -> None:
        self._port, self._connections = port, connections // PROCESSES
        self._processes = held.enter_context(
            ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"))
        )
        list(self._processes.map(time.sleep, [START_SECONDS] * PROCESSES))  # they are up

    def turn(self, requests: Sequence[tuple[bytes, bytes]], seconds: float) -> Round:
        """Send any of the requests on every connection for so many seconds."""
        start = time.monotonic() + START_SECONDS
        parts = [
            self._processes.submit(
                drive, self._port, self._connections, requests, start, seconds, number
            )
            for number in range(PROCESSES)
        ]
        return summed([done for part in parts for done in part.result()])


def drive(
    port: int,
    connections: int,
    requests: Sequence[tuple[bytes, bytes]],
    start: float,
    seconds: float,
    seed: int,
) -> list[Done]:
    """What one process does. Raises for an answer that is no success."""
    chance = random.Random(seed)  # noqa: S311 - which wallet is no secret
    taken: list[float] = []
    with ExitStack() as held, selectors.DefaultSelector() as ready:
        for _ in range(connections):
            opened = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ready.register(opened, selectors.EVENT_READ, Line(opened))
        lines: list[Line] = [key.data for key in ready.get_map().values()]

        def send(line: Line) -> None:
            before, after = chance.choice(requests)
            line.got, line.sent = b"", time.perf_counter()
            line.socket.sendall(before + str(uuid4()).encode() + after)

        time.sleep(max(0, start - time.monotonic()))  # all processes begin together
        began = time.perf_counter()
        for line in lines:
            send(line)
        busy, until = len(lines), began + seconds
        while busy:
            for key, _ in ready.select(LONG_SECONDS) or _nobody_answers():
                line = key.data
                line.got += line.socket.recv(65536)
                if not _whole(line.got):
                    continue
                now = time.perf_counter()
                taken.append(now - line.sent)
                if now < until:
                    send(line)
                else:
                    busy -= 1
        return [(began, time.perf_counter(), taken)]


def _whole(got: bytes) -> bool:
    head, end, body = got.partition(b"\r\n\r\n")
    if not end:
        if not got:
            raise RuntimeError("the server closed a connection")
        return False
    if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
        raise RuntimeError(f"not a success: {got.decode(errors='replace')}")
    length = _LENGTH.search(head)
    return length is not None and len(body) >= int(length[1])


def _nobody_answers() -> list[tuple[selectors.SelectorKey, int]]:
    raise RuntimeError(f"no answer in {LONG_SECONDS:.0f} s")
