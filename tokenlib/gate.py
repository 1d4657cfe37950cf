"""THE PATH: has enough → reserve → deduct | release, and `spend` around an AI call.

Each verb is one function call in the database, decided there under the wallet's lock. No AI call
ever happens inside a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

from tokenlib import answers, inputs, offbook
from tokenlib.attempts import AttemptVerbs
from tokenlib.db import Database, Kind, Row, as_uuid, statements
from tokenlib.domain import Balance, Catalog, Mode, Reservation, Stats, Usage, Verdict
from tokenlib.errors import (
    InvalidInput,
    TokenlibError,
    UnknownFeature,
    UnknownOrganization,
    UnknownTokenType,
)
from tokenlib.sharing import Caller, SharedCommit
from tokenlib.spending import SpendVerbs

Id = UUID | str
Let = TypeVar("Let", Usage, Reservation)


class GateVerbs(SpendVerbs, AttemptVerbs):
    """The verbs that decide and charge. Ids are UUIDs, taken as `uuid.UUID` or `str`."""

    def __init__(self, database: Database, override: Mode | None = None) -> None:
        super().__init__(database, override)
        self.shared = SharedCommit(database)

    def has_enough_tokens(self, organization: Id, feature: str, units: int = 1) -> bool:
        """Whether the balance would pay: the UI's question, never the decision.

        False for a feature that the plan does not include, whatever was bought. Who asks, payment
        states and limits do not matter here: `can_use` is the whole verdict.
        """
        organization_id = as_uuid(organization, "organization")
        params = {
            "organization_id": organization_id,
            "feature": inputs.text(feature, "feature"),
            "units": inputs.units(units),
        }
        try:
            if self.database.call_all(statements("gate")["pays"], params, "question"):
                return True
            row = self.database.call(statements("gate")["has_enough"], params, "question")
        except offbook.CANNOT_ANSWER:
            if not offbook.lets_through(self.override):
                raise
            return True
        if row["status"] in ("yes", "no"):
            return bool(row["status"] == "yes")
        if row["status"] == "unknown_feature":
            raise UnknownFeature(feature, self.catalog().features)
        raise UnknownOrganization(organization_id)

    def can_use(
        self,
        organization: Id,
        user: Id,
        feature: str,
        units: int = 1,
        *,
        output_units: int | None = None,
        limits: bool = False,
    ) -> Verdict:
        """The whole verdict without charging, and the rule that would refuse.

        `output_units`: what the metadata of the charge would say, for the limits on it.
        """
        try:
            row = self._call(
                "can_use",
                "question",
                organization_id=as_uuid(organization, "organization"),
                user_id=as_uuid(user, "user"),
                feature=inputs.text(feature, "feature"),
                units=inputs.units(units),
                output_units=inputs.output_units(output_units),
                limits=inputs.truth(limits, "limits"),
                mode=self.override,
            )
        except offbook.CANNOT_ANSWER:
            if not offbook.lets_through(self.override):
                raise
            return offbook.verdict(feature, units, self.override, self.known_catalog)
        allowed = row["status"] == "ok"
        error = None if allowed else self._refusal(row)
        if error is not None and not hasattr(error, "rule"):
            raise error
        return Verdict(
            allowed=allowed,
            rule=None if allowed else row["status"],
            message="Allowed." if error is None else str(error),
            needed=row["needed"],
            available=row["available"],
            token_type=row["token_type"],
            refresh_date=row["until"],
            retry_after=row["retry_after"],
        )

    def deduct_tokens(
        self,
        organization: Id,
        user: Id,
        feature: str,
        units: int = 1,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        *,
        limits: bool = False,
    ) -> Usage:
        """Charge a feature, all or nothing. A replay of the key returns the first answer.

        With a key a reply that was lost is asked for again, without one it is not. Raises a Refused
        (nothing charged, refusal on record), IdempotencyConflict, InProgress, NotAMember,
        UnknownFeature, UnknownOrganization, InvalidInput or DatabaseUnavailable.
        """
        organization_id, user_id = as_uuid(organization, "organization"), as_uuid(user, "user")
        with self._attempt(user_id, limits):
            asked = self.charge_request(
                organization_id,
                user_id,
                feature,
                units,
                metadata,
                idempotency_key,
                limits=limits,
            )
        return self.carry_out(asked)

    def charge_request(
        self,
        organization: Id,
        user: Id,
        feature: str,
        units: int = 1,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        *,
        limits: bool = False,
    ) -> dict[str, Any]:
        """What `deduct_tokens` asks the database. Raises InvalidInput."""
        return {
            "organization_id": as_uuid(organization, "organization"),
            "user_id": as_uuid(user, "user"),
            "feature": inputs.text(feature, "feature"),
            "units": inputs.units(units),
            "metadata": inputs.metadata(metadata),
            "key": inputs.key(idempotency_key),
            "limits": inputs.truth(limits, "limits"),
            "mode": self.override,
        }

    def carry_out(self, asked: Mapping[str, Any], caller: Caller | None = None) -> Usage:
        """Carry out what `charge_request` returned, for `caller` where one has entered already."""
        try:
            with self._attempt(asked["user_id"], asked["limits"]):
                row = self.shared.deduct(
                    asked, "once" if asked["key"] is None else "repeatable", caller
                )
        except offbook.CANNOT_ANSWER as error:
            request = (asked["organization_id"], asked["user_id"], asked["feature"], asked["units"])
            return self._let_through(error, "deduct_tokens", partial(offbook.usage, *request))
        if row["status"] != "ok":
            raise self._refusal(row, asked["key"])
        return answers.usage(row)

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
        limits: bool = False,
    ) -> Reservation:
        """Hold the cost while the AI call runs; the hold ends by itself (default 10 minutes).

        Raises what `deduct_tokens` raises, and AlreadySpent when the key was charged before: do not
        make the AI call again. Without a key it gets one of its own, so that a reply that was lost
        can be asked for again.
        """
        organization_id, user_id = as_uuid(organization, "organization"), as_uuid(user, "user")
        try:
            with self._attempt(user_id, limits):
                row = self._call(
                    "reserve",
                    "repeatable",
                    organization_id=organization_id,
                    user_id=user_id,
                    feature=inputs.text(feature, "feature"),
                    units=inputs.units(units),
                    metadata=inputs.metadata(metadata),
                    key=_key(idempotency_key),
                    hold_for=inputs.duration(hold_for, "hold_for"),
                    limits=inputs.truth(limits, "limits"),
                    mode=self.override,
                    id=uuid4(),
                )
        except offbook.CANNOT_ANSWER as error:
            return self._let_through(
                error,
                "reserve",
                partial(offbook.reservation, organization_id, user_id, feature, units, hold_for),
            )
        if row["status"] != "ok":
            raise self._refusal(row, idempotency_key)
        return answers.reservation(row, units)

    def deduct(
        self,
        reservation: Reservation,
        units: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Usage:
        """Charge what was used of a hold (all of it by default); the rest goes back.

        A replay returns the first answer. Raises ReservationOver when it was released or expired.
        """
        inputs.reservation(reservation)
        if units is not None:
            units = inputs.units(units)
        if not reservation.booked:
            return offbook.settled(reservation, units, self.known_catalog)
        try:
            row = self._call(
                "deduct_reservation",
                "repeatable",
                organization_id=reservation.organization_id,
                reservation_id=reservation.id,
                units=units,
                metadata=inputs.metadata(metadata),
            )
        except offbook.CANNOT_ANSWER as error:
            return self._let_through(error, "deduct", partial(offbook.settled, reservation, units))
        if row["status"] != "ok":
            raise self._refusal(row)
        return answers.usage(row)

    def release(
        self, reservation: Reservation, reason: str | None = None, *, actor: str | None = None
    ) -> None:
        """Give a hold back. Releasing twice is the same as once; ReservationOver if deducted."""
        inputs.reservation(reservation)
        if not reservation.booked:
            return
        try:
            row = self._call(
                "release",
                "repeatable",
                organization_id=reservation.organization_id,
                reservation_id=reservation.id,
                actor=inputs.optional_text(actor, "actor"),
                reason=inputs.optional_text(reason, "reason"),
            )
        except offbook.CANNOT_ANSWER as error:
            self._let_through(error, "release", lambda _catalog: reservation)
            return
        if row["status"] != "ok":
            raise self._refusal(row)

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
        limits: bool = False,
    ) -> Iterator[Reservation]:
        """Hold the cost, let the body make the AI call, then charge what was held.

        An exception in the body charges nothing. A body that outlives the hold charges nothing and
        raises ReservationOver. A body may deduct or release the reservation itself.
        """
        held = self.reserve(
            organization,
            user,
            feature,
            units,
            metadata,
            idempotency_key,
            hold_for=hold_for,
            limits=limits,
        )
        with self._around(held):
            yield held

    def refund(
        self,
        usage: Usage | Id,
        reason: str,
        *,
        organization: Id | None = None,
        actor: str = "api",
        idempotency_key: str | None = None,
    ) -> Usage:
        """Give back a charge, once, with its own entry. Returns what was given back.

        `usage` is a Usage, or its id together with `organization`. A replay of the key returns the
        first answer. Raises AlreadyRefunded, NothingToRefund, IdempotencyConflict or UnknownUsage.
        """
        organization_id, usage_id = inputs.owned(usage, organization, "usage")
        row = self._call(
            "refund",
            "repeatable",
            organization_id=organization_id,
            usage_id=usage_id,
            actor=inputs.text(actor, "actor"),
            reason=inputs.text(reason, "reason"),
            key=_key(idempotency_key),
        )
        if row["status"] != "ok":
            raise self._refusal(row, idempotency_key)
        return answers.usage({**row, "waived": 0})

    def get_token_balance(self, organization: Id, token_type: str) -> Balance:
        """One wallet, current: a period that has ended is already refreshed."""
        found = self._balances(organization, inputs.text(token_type, "token_type"))
        if found:
            return found[0]
        known = self.catalog().token_types
        if token_type not in known:
            raise UnknownTokenType(token_type, known)
        raise InvalidInput("token_type", answers.NO_PACK)

    def get_all_token_balances(self, organization: Id) -> tuple[Balance, ...]:
        """Every wallet of the organization, current, in the catalog's order."""
        return self._balances(organization, None)

    def get_token_stats(self, organization: Id) -> Stats:
        """Totals over the wallets, each wallet, and the next refresh."""
        wallets = self.get_all_token_balances(organization)
        return Stats(
            organization_id=as_uuid(organization, "organization"),
            total_balance=sum(wallet.balance for wallet in wallets),
            total_reserved=sum(wallet.reserved for wallet in wallets),
            total_used=sum(wallet.total_used for wallet in wallets),
            total_allocated=sum(wallet.total_allocated for wallet in wallets),
            refresh_date=min((wallet.refresh_date for wallet in wallets), default=None),
            by_type=wallets,
        )

    def _balances(self, organization: Id, token_type: str | None) -> tuple[Balance, ...]:
        params = {
            "organization_id": as_uuid(organization, "organization"),
            "token_type": token_type,
        }
        rows = self.database.call_all(statements("gate")["balances"], params, "question")
        return tuple(answers.balance(row) for row in rows)

    def _call(self, verb: str, kind: Kind, **params: Any) -> Row:
        return self.database.call(statements("gate")[verb], params, kind)

    def _let_through(
        self, error: TokenlibError, verb: str, answer: Callable[[Catalog | None], Let]
    ) -> Let:
        """The answer that is on no book, put on record; the error unless an operator said so."""
        if not offbook.lets_through(self.override):
            raise error
        let = answer(self.known_catalog)
        self.log.warning(
            "TOKENLIB_SWITCH=%s let %s through, on no book:"
            " organization %s, user %s, feature %s: %s",
            self.override,
            verb,
            let.organization_id,
            let.user_id,
            let.feature,
            error,
        )
        return let

    def _refusal(self, row: Row, key: str | None = None) -> Exception:
        known = self.catalog().features if row["status"] == "unknown_feature" else ()
        return answers.refusal(row, key=key, known=known)


def _key(given: str | None) -> str:
    """The caller's key, or one that nobody else has."""
    return inputs.key(given) or str(uuid4())
