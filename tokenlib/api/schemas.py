"""What is asked and answered beyond the two old endpoints: camelCase outside, ours inside.

What is not known is refused, and nothing is converted: "3" is no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    AliasGenerator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)
from pydantic.alias_generators import to_camel

from tokenlib.domain import MAX_TOKENS, MAX_UNITS, Balance, GrantKind, Mode, OrganizationStatus
from tokenlib.reports.explain import Story
from tokenlib.reports.series import UsageRow
from tokenlib.reports.wallets import EntryRow


def _no_number(value: object) -> object:
    if isinstance(value, str | datetime | None):
        return value
    raise ValueError("must be a time as text, with a time zone")


def _in_utc(value: datetime) -> datetime:
    # PostgreSQL knows offsets up to 16 hours only.
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a time that a calendar has") from None


def text(most: int) -> Any:
    """Text that PostgreSQL can keep and that says something."""
    return Field(min_length=1, max_length=most, pattern=r"^[^\x00]*$")


# Named in the catalog, which is the database's; a name without a blank or a control character.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,100}$", examples=["generate_goal"])]
Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_no_number, json_schema_input_type=AwareDatetime),
    AfterValidator(_in_utc),
]
Units = Annotated[int, Field(strict=True, ge=1, le=MAX_UNITS)]
Tokens = Annotated[int, Field(strict=True, ge=1, le=MAX_TOKENS)]
NOT_BLANK = r"^[^\x00]*[^\x00\s][^\x00]*$"
Reason = Annotated[str, Field(min_length=1, max_length=500, pattern=NOT_BLANK)]


class Question(BaseModel):
    """A body that is asked."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)


class Answer(BaseModel):
    """A body that is answered."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(serialization_alias=to_camel), from_attributes=True
    )


class InvalidField(Answer):
    """One thing that is wrong with a request."""

    field: str
    problem: str


class Problem(Answer):
    """Why there is no other answer (RFC 9457). `code` is stable, `detail` is for people."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "type": "/api/v1/docs#insufficient-tokens",
                "title": "Payment Required",
                "status": 402,
                "detail": "Insufficient tokens. Need 3, have 2. Tokens refresh on 2026-04-01.",
                "code": "insufficient_tokens",
                "requestId": "5f0c3f5f3d0b4f0c9a3b1f6f3c2d1e0f",
                "tokenType": "goal_generation",
                "needed": 3,
                "available": 2,
            }
        },
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[InvalidField] | None = None


# Spending ----------------------------------------------------------------------------------------


class _Spend(Question):
    feature: Name
    units: Units = 1
    user_id: UUID | None = Field(
        None, description="The member who spends. Needed with an API key; a person is their own."
    )
    metadata: dict[str, Any] | None = Field(None, description="JSON of at most 16 KiB.")


class ChargeQuestion(_Spend):
    """Charge a feature at once."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"feature": "generate_goal", "metadata": {"quarter": "2026-Q2"}}
        }
    )


class ReservationQuestion(_Spend):
    """Hold the cost of a feature while the AI call runs."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"feature": "generate_goal", "units": 2, "holdSeconds": 300}}
    )

    hold_seconds: Annotated[int, Field(strict=True, ge=1, le=86_400)] | None = Field(
        None, description="The life of the hold; 10 minutes unless said."
    )
    id: UUID | None = Field(
        None,
        description="Your name for the hold, new for each call and the same in its repetitions: the"
        " same Idempotency-Key in another call is then told `in_progress` or `already_spent`.",
    )


class SettleQuestion(Question):
    """Charge what was used of a hold, all of it unless said; the rest goes back."""

    model_config = ConfigDict(json_schema_extra={"example": {"units": 1}})

    units: Units | None = None
    metadata: dict[str, Any] | None = None


class ReleaseQuestion(Question):
    """Give a hold back."""

    model_config = ConfigDict(json_schema_extra={"example": {"reason": "The user cancelled"}})

    reason: Reason | None = None


class ReasonQuestion(Question):
    """Why something is done; it is on record."""

    model_config = ConfigDict(json_schema_extra={"example": {"reason": "The answer was empty"}})

    reason: Reason


class Charge(Answer):
    """One charge as the usage log has it. `tokensWaived` is what the switch let through."""

    id: UUID
    organization_id: UUID
    user_id: UUID | None
    feature: str
    token_type: str
    tokens_deducted: int
    tokens_waived: int
    remaining_balance: int
    created_at: datetime


class Reservation(Answer):
    """Tokens held while the AI call runs; it ends deducted, released, or by itself."""

    id: UUID
    organization_id: UUID
    user_id: UUID
    feature: str
    token_type: str
    units: int
    tokens: int
    remaining_balance: int
    expires_at: datetime


