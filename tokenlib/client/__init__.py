"""The gate over HTTP: the library's verbs, errors and `spend`, without the database at hand.

client = tokenlib.Client("https://tokens.example.org", api_key)
with client.spend(organization, user, "generate_goal"):
    call_the_model()
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlencode
from uuid import UUID, uuid4

from tokenlib import inputs
from tokenlib.aio import AsyncTokens
from tokenlib.client import forms, wire
from tokenlib.client.http import Http, Reply
from tokenlib.db import as_uuid
from tokenlib.domain import (
    Balance,
    Catalog,
    Feature,
    Grant,
    Mode,
    OrganizationStatus,
    Reservation,
    Stats,
    Usage,
    Verdict,
    plain,
)
from tokenlib.errors import ConfigurationError, DatabaseUnavailable, RateLimited
from tokenlib.retry import Retry
from tokenlib.spending import SpendVerbs

Id = UUID | str
T = TypeVar("T")

# Longer than the library's: a server whose database is away asks for 5 seconds of patience.
DEADLINE_SECONDS = 15.0


class Client(SpendVerbs):
    """The gate behind `base_url`, with an API key. Thread-safe. Close it, or use it in a `with`.

    What the API decides by the key, who acts and whether users' limits hold, is no argument here.
    Whatever changes something has an idempotency key; so what got no answer, was told to come back
    or met a limit that ends in time is asked again until `deadline` seconds are over. Raises the
    library's errors: NotFound also for what the key may not see, LoginRefused for a key that is not
    good, ConfigurationError for an address that is not the API's, DatabaseUnavailable for a server
    that does not answer.
    """

    def __init__(self, base_url: str, api_key: str, *, deadline: float = DEADLINE_SECONDS) -> None:
        self._http = Http(base_url, api_key)
        self._retry = Retry(inputs.deadline(deadline), passing=(DatabaseUnavailable, RateLimited))

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

    # Spending ------------------------------------------------------------------------------------

    def can_use(self, organization: Id, user: Id, feature: str, units: int = 1) -> Verdict:
        """The whole verdict without charging, and the rule that would refuse."""
        asked = {
            "feature": inputs.text(feature, "feature"),
            "units": inputs.units(units),
            "userId": as_uuid(user, "user"),
        }
        path = f"/organizations/{as_uuid(organization, 'organization')}/can-use"
        return _read(Verdict, self._get(path, **asked))

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
        return _usage(self._post(path, body, idempotency_key))

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
        return _read(Reservation, self._post(path, body, idempotency_key))

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
        return _usage(self._post(f"{_path(reservation)}/deduct", body))

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
        return _usage(
            reply, id=said.get("usageId"), tokens_deducted=said.get("tokens"), tokens_waived=0
        )

    # Reading -------------------------------------------------------------------------------------

    def get_token_balance(self, organization: Id, token_type: str) -> Balance:
        """One wallet, current: a period that has ended is already refreshed."""
        organization_id = as_uuid(organization, "organization")
        name = quote(inputs.text(token_type, "token_type"), safe="")
        reply = self._get(f"/organizations/{organization_id}/balances/{name}")
        return _read(Balance, reply, organization_id=str(organization_id))

    def get_all_token_balances(self, organization: Id) -> tuple[Balance, ...]:
        """Every wallet of the organization, current, in the catalog's order."""
        path = f"/organizations/{as_uuid(organization, 'organization')}/balances"
        return _read(Stats, _wallets(self._get(path)), **_NO_TOTALS).by_type

    def get_token_stats(self, organization: Id) -> Stats:
        """Totals over the wallets, each wallet, and the next refresh."""
        path = f"/organizations/{as_uuid(organization, 'organization')}/stats"
        return _read(Stats, _wallets(self._get(path)))

    def catalog(self) -> Catalog:
        """The catalog as it stands now."""
        reply = self._get("/catalog")
        try:
            said = reply.document or {}
            features = [wire.read(Feature, each) for each in said["features"]]
            allowances = {
                (each["plan"], each["tokenType"]): each["allowance"] for each in said["allowances"]
            }
            return Catalog(
                features={each.feature: each for each in features},
                token_types=tuple(said["tokenTypes"]),
                plans=tuple(said["plans"]),
                allowances=allowances,
            )
        except (KeyError, TypeError, ValueError):
            raise _not_understood() from None

    # Staff: the key acts as the admin who made it ------------------------------------------------

    def grant(
        self,
        organization: Id,
        token_type: str,
        amount: int,
        *,
        kind: Literal["purchase", "gift", "adjustment"] = "gift",
        source: str = "grant",
        effective_at: datetime | None = None,
        expires_at: datetime | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> Grant:
        """Add tokens; here a reason is needed. A replay of the key returns the first answer."""
        body = {
            "tokenType": inputs.text(token_type, "token_type"),
            "amount": inputs.amount(amount),
            "kind": inputs.text(kind, "kind"),
            "source": inputs.text(source, "source"),
            "effectiveAt": plain(inputs.moment(effective_at, "effective_at")),
            "expiresAt": plain(inputs.moment(expires_at, "expires_at")),
            "reason": inputs.said(reason, "reason"),
        }
        path = f"/organizations/{as_uuid(organization, 'organization')}/grants"
        reply = self._post(path, body, idempotency_key)
        return replace(_read(Grant, reply), replayed=_replayed(reply))

    def upgrade_tokens(
        self,
        organization: Id,
        token_type: str,
        additional_tokens: int,
        *,
        idempotency_key: str | None = None,
    ) -> Grant:
        """Add purchased tokens that survive refreshes and plan changes, without an expiry."""
        return self.grant(
            organization,
            token_type,
            inputs.amount(additional_tokens, "additional_tokens"),
            kind="purchase",
            source="upgrade",
            reason="upgrade_tokens",
            idempotency_key=idempotency_key,
        )

    def change_plan(self, organization: Id, plan: str, *, reason: str | None = None) -> None:
        """Move to another plan: the new allowance less what was used. A reason is needed here."""
        body = {"plan": inputs.text(plan, "plan"), "reason": inputs.said(reason, "reason")}
        self._post(f"/organizations/{as_uuid(organization, 'organization')}/plan", body)

    def set_status(self, organization: Id, status: OrganizationStatus, *, reason: str) -> None:
        """Set the payment state; AI runs only while it is `active`. Balances are kept."""
        body = {"status": inputs.text(status, "status"), "reason": inputs.said(reason, "reason")}
        self._post(f"/organizations/{as_uuid(organization, 'organization')}/status", body)

    def pause_user(self, organization: Id, user: Id, paused: bool = True, *, reason: str) -> None:
        """Pause or resume one user of an organization. Raises NotAMember."""
        body = {"paused": inputs.truth(paused, "paused"), "reason": inputs.said(reason, "reason")}
        place = f"/organizations/{as_uuid(organization, 'organization')}"
        self._post(f"{place}/users/{as_uuid(user, 'user')}/pause", body)

    def set_mode(
        self,
        mode: Mode,
        organization: Id | None = None,
        *,
        until: datetime | None = None,
        reason: str,
    ) -> None:
        """The emergency switch, for everyone or one organization; back by itself at `until`."""
        place = None if organization is None else as_uuid(organization, "organization")
        body = {
            "mode": inputs.text(mode, "mode"),
            "organizationId": plain(place),
            "until": plain(inputs.moment(until, "until")),
            "reason": inputs.said(reason, "reason"),
        }
        self._post("/switch", body)

    # The way there -------------------------------------------------------------------------------

    def _get(self, path: str, **query: object) -> Reply:
        return self._ask(
            "GET", path + ((query and f"?{urlencode(query)}") or ""), None, None, query
        )

    def _post(self, path: str, body: Mapping[str, Any], key: str | None = None) -> Reply:
        """Do it under one key, the caller's or one that nobody else has, however often it takes."""
        key = forms.key(key)
        content = json.dumps({name: value for name, value in body.items() if value is not None})
        return self._ask("POST", path, content.encode(), key, {**body, "idempotencyKey": key})

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        key: str | None,
        asked: Mapping[str, Any],
    ) -> Reply:
        known = {wire.snake(name): value for name, value in asked.items()} | forms.places(path)

        def attempt(patience: float) -> Reply:
            reply = self._http.ask(method, path, body, key, patience)
            if 200 <= reply.status < 300 and reply.document is not None:
                return reply
            raise self._error(reply, known)

        return self._retry.run(attempt, repeatable=True)

    def _error(self, reply: Reply, asked: Mapping[str, Any]) -> Exception:
        said = reply.document or {}
        code = said.get("code")
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


_NO_TOTALS = dict.fromkeys(
    ("total_balance", "total_reserved", "total_used", "total_allocated", "refresh_date")
)


def _wallets(reply: Reply) -> Reply:
    """Wallets as our Stats have them: each with its organization."""
    said = dict(reply.document or {})
    place, wallets = said.get("organizationId"), said.pop("wallets", None)
    if not isinstance(wallets, list):
        raise _not_understood()
    return replace(
        reply, document={**said, "byType": [{**each, "organizationId": place} for each in wallets]}
    )


def _read(kind: type[T], reply: Reply, **more: Any) -> T:
    try:
        return wire.read(kind, reply.document or {}, **more)
    except (KeyError, TypeError, ValueError):
        raise _not_understood() from None


def _usage(reply: Reply, **more: Any) -> Usage:
    return _read(Usage, reply, replayed=_replayed(reply), **more)


def _replayed(reply: Reply) -> bool:
    return reply.headers.get("idempotency-replayed") == "true"


def _not_understood() -> ConfigurationError:
    return ConfigurationError("The server gave an answer that this version does not understand.")


def _path(reservation: Reservation) -> str:
    held = inputs.reservation(reservation)
    return f"/organizations/{held.organization_id}/reservations/{held.id}"
