"""What a request must look like before it is believed: nothing twice, and a body that is read here.

Whoever reads the last of two and whoever reads the first of them do different things: a proxy, a
log and the API must not disagree about what was asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from email.message import Message
from typing import Any

from fastapi import HTTPException, Request

_ONCE = ("Idempotency-Key", "Content-Type", "Content-Encoding")
_SEND = "Send the body as UTF-8 JSON with the header Content-Type: application/json."


class Malformed(HTTPException):
    """What no schema can be asked about: which field, and what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(400, f"{field[:100]} {problem}.")
        self.field, self.problem = field[:100], problem


class Twice(Malformed):
    """Something stands in a request more than once."""

    def __init__(self, field: str) -> None:
        super().__init__(field, "is there more than once: send it once")


def credentials_once(request: Request) -> None:
    """Raise Twice for credentials of two callers."""
    if len(request.headers.getlist("authorization")) > 1:
        raise Twice("Authorization")


def check(request: Request, has_body: bool) -> None:
    """Raise Twice, or HTTPException 415 for a body that is not read here, with the way out."""
    for name in _ONCE:
        if len(request.headers.getlist(name)) > 1:
            raise Twice(name)
    once(name for name, _ in request.query_params.multi_items())
    if not has_body:
        return
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        said = "A body with a Content-Encoding is not read here. Send it as it is, without one."
        raise HTTPException(415, said, {"Accept-Encoding": "identity"})
    if "content-type" not in request.headers:
        raise HTTPException(415, f"The header Content-Type is missing. {_SEND}")
    message = Message()
    message["content-type"] = request.headers["content-type"]
    kind, charset = message.get_content_type(), message.get_param("charset", "utf-8")
    if not kind.startswith("application/") or not (kind.endswith(("/json", "+json"))):
        raise HTTPException(415, f"A body of this Content-Type is not read here. {_SEND}")
    if str(charset).lower() not in ("utf-8", "utf8"):
        raise HTTPException(415, f"A body of this charset is not read here. {_SEND}")


def once(names: Iterable[str]) -> None:
    """Raise Twice for the first name that is there again."""
    for name, times in Counter(names).items():
        if times > 1:
            raise Twice(name)


def document(content: bytes) -> Any:
    """A JSON document, each field of it once.

    Raises JSONDecodeError for what is no JSON, and Malformed for what is not read here.
    """
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError:
        raise Malformed("body", "is not UTF-8: send JSON in UTF-8") from None
    except RecursionError:
        raise Malformed("body", "is nested too deeply: send fewer levels") from None
    except ValueError:  # of whole numbers, as Python bounds them
        raise Malformed("body", "has a number of too many digits: send it as text") from None


class StrictRequest(Request):
    """A request whose JSON has each field once."""

    async def json(self) -> Any:
        """The document; as `document`."""
        return document(await self.body())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        once(name for name, _ in pairs)
    return found
