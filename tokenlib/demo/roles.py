"""What each organization does in the demo: its plan, its dates, how much it uses, what befell it.

The plans' allowances are small (pro gives 250 tokens a period, enterprise 2,400), so most charges
of the history come from organizations under a contract: an enterprise plan with larger allowances
of its own, sized after what they use.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tokenlib.demo.cast import PERSONAS
from tokenlib.demo.moments import DAY, HOUR, MINUTE
from tokenlib.domain import OrganizationStatus, Plan

PERIOD = 30 * DAY
# Nobody joined earlier than this; with periods of 30 days the first ones are in their fourth.
DAYS = 120


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which the organization's AI was off; it still is where `until` is None."""

    status: OrganizationStatus
    actor: str
    reason: str
    since: int
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack of tokens that was bought."""

    source: str
    tokens: int
    bought_at: int


@dataclass(frozen=True, slots=True)
class Role:
    """One organization's part. Times are microseconds."""

    situation: str  # what it shows, or "" for one of the crowd
    plan: Plan
    members: int
    joined_at: int
    level: float = 0.0  # share of its allowances that it uses, over its whole life
    contract: float = 0.0  # under a contract: its weight among those
    unlimited: bool = False
    attended: bool = True  # False: its last period has ended and nobody has come since
    quiet_since: int | None = None  # no request after this
    quests_now: int | None = None  # quests in the current period, where the scenario says how many
    pack: Pack | None = None
    outage: Outage | None = None
    burst_at: int | None = None  # when its first member began to send requests without pause
    member_paused_at: int | None = None  # when that member was paused

    def due(self, now: int) -> int:
        """When its latest period began, or, unattended, should have begun."""
        return self.joined_at + (now - self.joined_at) // PERIOD * PERIOD


def roles(random: Random, now: int, count: int) -> list[Role]:
    """The situations first, then a crowd that fills up to `count`."""
    known = _situations(now)
    crowd = [_one_of_the_crowd(random, index, now) for index in range(count - len(known))]
    return known + crowd


def _joined(now: int, due_days: float, periods: int = 4) -> int:
    """When somebody joined whose next refresh is in `due_days`, in the `periods`-th period."""
    return now + round(due_days * DAY) - periods * PERIOD


def _situations(now: int) -> list[Role]:
    def joined(due_days: float, periods: int = 4) -> int:
        return _joined(now, due_days, periods)

    hour = HOUR / DAY
    admin = str(PERSONAS["admin"].user_id)
    burst = now - 7 * HOUR
    suspended = Outage("suspended", admin, "Asked to stop all AI use", now - 3 * DAY)
    unpaid = Outage("limited", "billing", "Payment failed", now - 2 * DAY)
    was_suspended = Outage("suspended", admin, "Suspected misuse", now - 21 * DAY, now - 19 * DAY)
    was_unpaid = Outage("limited", "billing", "Payment failed", now - 12 * DAY, now - 11 * DAY)
    pack = Pack("pack_2000", 2000, now - 52 * DAY)
    return [
        Role("healthy", "pro", 6, joined(30 - 2 * hour), level=0.6, quiet_since=now - 2 * HOUR),
        Role("low", "pro", 5, joined(9), level=0.6, quests_now=6),
        Role("empty", "pro", 5, joined(6), level=0.75, quests_now=6),
        Role("starter", "starter", 3, joined(11), level=0.4),
        Role("paused", "pro", 4, joined(14), level=0.5, outage=suspended),
        Role("payment_failed", "pro", 4, joined(17), level=0.5, outage=unpaid),
        Role("unlimited", "enterprise", 12, joined(4), contract=0.5, unlimited=True),
        Role("about_to_refresh", "pro", 6, joined(3 * hour), level=0.6),
        Role("refresh_due", "pro", 5, joined(-3 * hour, 3), level=0.6, attended=False),
        Role("refreshed_yesterday", "pro", 6, joined(30 - 26 * hour), level=0.6),
        Role("pack", "pro", 7, joined(7), level=1.3, pack=pack),
        Role("gift", "pro", 5, joined(16, 3), level=0.7),
        Role("never_used", "pro", 3, joined(19, 1)),
        Role("plan_changed_outside", "pro", 6, joined(13), level=0.8),
        Role("heavy", "enterprise", 48, joined(2), contract=3.8),
        Role(
            "burst",
            "enterprise",
            14,
            joined(5),
            contract=0.9,
            burst_at=burst,
            member_paused_at=burst + 41 * MINUTE,
        ),
        Role("live_hold", "enterprise", 10, joined(8), level=0.5),
        Role("expired_hold", "enterprise", 9, joined(12), level=0.5),
        Role("refunds", "enterprise", 10, joined(10), level=0.6),
        Role("was_suspended", "enterprise", 9, joined(22), level=0.4, outage=was_suspended),
        Role("was_unpaid", "pro", 5, joined(20), level=0.5, outage=was_unpaid),
    ]


def _one_of_the_crowd(random: Random, index: int, now: int) -> Role:
    kind = ("contract", "pro", "starter", "pro", "enterprise", "pro", "starter")[index % 7]
    joined = _joined(now, random.uniform(1, 29), random.choice((4, 4, 4, 3, 3, 2, 1)))
    if kind == "starter":
        return Role("", "starter", random.randint(1, 3), joined, level=random.random())
    if kind == "pro":
        return Role("", "pro", random.randint(3, 7), joined, level=random.uniform(0.2, 1.1))
    if kind == "enterprise":
        level = random.uniform(0.25, 0.7)
        return Role("", "enterprise", random.randint(6, 10), joined, level=level)
    # The large ones have been here from the beginning.
    joined = _joined(now, random.uniform(0.5, 8))
    weight = random.uniform(0.7, 1.3)
    return Role("", "enterprise", random.randint(12, 18), joined, contract=weight)
