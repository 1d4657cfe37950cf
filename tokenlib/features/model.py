"""The language model that a feature may ask for words: none, a real one, a failing one.

A model is asked outside any transaction, while the tokens are held. Whatever goes wrong is a
`ModelError`, so that the caller can give the tokens back.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from openai.resources.chat.completions import (
        AsyncCompletionsWithStreamingResponse,
    )
    from openai.types.chat import ChatCompletionMessageParam

Reason = Literal["timeout", "refusal", "broken_answer", "unavailable", "not_installed"]

MAX_OUTPUT_UNITS = 2_000
"""Units that an answer may have unless said."""

LARGEST_RESPONSE = 1_000_000
"""Bytes of an HTTP response that are still read as an answer."""

MOST_UNITS = 1_000_000_000
"""Units that a single answer can state; more is not a count."""


class ModelError(Exception):
    """The model gave no usable answer; `reason` says why, the message can be shown to a person.

    `held` is how many tokens were held for it and have gone back, where some were.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason
        self.held: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer and what it cost the model to read the prompt and write it, in its own units."""

    text: str
    input_units: int
    output_units: int


class Model(Protocol):
    """Anything that completes a prompt."""

    @property
    def max_output_units(self) -> int:
        """The longest answer that `complete` gives, in the model's units; 0: it writes nothing."""

    def complete(self, prompt: str, *, timeout: float) -> Completion:
        """Answer within `timeout` seconds or raise ModelError.

        An empty text means that this model writes nothing: the feature uses its own words.
        """


@dataclass(frozen=True, slots=True)
class OfflineModel:
    """The default: no network, no words of its own."""

    max_output_units: int = 0

    def complete(self, prompt: str, *, timeout: float) -> Completion:
        """An empty answer that took no units."""
        return Completion("", 0, 0)


@dataclass(frozen=True, slots=True)
class FailingModel:
    """A model that takes the prompt and then fails, to show that a failed call costs nothing."""

    reason: Reason = "unavailable"
    max_output_units: int = 0

    def complete(self, prompt: str, *, timeout: float) -> Completion:
        """Always raises ModelError."""
        raise ModelError("The model failed, as asked for.", self.reason)


@dataclass(frozen=True, slots=True)
class OpenAIModel:
    """A chat model behind any OpenAI-compatible endpoint; needs the extra `llm`.

    Raises ValueError for an unusable setting, and ModelError (`not_installed`) without the extra.
    """

    base_url: str
    api_key: str = field(repr=False)
    model: str
    max_output_units: int = MAX_OUTPUT_UNITS

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("base_url must be a URL like http://localhost:11434/v1")
        # A key that no header can carry would come back inside the transport's error message.
        if not self.api_key or not self.api_key.isascii() or not self.api_key.isprintable():
            raise ValueError("api_key must be printable ASCII; use any word if none is needed")
        if not self.model:
            raise ValueError("model must name the model to ask")
        if self.max_output_units < 1:
            raise ValueError("max_output_units must be 1 or more")
        try:
            import openai  # noqa: F401 - slow to import, and only some installations have it
        except ImportError as error:
            raise ModelError(
                "A language model needs the openai package: pip install 'tokenlib-ai[llm]'",
                "not_installed",
            ) from error

    def complete(self, prompt: str, *, timeout: float) -> Completion:
        """The answer of one chat call; `timeout` bounds the whole call, and nothing is retried."""
        # The client's own timeout starts again with every byte that arrives, so only a call that
        # can be cancelled keeps a deadline; in a thread, because the caller may run a loop already.
        with ThreadPoolExecutor(max_workers=1) as worker:
            body = worker.submit(asyncio.run, self._ask(prompt, timeout)).result()
        completion = _completion(body)
        if completion.output_units > self.max_output_units:
            raise _broken(f"has more than the {self.max_output_units} units that it may have")
        return completion

    async def _ask(self, prompt: str, timeout: float) -> bytes:
        from openai import APIError, APIStatusError, APITimeoutError, AsyncOpenAI

        try:
            async with (
                asyncio.timeout(timeout),
                AsyncOpenAI(
                    base_url=self.base_url, api_key=self.api_key, timeout=timeout, max_retries=0
                ) as client,
            ):
                return await self._chat(client.chat.completions.with_streaming_response, prompt)
        except (TimeoutError, APITimeoutError) as error:
            raise ModelError(
                f"The model did not answer within {timeout:g} seconds.", "timeout"
            ) from error
        except APIStatusError as error:
            raise ModelError(
                f"The model's endpoint answered with HTTP status {error.status_code}.",
                "unavailable",
            ) from error
        except APIError as error:
            raise ModelError("The model's endpoint could not be reached.", "unavailable") from error

    async def _chat(self, chat: "AsyncCompletionsWithStreamingResponse", prompt: str) -> bytes:
        from openai import BadRequestError, UnprocessableEntityError

        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": prompt}]
        limit = self.max_output_units
        try:
            async with chat.create(
                model=self.model, messages=messages, max_completion_tokens=limit
            ) as response:
                return await _content(response.iter_bytes())
        except (BadRequestError, UnprocessableEntityError) as error:
            # OpenAI's newer models accept only this name of the limit, others only the older one.
            if "max_completion_tokens" not in error.response.text:
                raise
        async with chat.create(model=self.model, messages=messages, max_tokens=limit) as response:
            return await _content(response.iter_bytes())


async def _content(parts: AsyncIterator[bytes]) -> bytes:
    """A response's body. One that is too large is not read to its end."""
    body = bytearray()
    try:
        async for part in parts:
            body += part
            if len(body) > LARGEST_RESPONSE:
                raise _broken("is too large")
    except ModelError:
        raise
    except Exception as error:  # of whatever transport the client stands on
        raise ModelError("The model's answer broke off.", "unavailable") from error
    return bytes(body)


def _completion(body: bytes) -> Completion:
    """Read a chat completion, believing nothing about its shape."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        message = choice["message"]
        text = message.get("content")
        refused = message.get("refusal") or choice.get("finish_reason") == "content_filter"
        usage = answer.get("usage") or {}
        units = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _broken("is not a chat completion") from error
    if refused:
        raise ModelError("The model refused to answer.", "refusal")
    if choice.get("finish_reason") == "length":
        raise _broken("was cut off at its length limit")
    if not isinstance(text, str) or not text.strip():
        raise _broken("holds no text")
    if not all(type(count) is int and 0 <= count <= MOST_UNITS for count in units):
        raise _broken("states no usable number of units")
    return Completion(text, *units)


def _broken(problem: str) -> ModelError:
    return ModelError(f"The model's answer {problem}.", "broken_answer")