class Released(Answer):
    """A hold that was given back."""

    id: UUID
    organization_id: UUID
    token_type: str
    remaining_balance: int


class Refund(Answer):
    """A charge that was given back."""

    usage_id: UUID
    organization_id: UUID
    user_id: UUID | None
    feature: str
    token_type: str
    tokens: int
    remaining_balance: int
    created_at: datetime


class Enough(Answer):
    """Whether the balance would pay; who asks, payment states and limits do not matter."""

    has_enough: bool


class Verdict(Answer):
    """Whether the user may run the feature now, and the rule that would refuse."""

    allowed: bool
    rule: str | None
    message: str
    needed: int
    available: int
    token_type: str
    refresh_date: datetime | None
    retry_after: float | None


# Reading -----------------------------------------------------------------------------------------


class Wallet(Answer):
    """One wallet, current: `totalAllocated` = `balance` + `reserved` + `totalUsed`.

    `allowance` is what the plan gives per period; null means unlimited.
    """

    token_type: str
    balance: int
    reserved: int
    total_used: int
    total_allocated: int
    allowance: int | None
    period_start: datetime
    refresh_date: datetime
    last_used_at: datetime | None


class Balances(Answer):
    """Every wallet of an organization, in the catalog's order."""

    organization_id: UUID
    wallets: list[Wallet]


class Totals(Answer):
    """Totals of an organization over its wallets, and each wallet."""

    organization_id: UUID
    total_balance: int
    total_reserved: int
    total_used: int
    total_allocated: int
    refresh_date: datetime | None
    wallets: list[Wallet]

    @classmethod
    def of(cls, organization_id: UUID, wallets: Sequence[Balance]) -> Totals:
        """The sums over these wallets."""
        return cls(
            organization_id=organization_id,
            total_balance=sum(wallet.balance for wallet in wallets),
            total_reserved=sum(wallet.reserved for wallet in wallets),
            total_used=sum(wallet.total_used for wallet in wallets),
            total_allocated=sum(wallet.total_allocated for wallet in wallets),
            refresh_date=min((wallet.refresh_date for wallet in wallets), default=None),
            wallets=[Wallet.model_validate(wallet) for wallet in wallets],
        )


class HistoryRow(Answer):
    """One charge of the past. `metadata` is what came with it, or null once it was erased."""

    id: UUID
    user_id: UUID | None
    feature: str
    token_type: str
    units: int
    tokens: int
    waived: int
    remaining_balance: int
    refunded: bool
    reservation_id: UUID | None
    metadata: Mapping[str, Any] | None
    created_at: datetime


class History(Answer):
    """Charges, the latest first. `nextCursor` asks for the page after this one; null: the last."""

    rows: list[HistoryRow]
    next_cursor: str | None

    @classmethod
    def of(cls, rows: Sequence[UsageRow], next_cursor: str | None) -> History:
        """One page."""
        return cls(rows=[HistoryRow.model_validate(row) for row in rows], next_cursor=next_cursor)


EntryKind = Literal[
    "charge",
    "opening",
    "refresh",
    "plan_change",
    "top_up",
    "grant",
    "grant_scheduled",
    "grant_expired",
    "reserve",
    "release",
    "hold_expired",
    "refund",
    "finding_settled",
    "metadata_erased",
    "archived",
]


class Entry(Answer):
    """One entry of a wallet: a charge, or another event, with the balance after it.

    The three changes are signed, and `balanceAfter` is what could be spent then. `actor` is the
    user of a charge, else who caused the event.
    """

    id: UUID
    kind: EntryKind
    token_type: str
    feature: str | None
    actor: str | None
    reason: str | None
    balance_change: int
    reserved_change: int
    used_change: int
    balance_after: int
    waived: int
    refunded: bool
    effective_at: datetime
    created_at: datetime


class Entries(Answer):
    """Entries, the latest first. `nextCursor` asks for the page after this one; null: the last."""

    rows: list[Entry]
    next_cursor: str | None

    @classmethod
    def of(cls, rows: Sequence[EntryRow], next_cursor: str | None) -> Entries:
        """One page."""
        return cls(rows=[Entry.model_validate(row) for row in rows], next_cursor=next_cursor)


class Movement(Answer):
    """Movements of one kind: how many, and their sum (below 0: it lowered the balance)."""

    kind: str
    detail: str | None
    label: str
    count: int
    tokens: int
    waived: int


