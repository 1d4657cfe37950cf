"""The body of a charge that comes with its head, read before the request has a place.

Whoever sends no body would else hold a place for as long as one may take to come, before anybody
has asked who it is: a key's checksum is no secret.
"""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Scope

# Head and body are often two segments, right behind each other.
WITH_HEAD_SECONDS = 0.1
MAX_BODY_BYTES = 65_536
# Where quick.py answers.
_ENDS = ("/charges", "/tokens/check-balance")


async def arrived(scope: Scope, receive: Receive) -> Receive:
    """Wait for the body, shortly; `whole_body` has it then. What came is received again."""
    if scope["method"] != "POST" or not scope["path"].endswith(_ENDS):
        return receive
    messages: list[Message] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(WITH_HEAD_SECONDS):
            while more and size <= MAX_BODY_BYTES:
                messages.append(message := await receive())
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        pass
    if messages and not more and size <= MAX_BODY_BYTES and messages[-1]["type"] == "http.request":
        body = b"".join(message.get("body", b"") for message in messages)
        scope.setdefault("state", {})["whole_body"] = body
    again = iter(messages)

    async def receive_again() -> Message:
        message = next(again, None)
        return await receive() if message is None else message

    return receive_again


def whole_body(scope: Scope) -> bytes | None:
    """The body, if all of it came with the head."""
    body: bytes | None = scope.get("state", {}).get("whole_body")
    return body
