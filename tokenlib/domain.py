"""The words of the product as frozen dataclasses, and the arithmetic that needs no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

Plan = Literal["starter", "pro", "enterprise"]
TokenType = Literal[
    "lead_generation", "goal_generation", "strategy_analysis", "forecast", "general", "shared"
]
OrganizationStatus = Literal["active", "limited", "expired", "suspended"]
Mode = Literal["enforce", "log_only", "off"]
ReservationState = Literal["held", "deducted", "released", "expired"]
GrantKind = Literal["allowance", "purchase", "gift", "adjustment", "refund", "adopted"]
StaffRole = Literal["admin", "support"]
Scope = Literal["check", "spend", "read", "admin", "metrics"]
Level = Literal["green", "yellow", "red", "none"]

MAX_UNITS = 1_000_000
MAX_TOKENS = 1_000_000_000
MAX_METADATA_BYTES = 16_384
MAX_METADATA_DEPTH = 100
MOST_OUTPUT_UNITS = 9_999_999_999
MAX_KEY_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Balance:
    """One wallet, current: `allocated = balance + reserved + used` of this period, in tokens.

    `balance` is what can be spent now; what is held is in `reserved`. `allowance` is what the plan
    gives per period; None means unlimited.
    """

    organization_id: UUID
    token_type: str
    balance: int
    reserved: int
    total_used: int
    total_allocated: int
    allowance: int | None
    period_start: datetime
    refresh_date: datetime
    last_used_at: datetime | None

    @property
    def unlimited(self) -> bool:
        """Whether the plan sets no limit on this token type."""
        return self.allowance is None

    @property
    def level(self) -> Level:
        """Colour by what is left: green above 50 %, yellow from 20 to 50 %, red below 20 %."""
        return level(self.balance, self.total_allocated)


@dataclass(frozen=True, slots=True)
class Usage:
    """One charge as the usage log has it. `tokens_deducted` is 0 when the switch waived it.

    `booked` is False for a charge that TOKENLIB_SWITCH let through while the database could not
    answer: no log row has this id, and its balance of 0 says nothing.
    """

    id: UUID
    organization_id: UUID
    user_id: UUID | None
    feature: str
    token_type: str
    tokens_deducted: int
    tokens_waived: int
    remaining_balance: int
    created_at: datetime
    replayed: bool = False
    booked: bool = True


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens held while the AI call runs; it ends deducted, released or expired.

    `booked` is False for one that TOKENLIB_SWITCH let through while the database could not answer:
    it holds nothing.
    """

    id: UUID
    organization_id: UUID
    user_id: UUID
    feature: str
    token_type: str
    units: int
    tokens: int
    remaining_balance: int
    expires_at: datetime
    booked: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether `can_use` would let the user run the feature now, and the rule that would refuse."""

    allowed: bool
    rule: str | None
    message: str
    needed: int
    available: int
    token_type: str
    refresh_date: datetime | None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """An addition of tokens; `balance` is its wallet's after it."""

    id: UUID
    organization_id: UUID
    token_type: str
    kind: GrantKind
    source: str
    amount: int
    balance: int
    effective_at: datetime
    expires_at: datetime | None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Stats:
    """Totals of an organization over its wallets, and each wallet."""

    organization_id: UUID
    total_balance: int
    total_reserved: int
    total_used: int
    total_allocated: int
    refresh_date: datetime | None
    by_type: tuple[Balance, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """A catalog entry: what one unit of the feature costs, and which token type pays.

    `unit_size` is how many output units of an answer one unit pays; None: a use is one unit.
    """

    feature: str
    title: str
    token_type: str
    cost: int
    unit_size: int | None = None

    def units(self, output_units: int) -> int:
        """The units to charge for an answer of so many output units: started ones count whole."""
        return 1 if self.unit_size is None else max(1, -(-output_units // self.unit_size))


@dataclass(frozen=True, slots=True)
class Catalog:
    """Plans, token types, features, costs and allowances as the database has them now."""

    features: Mapping[str, Feature]
    token_types: tuple[str, ...]
    plans: tuple[str, ...]
    allowances: Mapping[tuple[str, str], int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SwitchSetting:
    """A mode that the database has in force, and who set it.

    `organization_id` is None for everyone's; `until` is None when it stays until it is changed.
    `enforce` is here only as an organization's own, while everyone's is another.
    """

    organization_id: UUID | None
    mode: Mode
    until: datetime | None
    actor: str | None
    reason: str | None
    since: datetime | None


@dataclass(frozen=True, slots=True)
class SwitchState:
    """Where the emergency switch is not on enforce, and who is kept out of it.

    `override` is this process's TOKENLIB_SWITCH, which goes before every setting. `answered` is
    False when the database could not tell its settings.
    """

    override: Mode | None
    settings: tuple[SwitchSetting, ...]
    answered: bool = True

    @property
    def lets_through(self) -> bool:
        """Whether some charge is let through that no balance pays: time for a banner."""
        if self.override is not None:
            return self.override != "enforce"
        return any(setting.mode != "enforce" for setting in self.settings)


@dataclass(frozen=True, slots=True)
class Limits:
    """Abuse limits of each user; None is off. The alert refuses nothing, it marks the user."""

    requests_per_minute: int | None
    seconds_between_requests: Decimal | None
    tokens_per_request: int | None
    output_units_per_request: int | None
    alert_tokens_per_hour: int | None
    failed_attempts: int | None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of the HTTP API. `organization_id` None: for every organization.

    `secret` is what the caller shows. It is there once, in what made or rotated the key; the
    database has only an HMAC of it, and `start`, by which people know the key.
    """

    id: UUID
    organization_id: UUID | None
    name: str
    start: str
    scopes: tuple[str, ...]
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Preview:
    """What an action would do: every wallet of the organization before and after it, in tokens.

    Nothing was done. `text` says what the balances do not show.
    """

    before: tuple[Balance, ...]
    after: tuple[Balance, ...]
    text: str = ""

    @property
    def changed(self) -> tuple[tuple[Balance | None, Balance], ...]:
        """The wallets whose figures would change, before (None: it would be new) and after."""
        before = {wallet.token_type: wallet for wallet in self.before}
        pairs = ((before.get(wallet.token_type), wallet) for wallet in self.after)
        return tuple(pair for pair in pairs if pair[0] != pair[1])


@dataclass(frozen=True, slots=True)
class Problem:
    """Something `verify` found wrong: which wallet, which entry, and what."""

    organization_id: UUID
    token_type: str
    kind: str
    entry: str
    detail: str


def level(balance: int, allocated: int) -> Level:
    """Colour of what is left of `allocated`; "none" for 0 of 0 (not in this plan)."""
    if allocated <= 0:
        return "none"
    # Integers, so that 50 % and 20 % fall on the right side of each threshold.
    if balance * 2 > allocated:
        return "green"
    return "yellow" if balance * 5 >= allocated else "red"


def uses_left(balance: int, cost: int) -> int:
    """How many whole uses of a feature the balance buys."""
    return max(balance, 0) // cost


def plain(value: Any) -> Any:
    """A dataclass, UUID, time or Decimal as plain JSON-ready data. Times in UTC end with Z."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
