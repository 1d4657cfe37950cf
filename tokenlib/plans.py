"""What a wallet is given: initialize, change plan, grant, refresh."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid4

from tokenlib import answers, inputs
from tokenlib.db import Kind, Row, as_uuid, statements
from tokenlib.domain import Grant
from tokenlib.errors import AlreadyAMember, PlanMismatch, UnknownOrganization, UnknownPlan
from tokenlib.policy import PolicyVerbs

Id = UUID | str
_REFRESH_BATCH = 500


class PlanVerbs(PolicyVerbs):
    """The verbs that give tokens, and the host tables for products that have none."""

    def create_organization(self, name: str, plan: str = "starter") -> UUID:
        """Create an organization with its five wallets; return its id."""
        row = self._plan_call(
            "create_organization", name=inputs.text(name, "name"), plan=inputs.text(plan, "plan")
        )
        if row["id"] is None:
            raise UnknownPlan(plan, self.catalog().plans)
        return as_uuid(row["id"], "id")

    def add_member(self, organization: Id, name: str, email: str) -> UUID:
        """Add a user to an organization; return the user's id.

        An e-mail address stands once in an organization: AlreadyAMember says whose it is. Raises
        UnknownOrganization.
        """
        organization_id = as_uuid(organization, "organization")
        row = self._plan_call(
            "add_member",
            organization_id=organization_id,
            name=inputs.text(name, "name"),
            email=inputs.text(email, "email"),
        )
        if row["status"] == "already_a_member":
            raise AlreadyAMember(organization_id, row["id"])
        if row["status"] != "ok":
            raise UnknownOrganization(organization_id)
        return as_uuid(row["id"], "id")

    def initialize_tokens(
        self, organization: Id, plan: str | None = None, *, dry_run: bool = False
    ) -> int:
        """Make sure the five wallets exist, at the plan's allowance; return how many lacked.

        Safe to call twice. Raises PlanMismatch when `plan` is not the organization's plan.
        """
        organization_id = as_uuid(organization, "organization")
        row = self._plan_call(
            "initialize",
            "repeatable",
            organization_id=organization_id,
            plan=inputs.optional_text(plan, "plan"),
            dry_run=inputs.truth(dry_run, "dry_run"),
        )
        if row["status"] == "plan_mismatch":
            if plan not in (plans := self.catalog().plans):
                raise UnknownPlan(str(plan), plans)
            raise PlanMismatch(row["plan"], str(plan))
        if row["status"] != "ok":
            raise UnknownOrganization(organization_id)
        return int(row["created"])

    def organizations_to_initialize(self) -> list[UUID]:
        """Every organization that lacks some of its wallets."""
        rows = self.database.rows(statements("plans")["organizations_to_initialize"])
        return [row["id"] for row in rows]

    def change_plan(
        self, organization: Id, plan: str, *, actor: str = "api", reason: str | None = None
    ) -> None:
        """Move to another plan: the new allowance less what was used, never a refill."""
        organization_id = as_uuid(organization, "organization")
        row = self._plan_call(
            "change_plan",
            organization_id=organization_id,
            plan=inputs.text(plan, "plan"),
            actor=inputs.text(actor, "actor"),
            reason=inputs.optional_text(reason, "reason"),
        )
        if row["status"] == "unknown_plan":
            raise UnknownPlan(plan, self.catalog().plans)
        if row["status"] != "ok":
            raise UnknownOrganization(organization_id)

    def upgrade_tokens(
        self,
        organization: Id,
        token_type: str,
        additional_tokens: int,
        *,
        actor: str = "api",
        idempotency_key: str | None = None,
    ) -> Grant:
        """Add purchased tokens that survive refreshes and plan changes, without an expiry."""
        return self.grant(
            organization,
            token_type,
            inputs.amount(additional_tokens, "additional_tokens"),
            kind="purchase",
            source="upgrade",
            actor=actor,
            idempotency_key=idempotency_key,
        )

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
        actor: str = "api",
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> Grant:
        """Add tokens. Token type `shared` pays for every feature; `effective_at` may lie ahead.

        Times need a time zone. A replay of the key returns the first answer. Without a key it gets
        one of its own, so that a reply that was lost can be asked for again.
        """
        row = self._plan_call(
            "grant",
            "repeatable",
            organization_id=as_uuid(organization, "organization"),
            token_type=inputs.text(token_type, "token_type"),
            amount=inputs.amount(amount),
            kind=inputs.text(kind, "kind"),
            source=inputs.text(source, "source"),
            effective_at=inputs.moment(effective_at, "effective_at"),
            expires_at=inputs.moment(expires_at, "expires_at"),
            actor=inputs.text(actor, "actor"),
            reason=inputs.optional_text(reason, "reason"),
            key=inputs.key(idempotency_key) or str(uuid4()),
        )
        if row["status"] != "ok":
            row = {**row, "text": token_type}
            raise answers.refusal(row, key=idempotency_key, known=self.catalog().token_types)
        return answers.grant(row, kind, source)

    def refresh_tokens(self, organization: Id | None = None) -> int:
        """End every period that is due, once, whoever else does.

        Returns how many wallets were brought up to date: also those where only a hold ended, or a
        gift began or ended. Raises UnknownOrganization.
        """
        params = {
            "organization_id": (
                None if organization is None else self.known_organization(organization)
            ),
            "limit": _REFRESH_BATCH,
        }
        total = 0
        while True:  # batches, so that no transaction holds many locks for long
            refreshed: int = self._plan_call("refresh", "repeatable", **params)["refreshed"]
            total += refreshed
            if refreshed < _REFRESH_BATCH:
                return total

    def _plan_call(self, verb: str, kind: Kind = "once", /, **params: Any) -> Row:
        return self.database.call(statements("plans")[verb], params, kind)
