"""What staff do. The key acts as the admin who made it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from tokenlib import inputs
from tokenlib.client.calling import Calling, read, replayed
from tokenlib.db import as_uuid
from tokenlib.domain import Grant, Mode, OrganizationStatus, plain

Id = UUID | str


class StaffVerbs(Calling):
    """Each needs a reason, which is on record."""

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
        return replace(read(Grant, reply), replayed=replayed(reply))

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
