"""Around an AI call: what `spend` and `charged` do, for library and HTTP client."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from tokenlib import inputs
from tokenlib.domain import Reservation, Usage
from tokenlib.errors import InvalidInput, ReservationOver

if TYPE_CHECKING:
    from tokenlib.aio import AsyncTokens

Id = UUID | str
Function = TypeVar("Function", bound=Callable[..., Any])


class SpendVerbs:
    """What stands on `spend`, `deduct` and `release`, wherever these are carried out."""

    log = logging.getLogger("tokenlib")

    if TYPE_CHECKING:
        # A plain attribute here, a cached property there.
        @property
        def aio(self) -> AsyncTokens: ...

        def spend(
            self, organization: Id, user: Id, feature: str, units: int = 1
        ) -> AbstractContextManager[Reservation]: ...

        def deduct(
            self,
            reservation: Reservation,
            units: int | None = None,
            metadata: Mapping[str, Any] | None = None,
        ) -> Usage: ...

        def release(self, reservation: Reservation, reason: str | None = None) -> None: ...

    @contextmanager
    def _around(self, held: Reservation) -> Iterator[Reservation]:
        """Charge the hold when the body ends well, give it back when it does not."""
        try:
            yield held
        except BaseException as error:
            self.release_quietly(held, type(error).__name__)
            raise
        try:
            self.deduct(held)
        except ReservationOver as over:
            if over.state != "released":
                raise

    def charged(
        self,
        feature: str,
        units: int = 1,
        *,
        organization: str = "organization",
        user: str = "user",
    ) -> Callable[[Function], Function]:
        """A decorator: each call of the function is an AI call, charged as `spend` does.

        `organization` and `user` name those parameters of the function that say who pays. A
        coroutine function is awaited. Raises InvalidInput when the function lacks one of them.
        """
        # Said where it is written, not at the first call.
        feature, units = inputs.text(feature, "feature"), inputs.units(units)
        organization, user = inputs.text(organization, "organization"), inputs.text(user, "user")

        def decorate(function: Function) -> Function:
            signature = inspect.signature(function)
            for field, name in (("organization", organization), ("user", user)):
                if name not in signature.parameters:
                    raise InvalidInput(field, f"must name a parameter of {function.__qualname__}")

            def asked(args: Any, kwargs: Any) -> tuple[Any, Any, str, int]:
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                return bound.arguments[organization], bound.arguments[user], feature, units

            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.spend(*asked(args, kwargs)):
                    return function(*args, **kwargs)

            @functools.wraps(function)
            async def call_awaited(*args: Any, **kwargs: Any) -> Any:
                async with self.aio.spend(*asked(args, kwargs)):
                    return await function(*args, **kwargs)

            # What it wraps, with the same signature.
            if inspect.iscoroutinefunction(function):
                return call_awaited  # type: ignore[return-value]
            return call  # type: ignore[return-value]

        return decorate

    def release_quietly(self, held: Reservation, reason: str) -> None:
        """Give a hold back if that works now; else it ends by itself. Never raises."""
        try:
            self.release(held, reason)
        except Exception as error:  # noqa: BLE001
            self.log.warning("reservation %s could not be released: %s", held.id, error)
