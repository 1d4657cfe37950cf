"""The gate over HTTP: the library's verbs, errors and `spend`, without the database at hand.

client = tokenlib.Client("https://tokens.example.org", api_key)
with client.spend(organization, user, "generate_goal"):
    call_the_model()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from types import TracebackType
from typing import Any
from uuid import UUID, uuid4

from tokenlib import inputs
from tokenlib.aio import AsyncTokens
from tokenlib.client import forms
from tokenlib.client.calling import charge, read
from tokenlib.client.keys import KeyVerbs
from tokenlib.client.reading import ReadingVerbs
from tokenlib.client.staff import StaffVerbs
from tokenlib.db import as_uuid
from tokenlib.domain import Reservation, Usage
from tokenlib.spending import SpendVerbs

Id = UUID | str

# Longer than the library's: a server whose database is away asks for 5 seconds of patience.
DEADLINE_SECONDS = 15.0


class Client(ReadingVerbs, StaffVerbs, KeyVerbs, SpendVerbs):
    """The gate behind `base_url`, with an API key. Thread-safe. Close it, or use it in a `with`.

    What the API decides by the key, who acts and whether users' limits hold, is no argument here.
    Whatever changes something has an idempotency key; so what got no answer, was told to come back
    or met a limit that ends in time is asked again until `deadline` seconds are over. Raises the
    library's errors: NotFound also for what the key may not see, LoginRefused for a key that is not
    good, ConfigurationError for an address that is not the API's, DatabaseUnavailable for a server
    that does not answer.
    """

    def __init__(self, base_url: str, api_key: str, *, deadline: float = DEADLINE_SECONDS) -> None:
        super().__init__(base_url, api_key, deadline)

    def __repr__(self) -> str:
        return f"Client({self._http.base_url!r})"

    @cached_property
    def aio(self) -> AsyncTokens:
        """The same verbs, awaitable."""
        return AsyncTokens(self)

    def close(self) -> None:
        """Wait for awaitable verbs that run, and close the connections."""
        if "aio" in self.__dict__:
            self.aio.close()
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def deduct_tokens(
        self,
        organization: Id,
        user: Id,
        feature: str,
        units: int = 1,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Usage:
        """Charge a feature, all or nothing. A replay of the key returns the first answer."""
        path = f"/organizations/{as_uuid(organization, 'organization')}/charges"
        body = forms.spending(user, feature, units, metadata)
        return charge(self._post(path, body, idempotency_key))

    def reserve(
        self,
        organization: Id,
        user: Id,
        feature: str,
        units: int = 1,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        *,
        hold_for: timedelta | None = None,
    ) -> Reservation:
        """Hold the cost while the AI call runs; the hold ends by itself (default 10 minutes).

        `hold_for` is in whole seconds. AlreadySpent when the key was charged before: do not make
        the AI call again.
        """
        path = f"/organizations/{as_uuid(organization, 'organization')}/reservations"
        body = forms.spending(user, feature, units, metadata)
        # By its name a repetition knows its own hold from that of another call with the key.
        body |= {"holdSeconds": forms.seconds(hold_for), "id": str(uuid4())}
        return read(Reservation, self._post(path, body, idempotency_key))

    def deduct(
        self,
        reservation: Reservation,
        units: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Usage:
        """Charge what was used of a hold (all of it by default); the rest goes back."""
        body = {
            "units": None if units is None else inputs.units(units),
            "metadata": forms.metadata(metadata),
        }
        return charge(self._post(f"{_path(reservation)}/deduct", body))

    def release(self, reservation: Reservation, reason: str | None = None) -> None:
        """Give a hold back. Releasing twice is the same as once; ReservationOver if deducted."""
        body = {"reason": inputs.optional_text(reason, "reason")}
        self._post(f"{_path(reservation)}/release", body)

    @contextmanager
    def spend(
        self,
        organization: Id,
        user: Id,
        feature: str,
        units: int = 1,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        *,
        hold_for: timedelta | None = None,
    ) -> Iterator[Reservation]:
        """Hold the cost, let the body make the AI call, then charge what was held.

        An exception in the body charges nothing. A body that outlives the hold charges nothing and
        raises ReservationOver. A body may deduct or release the reservation itself.
        """
        held = self.reserve(
            organization, user, feature, units, metadata, idempotency_key, hold_for=hold_for
        )
        with self._around(held):
            yield held

    def refund(
        self,
        usage: Usage | Id,
        reason: str,
        *,
        organization: Id | None = None,
        idempotency_key: str | None = None,
    ) -> Usage:
        """Give back a charge, once. `usage` is a Usage, or its id together with `organization`."""
        organization_id, usage_id = inputs.owned(usage, organization, "usage")
        path = f"/organizations/{organization_id}/charges/{usage_id}/refund"
        reply = self._post(path, {"reason": inputs.said(reason, "reason")}, idempotency_key)
        said = reply.document or {}
        return charge(
            reply, id=said.get("usageId"), tokens_deducted=said.get("tokens"), tokens_waived=0
        )


def _path(reservation: Reservation) -> str:
    held = inputs.reservation(reservation)
    return f"/organizations/{held.organization_id}/reservations/{held.id}"
