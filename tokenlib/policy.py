"""Who may use AI at all: payment states, pauses, and the emergency switch. No balance moves."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from tokenlib import answers, inputs
from tokenlib.catalog import CatalogVerbs
from tokenlib.db import as_uuid, statements
from tokenlib.domain import Mode, OrganizationStatus, SwitchSetting, SwitchState
from tokenlib.errors import DatabaseUnavailable, LoginRefused, NotMigrated


class PolicyVerbs(CatalogVerbs):
    """Operators' verbs; each is on record with its actor and reason in `ai_token_changes`."""

    def set_status(
        self, organization: UUID | str, status: OrganizationStatus, *, actor: str, reason: str
    ) -> None:
        """Set the payment state; AI runs only while it is `active`. Balances are kept."""
        self._change(
            "set_status",
            organization_id=as_uuid(organization, "organization"),
            status=inputs.text(status, "status"),
            actor=inputs.said(actor, "actor"),
            reason=inputs.said(reason, "reason"),
        )

    def pause_user(
        self,
        organization: UUID | str,
        user: UUID | str,
        paused: bool = True,
        *,
        actor: str,
        reason: str,
    ) -> None:
        """Pause or resume one user of an organization. Raises NotAMember."""
        self._change(
            "pause_user",
            organization_id=as_uuid(organization, "organization"),
            user_id=as_uuid(user, "user"),
            paused=inputs.truth(paused, "paused"),
            actor=inputs.said(actor, "actor"),
            reason=inputs.said(reason, "reason"),
        )

    def set_mode(
        self,
        mode: Mode,
        organization: UUID | str | None = None,
        *,
        until: datetime | None = None,
        actor: str,
        reason: str,
    ) -> None:
        """The emergency switch, for everyone or one organization; back by itself at `until`.

        `log_only` runs every rule and records what it would have refused, `off` runs none; both let
        the charge through, logged as waived, and touch no balance. Their `until` lies
        ahead, else InvalidInput. `enforce` until now takes an organization's own mode away; without
        `until` it is the organization's own and keeps it out of everyone's switch.
        """
        self._change(
            "set_mode",
            organization_id=(
                None if organization is None else as_uuid(organization, "organization")
            ),
            mode=inputs.text(mode, "mode"),
            until=inputs.moment(until, "until"),
            actor=inputs.said(actor, "actor"),
            reason=inputs.said(reason, "reason"),
        )

    def switch_state(self) -> SwitchState:
        """Where the switch is not on enforce: this process's TOKENLIB_SWITCH, and the database's
        modes with who set them and until when. While everyone's is not enforce, also who is kept
        out of it by an own `enforce`. Answers also while the database does not."""
        try:
            rows = self.database.rows(self.database.said("switch", "modes"))
        except (DatabaseUnavailable, LoginRefused, NotMigrated):
            return SwitchState(self.override, (), answered=False)
        return SwitchState(self.override, tuple(SwitchSetting(**row) for row in rows))

    def _change(self, verb: str, **params: Any) -> None:
        row = self.database.call(statements("plans")[verb], params)
        if row["status"] != "ok":
            raise answers.refusal({**params, **row})
