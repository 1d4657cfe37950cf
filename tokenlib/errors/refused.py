"""A rule said no; nothing was charged."""

from __future__ import annotations

from datetime import datetime
from math import ceil
from typing import ClassVar
from uuid import UUID

from tokenlib.domain import plain
from tokenlib.errors.base import TokenlibError


class Refused(TokenlibError):
    """A rule said no. Nothing was charged; the refusal is on record under `rule`."""

    status = 402
    rule: ClassVar[str] = "refused"


class FeatureNotInPlan(Refused):
    """The organization's plan does not include the feature."""

    code = rule = "feature_not_in_plan"
    status = 403

    def __init__(self, feature: str, plan: str) -> None:
        self.feature, self.plan = feature, plan
        super().__init__(
            f"The {plan} plan does not include {feature}. Upgrade the plan to use it.",
            feature=feature,
            plan=plan,
        )


class InsufficientTokens(Refused):
    """Too few tokens are free: `needed`, `available`, and the next refresh."""

    code = rule = "insufficient_tokens"

    def __init__(
        self, token_type: str, needed: int, available: int, refresh_date: datetime | None
    ) -> None:
        self.token_type, self.needed, self.available = token_type, needed, available
        self.refresh_date = refresh_date
        when = f" Tokens refresh on {refresh_date:%Y-%m-%d}." if refresh_date else ""
        super().__init__(
            f"Insufficient tokens. Need {needed}, have {available}.{when}"
            " Upgrade the plan or buy a pack to go on now.",
            token_type=token_type,
            needed=needed,
            available=available,
            refresh_date=plain(refresh_date),
        )


class OrganizationPaused(Refused):
    """AI is switched off for this organization by an operator."""

    code = rule = "organization_paused"
    status = 403

    def __init__(self, organization_id: UUID) -> None:
        self.organization_id = organization_id
        super().__init__(
            "AI features are paused for this organization. Contact support to resume them.",
            organization_id=str(organization_id),
        )


class PaymentFailed(OrganizationPaused):
    """AI is off because the last payment failed; balances are kept."""

    code = rule = "payment_failed"
    status = 402

    def __init__(self, organization_id: UUID) -> None:
        super().__init__(organization_id)
        self.message = (
            "AI features are off because the last payment failed. Balances are kept and return"
            " with the payment."
        )
        self.args = (self.message,)


class UserPaused(Refused):
    """AI is switched off for this one user."""

    code = rule = "user_paused"
    status = 403

    def __init__(self, user_id: UUID) -> None:
        self.user_id = user_id
        super().__init__(
            "AI features are paused for this user. Contact an administrator to resume them.",
            user_id=str(user_id),
        )


class RateLimited(Refused):
    """Too many or too large requests: `limit` names the rule, `retry_after` is in seconds."""

    code = rule = "rate_limited"
    status = 429

    def __init__(self, limit: str, allowed: int, retry_after: float | None) -> None:
        self.limit, self.allowed, self.retry_after = limit, allowed, retry_after
        wait = f" Try again in {ceil(retry_after)} s." if retry_after is not None else ""
        super().__init__(
            f"Limit reached: {limit.replace('_', ' ')}, {allowed} allowed.{wait}",
            limit=limit,
            allowed=allowed,
            retry_after=retry_after,
        )
