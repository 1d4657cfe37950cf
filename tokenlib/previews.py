"""What a staff action would do, before anybody confirms it.

The action itself runs, its result is read, and the transaction is rolled back: the rule is not
written twice, and whoever may not act may not look either. It takes the locks of the action for as
long as three short statements take, and the service role's timeouts bound that (roles.sql).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from tokenlib import answers, inputs
from tokenlib.catalog import CatalogVerbs
from tokenlib.db import Row, as_uuid, statements
from tokenlib.domain import Preview, Usage
from tokenlib.staff import grant_params, raise_refusal

Id = UUID | str


class PreviewVerbs(CatalogVerbs):
    """What the verbs of staff would do; each raises what its verb would raise."""

    def preview_grant(
        self,
        actor: UUID,
        organization: Id,
        token_type: str,
        amount: int,
        *,
        kind: Literal["purchase", "gift", "adjustment"] = "gift",
        effective_at: datetime | None = None,
        expires_at: datetime | None = None,
    ) -> Preview:
        """What `staff_grant` would do now; raises what it would raise."""
        params = grant_params(token_type, amount, kind, "preview", effective_at, expires_at, None)
        preview, row = self._preview(actor, "grant", organization, **params)
        later = row["created_at"] if effective_at is not None else None
        text = f"Takes effect on {later:%Y-%m-%d %H:%M} UTC." if later else ""
        return Preview(preview.before, preview.after, text)

    def preview_plan_change(self, actor: UUID, organization: Id, plan: str) -> Preview:
        """What `staff_change_plan` would do now, per token type; raises what it would raise."""
        return self._preview(actor, "change_plan", organization, plan=inputs.text(plan, "plan"))[0]

    def preview_refund(
        self, actor: UUID, usage: Usage | Id, organization: Id | None = None
    ) -> Preview:
        """What `staff_refund` would do now; raises what it would raise.

        Within the period the charge is undone; later, tokens come as a grant for one period.
        """
        organization_id, usage_id = inputs.owned(usage, organization, "usage")
        preview, row = self._preview(actor, "refund", organization_id, usage_id=usage_id, key=None)
        used = {wallet.token_type: wallet.total_used for wallet in preview.before}
        undone = any(wallet.total_used < used.get(wallet.token_type, 0) for wallet in preview.after)
        feature = self.catalog().features.get(row["feature"])
        charge = f"{row['tokens']} charged for {feature.title if feature else row['feature']}"
        text = (
            f"{charge} come back, and the period counts as not having used them."
            if undone
            else f"{charge} come as a grant: their period is over. It lives one period."
        )
        return Preview(preview.before, preview.after, text)

    def _preview(
        self, actor: UUID, verb: str, organization: Id, **params: Any
    ) -> tuple[Preview, Row]:
        """Run the action itself, look, and roll it back: the rule is not written twice."""
        organization_id = as_uuid(organization, "organization")
        params |= {"actor": as_uuid(actor, "actor"), "organization_id": organization_id}
        params["reason"] = "preview"
        wallets = {"organization_id": organization_id, "token_type": None}
        named = statements("gate")["balances"]
        with self.database.transaction() as connection:
            try:
                found = connection.exec_driver_sql(named, wallets).mappings().all()
                asked = connection.exec_driver_sql(statements("staff")[verb], params)
                row = dict(asked.mappings().one())
                left = connection.exec_driver_sql(named, wallets).mappings().all()
            finally:
                connection.rollback()
        raise_refusal(self, params, row)
        before, after = (
            tuple(answers.balance(dict(one)) for one in rows) for rows in (found, left)
        )
        return Preview(before, after), row
