"""The way to the API and back: one request under one key, however often it takes; our errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

from tokenlib import inputs
from tokenlib.client import forms, wire
from tokenlib.client.http import Http, Reply
from tokenlib.domain import Usage
from tokenlib.errors import ConfigurationError, DatabaseUnavailable, RateLimited
from tokenlib.retry import Retry

T = TypeVar("T")
_PROBLEM = "/api/v1/docs#"  # how the type of each problem begins


class Calling:
    """What every verb of the client stands on."""

    def __init__(self, base_url: str, api_key: str, deadline: float) -> None:
        self._http = Http(base_url, api_key)
        self._retry = Retry(inputs.deadline(deadline), passing=(DatabaseUnavailable, RateLimited))

    def _get(self, path: str, **query: object) -> Reply:
        said = {name: value for name, value in query.items() if value is not None}
        return self._ask("GET", path + (f"?{urlencode(said)}" if said else ""), None, None, said)

    def _post(
        self,
        path: str,
        body: Mapping[str, Any],
        key: str | None = None,
        *,
        repeatable: bool = True,
    ) -> Reply:
        """Do it under one key, the caller's or one that nobody else has, however often it takes.

        What is not repeatable is not asked again once an answer was lost.
        """
        key = forms.key(key)
        content = json.dumps({name: value for name, value in body.items() if value is not None})
        asked = {**body, "idempotencyKey": key}
        return self._ask("POST", path, content.encode(), key, asked, repeatable)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        key: str | None,
        asked: Mapping[str, Any],
        repeatable: bool = True,
    ) -> Reply:
        known = {wire.snake(name): value for name, value in asked.items()} | forms.places(path)

        def attempt(patience: float) -> Reply:
            reply = self._http.ask(method, path, body, key, patience)
            if 200 <= reply.status < 300 and reply.document is not None:
                return reply
            raise self._error(reply, known)

        return self._retry.run(attempt, repeatable=repeatable)

    def _error(self, reply: Reply, asked: Mapping[str, Any]) -> Exception:
        said = reply.document or {}
        ours = str(said.get("type")).startswith(_PROBLEM)
        code = said.get("code") if ours and said.get("code") != "no_such_path" else None
        detail = str(said["detail"]) if code else f"{self._http.base_url} answered {reply.status}."
        if reply.status >= 500 or code == "in_flight":
            outcome = "not_charged" if said.get("outcome") == "not_charged" else "unknown"
            return DatabaseUnavailable(detail, outcome, reply.retry_after)  # type: ignore[arg-type]
        if reply.status == 408 or (reply.status == 429 and not code):
            return DatabaseUnavailable(detail, "not_charged", reply.retry_after)
        if not code:
            return ConfigurationError(
                f"{self._http.base_url} is not the API of tokenlib: it answered {reply.status} with"
                f" {reply.headers.get('content-type', 'nothing')}. Check base_url."
            )
        return wire.error(said, reply.status, asked)


def read(kind: type[T], reply: Reply, **more: Any) -> T:
    """A dataclass from an answer. Raises ConfigurationError when the answer is another."""
    try:
        return wire.read(kind, reply.document or {}, **more)
    except (KeyError, TypeError, ValueError):
        raise not_understood() from None


def charge(reply: Reply, **more: Any) -> Usage:
    """A charge."""
    return read(Usage, reply, replayed=replayed(reply), **more)


def replayed(reply: Reply) -> bool:
    """Whether it is the first answer again."""
    return reply.headers.get("idempotency-replayed") == "true"


def not_understood() -> ConfigurationError:
    """An answer of another version, or of something else."""
    return ConfigurationError("The server gave an answer that this version does not understand.")
