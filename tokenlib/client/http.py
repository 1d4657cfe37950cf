"""One request over HTTP: kept connections, bounds on time and size, no redirects."""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from queue import Empty, LifoQueue
from typing import Any
from urllib.parse import urlsplit

from tokenlib.errors import ConfigurationError, DatabaseUnavailable, InvalidInput

_KEPT = 16
_CHUNK_BYTES = 65_536
_MOST_BYTES = 16 * 1024 * 1024
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Reply:
    """A status, headers with names in small letters, and the JSON object; None: it is none."""

    status: int
    headers: Mapping[str, str]
    document: dict[str, Any] | None

    @property
    def retry_after(self) -> float | None:
        """How many seconds to wait, if the server said so in seconds."""
        said = self.headers.get("retry-after", "")
        return float(said) if said.isascii() and said.isdigit() else None


class Http:
    """Connections to one server. Thread-safe."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url = _checked(base_url)
        if not _printable(api_key):
            # Without the value: it is a secret also when it is mistyped.
            raise InvalidInput("api_key", "must be the secret of an API key, without blanks")
        parts = urlsplit(base_url)
        self._place = (str(parts.hostname), parts.port)
        self._path = f"{parts.path}/api/v1"
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._authorization = f"Bearer {api_key}"
        self._idle: LifoQueue[HTTPConnection] = LifoQueue()
        self._closed = False

    def ask(
        self, method: str, path: str, body: bytes | None, key: str | None, patience: float
    ) -> Reply:
        """Ask once and wait for `patience` seconds in all.

        Raises DatabaseUnavailable with the outcome "not_charged" when nothing was sent, else
        "unknown".
        """
        headers = {"Authorization": self._authorization, "Accept": "application/json"}
        if body is not None:
            headers |= {"Content-Type": "application/json"}
        if key is not None:
            headers |= {"Idempotency-Key": key}
        give_up_at = time.monotonic() + patience
        connection = self._connection(patience)
        try:
            assert connection.sock is not None  # noqa: S101
            connection.sock.settimeout(patience)
            connection.request(method, self._path + path, body, headers)
            response = connection.getresponse()
            content = _content(connection, response, give_up_at)
        except (OSError, HTTPException) as error:
            connection.close()
            raise DatabaseUnavailable(
                f"{self.base_url} did not answer: {_name(error)}.", "unknown"
            ) from None
        except BaseException:
            connection.close()
            raise
        if response.will_close or self._closed or self._idle.qsize() >= _KEPT:
            connection.close()
        else:
            self._idle.put(connection)
        said = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, said, _document(said.get("content-type", ""), content))

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return

    def _connection(self, patience: float) -> HTTPConnection:
        if self._closed:
            raise ConfigurationError("The client is closed.")
        try:
            return self._idle.get_nowait()
        except Empty:
            pass
        timeout = min(patience, _CONNECT_SECONDS)
        if self._tls is None:
            connection = HTTPConnection(*self._place, timeout=timeout)
        else:
            connection = HTTPSConnection(*self._place, timeout=timeout, context=self._tls)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise ConfigurationError(
                f"The certificate of {self.base_url} is not good: {error.verify_message}."
            ) from None
        except OSError as error:
            connection.close()
            raise DatabaseUnavailable(
                f"{self.base_url} cannot be reached: {_name(error)}."
            ) from None
        return connection


def _content(connection: HTTPConnection, response: HTTPResponse, give_up_at: float) -> bytes:
    content = bytearray()
    while True:
        left = give_up_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if connection.sock is not None:  # gone once a reply that ends the connection is read
            connection.sock.settimeout(left)
        chunk = response.read1(_CHUNK_BYTES)
        if not chunk:
            if response.length:
                raise ConnectionResetError
            response.close()  # the connection is free for the next request
            return bytes(content)
        content += chunk
        if len(content) > _MOST_BYTES:
            raise ConnectionResetError


def _document(content_type: str, content: bytes) -> dict[str, Any] | None:
    if content_type.split(";")[0].strip().lower() not in (
        "application/json",
        "application/problem+json",
    ):
        return None
    try:
        document = json.loads(content)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _checked(base_url: str) -> str:
    """The URL without what it need not have. https, but on this machine."""
    wanted = "must be a URL such as https://tokens.example.org"
    if not _printable(base_url):
        raise InvalidInput("base_url", wanted)
    try:
        parts = urlsplit(base_url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise InvalidInput("base_url", wanted) from None
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidInput("base_url", f"{wanted}, without credentials, ? and #")
    if not host or parts.scheme not in ("http", "https"):
        raise InvalidInput("base_url", wanted)
    if parts.scheme == "http" and not _loopback(host):
        raise InvalidInput("base_url", "must be https: the API key would be sent in the clear")
    return base_url.rstrip("/").removesuffix("/api/v1")


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _printable(value: object) -> bool:
    if not isinstance(value, str) or not value:
        return False
    return all("!" <= character <= "~" for character in value)


def _name(error: Exception) -> str:
    """What went wrong, without what was sent."""
    return getattr(error, "strerror", None) or type(error).__name__
