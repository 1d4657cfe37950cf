"""Between the clients and the server: a socket that passes everything on, and breaks at will."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

Rule = Callable[[bytes], bool]


def never(_request: bytes) -> bool:
    """Break nothing."""
    return False


class Proxy:
    """Passes on between a socket in a folder of its own and the server's. The server trusts.

    `cut` and `drop` are asked for each request, with what the client sent: cut breaks the
    connection before the server has it, drop after the server has done it and before the client has
    the reply. While `frozen` nothing passes, and nobody is told. `trips` counts how often a client
    sent something and waited until the server was ready again.
    """

    def __init__(self, server: Path) -> None:
        self.server = server
        self.folder = Path(tempfile.mkdtemp(prefix="proxy-"))
        self.cut: Rule = never
        self.drop: Rule = never
        self.broken = 0
        self.trips = 0
        self._passing = threading.Event()
        self._passing.set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._links: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Proxy:
        self._listener.bind(str(self.folder / self.server.name))
        self._listener.listen(64)
        self._start(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        self.frozen = False
        with suppress(OSError):  # wakes the thread that accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in self._links:
            _end(*link)
        for thread in self._threads:
            thread.join(10)
        shutil.rmtree(self.folder)

    @property
    def frozen(self) -> bool:
        """Whether nothing passes."""
        return not self._passing.is_set()

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        (self._passing.clear if frozen else self._passing.set)()

    def url(self, url: str) -> str:
        """The same database by way of here."""
        here = sa.make_url(url).update_query_dict({"host": str(self.folder)})
        return here.render_as_string(hide_password=False)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                server.connect(str(self.server))
            except OSError:  # no server: the client is not to wait for one
                client.close()
                server.close()
                continue
            self._links.append((client, server))
            request = bytearray()
            self._start(self._up, client, server, request)
            self._start(self._down, client, server, request)

    def _up(self, client: socket.socket, server: socket.socket, request: bytearray) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                self._passing.wait()
                request += data
                if self.cut(bytes(request)):
                    self.broken += 1
                    break
                server.sendall(data)
        _end(client, server)

    def _down(self, client: socket.socket, server: socket.socket, request: bytearray) -> None:
        reply = b""
        greeted = False
        with suppress(OSError):
            while data := server.recv(65536):
                reply += data
                if not _ready(reply):
                    continue
                self._passing.wait()
                self.trips += greeted and bool(request)
                if greeted and self.drop(bytes(request)):
                    self.broken += 1
                    reply = b""
                    break
                request.clear()
                client.sendall(reply)
                reply, greeted = b"", True
            client.sendall(reply)  # last words
        _end(client, server)


def _ready(reply: bytes) -> bool:
    """Whether the server's messages end with the one that says: ready for the next query."""
    kind = b""
    while len(reply) >= 5:
        kind, length = reply[:1], int.from_bytes(reply[1:5], "big")
        if len(reply) < 1 + length:
            return False
        reply = reply[1 + length :]
    return kind == b"Z" and not reply


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
