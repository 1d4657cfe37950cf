"""Plays an organization's requests through its wallets: charged, refused, refunded, refreshed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from tokenlib.demo.cast import PERSONAS
from tokenlib.demo.demand import Request
from tokenlib.demo.moments import DAY, MINUTE, SECOND, moment, text
from tokenlib.demo.people import Organization
from tokenlib.demo.roles import PERIOD
from tokenlib.demo.wallet import Values, Wallet, stored
from tokenlib.domain import Feature

Log = Callable[[Values], object]
Contract = Mapping[str, int | None]

_PACK_LIFE = 365 * DAY
# Every so many charges one is given back at once.
_REFUNDED = 900
# The default limits of a member.
_LIMITS = {"requests_per_minute": 30, "seconds_between_requests": 3, "tokens_per_request": 10}
_REFUSED_STATUS = {"suspended": "organization_paused", "limited": "payment_failed"}


@dataclass(frozen=True, slots=True)
class Terms:
    """What the catalog says while the history is played."""

    features: Mapping[str, Feature]
    allowances: Mapping[tuple[str, str], int | None]
    token_types: tuple[str, ...]
    block: int  # by how much an unlimited wallet is topped up


@dataclass(slots=True)
class Refusal:
    """One row per user, feature, rule and minute."""

    token_type: str
    needed: int
    available: int
    first_at: int
    last_at: int
    data: dict[str, str | int]
    count: int = 1


class History:
    """What an organization leaves in the books up to `now`.

    `contract` has the allowances that differ from the plan's; each charge is handed to `log`.
    """

    def __init__(
        self,
        organization: Organization,
        contract: Contract,
        terms: Terms,
        now: int,
        random: Random,
        log: Log,
    ) -> None:
        self.organization = organization
        self.contract = contract
        self.wallets: dict[str, Wallet] = {}
        self.refusals: dict[tuple[str, str, str, int], Refusal] = {}
        self._role = organization.role
        self._users = [str(member.id) for member in organization.members]
        self._terms = terms
        self._now = now
        self._random = random
        self._log = log
        for token_type in terms.token_types:
            if token_type != "shared":
                planned = terms.allowances.get((self._role.plan, token_type), 0)
                self._open(token_type, contract.get(token_type, planned), self._role.joined_at)

    @property
    def charges(self) -> int:
        """How many charges the log has."""
        return sum(wallet.log_number for wallet in self.wallets.values())

    def play(self, requests: Iterable[Request]) -> None:
        """Answer the requests in their order, then bring the wallets up to now."""
        for request in requests:
            self._buy(request.at)
            self._answer(request)
        self._buy(self._now)
        until = self._now if self._role.attended else self._role.due(self._now) - 1
        for wallet in self.wallets.values():
            self._refresh(wallet, until)
            wallet.draw()

    def refusal_rows(self) -> list[Values]:
        """Its refusals, in the order of `stage_refusals`."""
        return [
            (
                str(self.organization.id),
                user,
                feature,
                rule,
                text(minute),
                refusal.token_type,
                refusal.needed,
                refusal.available,
                refusal.count,
                text(refusal.first_at),
                text(refusal.last_at),
                stored(refusal.data),
            )
            for (user, feature, rule, minute), refusal in self.refusals.items()
        ]

    def _open(self, token_type: str, allowance: int | None, at: int) -> Wallet:
        wallet = Wallet(
            str(self.organization.id),
            token_type,
            self._role.plan,
            allowance,
            PERIOD,
            self._terms.block,
            self._random,
            self._log,
        )
        wallet.open(at)
        self.wallets[token_type] = wallet
        return wallet

    def _buy(self, now: int) -> None:
        pack = self._role.pack
        if pack is not None and pack.bought_at <= now and "shared" not in self.wallets:
            shared = self._open("shared", 0, pack.bought_at)
            expires_at = pack.bought_at + _PACK_LIFE
            shared.buy(pack.bought_at, pack.source, pack.tokens, expires_at, "billing")

    def _refresh(self, wallet: Wallet, now: int) -> None:
        """End what is due; somebody looks every minute, as `serve` does."""
        while wallet.refresh_at <= now:
            wallet.refresh(min(wallet.refresh_at + 1 + int(self._random.random() * MINUTE), now))

    def _answer(self, request: Request) -> None:
        """The gate's decision, in its order: status, pause, plan, limits, balance."""
        feature = self._terms.features[request.feature]
        wallet = self.wallets[feature.token_type]
        self._refresh(wallet, request.at)
        rule = self._policy(request, wallet)
        if rule is None and wallet.balance < feature.cost:
            shared = self.wallets.get("shared")
            if wallet.allowance is None:
                wallet.top_up(request.at, feature.cost - wallet.balance)
            elif shared is not None and shared.balance >= feature.cost:
                wallet = shared
                self._refresh(wallet, request.at)
            else:
                rule = "insufficient_tokens"
        if rule is None:
            self._charge(request, wallet, feature)
        else:
            self._refuse(request, wallet, feature, rule)

    def _policy(self, request: Request, wallet: Wallet) -> str | None:
        role, at = self._role, request.at
        outage = role.outage
        if outage and outage.since <= at and (outage.until is None or at < outage.until):
            return _REFUSED_STATUS[outage.status]
        if role.member_paused_at and request.member == 0 and at >= role.member_paused_at:
            return "user_paused"
        if wallet.allowance == 0:
            return "feature_not_in_plan"
        return None if request.limit is None else "rate_limited"

    def _charge(self, request: Request, wallet: Wallet, feature: Feature) -> None:
        user = self._users[request.member]
        metadata = None
        if request.feature == "generate_goal":
            asked = moment(request.at)
            metadata = {"quarter": f"{asked.year}-Q{(asked.month + 2) // 3}"}
        usage = wallet.charge(request.at, user, request.feature, feature.cost, metadata)
        if self._random.random() * _REFUNDED < 1:
            wallet.refund(
                min(request.at + 20 * SECOND, self._now),
                usage,
                user,
                request.feature,
                feature.cost,
                str(PERSONAS["admin"].user_id),
                "The answer was unusable",
            )

    def _refuse(self, request: Request, wallet: Wallet, feature: Feature, rule: str) -> None:
        at, minute = request.at, request.at // MINUTE * MINUTE
        key = self._users[request.member], request.feature, rule, minute
        known = self.refusals.get(key)
        if known is not None:
            known.count, known.last_at, known.available = known.count + 1, at, wallet.balance
            return
        needed = feature.cost
        data: dict[str, str | int] = {"plan": wallet.plan}
        if rule == "rate_limited" and request.limit is not None:
            allowed = _LIMITS[request.limit]
            data |= {"limit": request.limit, "allowed": allowed}
            if request.limit == "tokens_per_request":
                needed *= allowed // feature.cost + 1
        self.refusals[key] = Refusal(feature.token_type, needed, wallet.balance, at, at, data)
