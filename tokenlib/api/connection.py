"""HTTP on the wire, for both servers: bounds on the head of a request, and no answer that waits."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0


class Patient(H11Protocol):
    """uvicorn's HTTP, with a bound on how long the head of a request may take to arrive."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A caller is there, and has to say something."""
        # On a socket that another opened, Streamlit or a process beside this one, nobody has set
        # it: each answer then waits 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """A piece of a request; its head may be complete by now."""
        super().data_received(data)
        # A WebSocket speaks for itself from its first message on.
        if self._idle() and self.transport.get_protocol() is self:
            self._begin()
        else:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there to wait for."""
        self._end()
        super().connection_lost(exc)

    def _idle(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever its type says
        return cycle is None or cycle.response_complete

    def _begin(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _end(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        self.transport.write(
            b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        self.transport.close()


def use_everywhere() -> None:
    """Let every server of this process that chooses by itself speak so: Streamlit's, too."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Patient.__name__}"