class Explanation(Answer):
    """How a balance came to be: `opening` + the sum of `lines` = `balance` + `held`, always."""

    organization_id: UUID
    token_type: str
    at: datetime
    opened_by: str
    opened_at: datetime
    opening: int
    lines: list[Movement]
    holds: int
    held: int
    balance: int
    used: int
    unlimited: bool
    refresh_date: datetime

    @classmethod
    def of(cls, story: Story) -> Explanation:
        """The library's story."""
        return cls.model_validate(story)


class CatalogFeature(Answer):
    """What one unit of a feature costs, and which token type pays.

    `unitSize` is how many output units of an answer one unit pays; null: a use is one unit.
    """

    feature: str
    title: str
    token_type: str
    cost: int
    unit_size: int | None


class Allowance(Answer):
    """What a plan gives of a token type per period; null is unlimited."""

    plan: str
    token_type: str
    allowance: int | None


class CatalogAnswer(Answer):
    """Plans, token types, features, costs and allowances as they stand now."""

    features: list[CatalogFeature]
    token_types: list[str]
    plans: list[str]
    allowances: list[Allowance]


# Staff -------------------------------------------------------------------------------------------


class GrantQuestion(Question):
    """Add tokens. `shared` pays for every feature."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"tokenType": "goal_generation", "amount": 10, "reason": "Goodwill"}
        }
    )

    token_type: Name
    amount: Tokens
    kind: Literal["purchase", "gift", "adjustment"] = "gift"
    source: Annotated[str, text(200)] = "api"
    effective_at: Moment | None = None
    expires_at: Moment | None = None
    reason: Reason


class GrantAnswer(Answer):
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


class PlanQuestion(Question):
    """Move to another plan: the new allowance less what was used, never a refill."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"plan": "enterprise", "reason": "Upgrade, invoice 7"}}
    )

    plan: Name
    reason: Reason


class StatusQuestion(Question):
    """The payment state; AI runs only while it is `active`. `suspended` pauses it."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"status": "suspended", "reason": "Asked for"}}
    )

    status: OrganizationStatus
    reason: Reason


class PauseQuestion(Question):
    """Pause or resume one user."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"paused": True, "reason": "A script gone wild"}}
    )

    paused: Annotated[bool, Field(strict=True)] = True
    reason: Reason


class SwitchQuestion(Question):
    """The emergency switch, for one organization or everyone; back by itself at `until`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"mode": "log_only", "reason": "A launch"}}
    )

    mode: Mode
    organization_id: UUID | None = None
    until: Moment | None = None
    reason: Reason


class RequestLimitQuestion(Question):
    """How many charges and holds a minute are taken from an organization; null is no own limit."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"requestsPerMinute": 600, "reason": "A quiet neighbour"}}
    )

    requests_per_minute: Tokens | None
    reason: Reason


class Done(Answer):
    """It was done and is on record."""

    organization_id: UUID | None
    done: Literal[True] = True


# API keys ----------------------------------------------------------------------------------------

ScopeName = Literal["check", "spend", "read", "admin", "metrics"]


class KeyQuestion(Question):
    """Make a key, for one organization or (without) for all. Limits are its own; null is off."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "The product's server",
                "scopes": ["check", "spend"],
                "reason": "Launch",
            }
        }
    )

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=NOT_BLANK)]
    scopes: Annotated[
        list[ScopeName], Field(min_length=1, max_length=5, json_schema_extra={"uniqueItems": True})
    ]
    organization_id: UUID | None = None
    expires_at: Moment | None = None
    requests_per_minute: Tokens | None = None
    seconds_between_requests: Tokens | None = None
    tokens_per_request: Tokens | None = None
    limit_users: Annotated[bool, Field(strict=True)] = False
    reason: Reason


class RotateQuestion(Question):
    """Give a key a new secret; the one before it is good for a while."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"overlapSeconds": 86400, "reason": "Once a year"}}
    )

    overlap_seconds: Annotated[int, Field(strict=True, ge=0, le=2_592_000)] = 86_400
    reason: Reason


class NewKey(Answer):
    """A key and its secret. `secret` is shown once: a replay of the call has null there."""

    id: UUID
    organization_id: UUID | None
    start: str
    secret: str | None


class KeyRow(Answer):
    """A key as it stands. `start` is what it begins with; `oldUntil` when its old secret ends."""

    id: UUID
    organization_id: UUID | None
    name: str
    start: str
    scopes: list[ScopeName]
    owner_id: UUID
    requests_per_minute: int | None
    seconds_between_requests: float | None
    tokens_per_request: int | None
    limit_users: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    old_until: datetime | None
    revoked_at: datetime | None


class Keys(Answer):
    """The keys that the caller manages, the latest first."""

    keys: list[KeyRow]


class Health(Answer):
    """Whether the process lives, or can serve."""

    status: Literal["ok", "unavailable"]
