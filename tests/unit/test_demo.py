"""The demo's history as it is played in memory; what the database says of it is in tests/db."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tokenlib.demo import PERSONAS, SCENARIOS, legacy, world
from tokenlib.demo.history import History, Terms
from tokenlib.demo.moments import HOUR, micros, moment
from tokenlib.demo.rhythm import Rhythm
from tokenlib.demo.roles import DAYS
from tokenlib.demo.wallet import Values, stored
from tokenlib.domain import Feature

NOW = datetime(2026, 11, 20, 3, 20, tzinfo=UTC)  # a Friday, in the middle of the night
TYPES = ("lead_generation", "goal_generation", "strategy_analysis", "forecast", "general", "shared")
FEATURES = {
    feature: Feature(feature, feature, token_type, cost)
    for feature, token_type, cost in (
        ("generate_leads", "lead_generation", 5),
        ("generate_goal", "goal_generation", 3),
        ("analyze_strategy", "strategy_analysis", 2),
        ("forecast_revenue", "forecast", 4),
        ("generate_insight", "general", 1),
        ("analyze_efficiency", "general", 2),
    )
}
ALLOWANCES: dict[tuple[str, str], int | None] = {
    (plan, token_type): allowance
    for plan, allowances in (
        ("starter", (0, 0, 0, 0, 0)),
        ("pro", (50, 20, 100, 30, 50)),
        ("enterprise", (500, 200, 1000, 200, 500)),
    )
    for token_type, allowance in zip(TYPES, allowances, strict=False)
}
TERMS = Terms(FEATURES, ALLOWANCES, TYPES, 1000)


@dataclass(frozen=True)
class Charge:
    """A row of the log, by name."""

    organization_id: str
    user_id: str
    token_type: str
    tokens: int
    balance: int
    at: datetime
    number: int


@dataclass(frozen=True)
class Played:
    """A whole history."""

    histories: list[History]
    log: list[Values]

    @property
    def charges(self) -> list[Charge]:
        """The log."""
        return [
            Charge(
                str(row[1]),
                str(row[2]),
                str(row[3]),
                int(str(row[5])),
                int(str(row[6])),
                datetime.fromisoformat(str(row[8])),
                int(str(row[9])),
            )
            for row in self.log
        ]

    def of(self, situation: str) -> History:
        """The history of the organization that shows a situation."""
        (found,) = [h for h in self.histories if h.organization.role.situation == situation]
        return found

    def digest(self) -> str:
        """Of every row that would be stored."""
        rows: list[object] = list(self.log)
        for history in self.histories:
            rows += [history.organization, history.contract, history.refusal_rows()]
            for wallet in history.wallets.values():
                rows += [wallet.row(), wallet.events, wallet.grant_rows()]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def play(seed: int = 20, now: datetime = NOW, charges: int = 6_000) -> Played:
    log: list[Values] = []
    rhythm = Rhythm(now, DAYS)
    known = world.people(seed, rhythm.now, legacy.COUNT, legacy.COUNT * legacy.MEMBERS)
    return Played(list(world.histories(seed, rhythm, known, TERMS, charges, log.append)), log)


@pytest.fixture(scope="module")
def played() -> Played:
    return play(charges=world.CHARGES)


def test_the_same_seed_and_now_give_the_same_rows() -> None:
    assert play().digest() == play().digest()


def test_another_seed_or_now_gives_other_rows() -> None:
    digests = {
        play().digest(),
        play(seed=21).digest(),
        play(now=NOW + timedelta(seconds=1)).digest(),
    }
    assert len(digests) == 3


def test_there_are_sixty_organizations_four_hundred_users_and_200_000_charges(
    played: Played,
) -> None:
    assert len(played.histories) + legacy.COUNT == 60
    members = sum(len(history.organization.members) for history in played.histories)
    assert members + legacy.COUNT * legacy.MEMBERS == 400
    assert abs(len(played.log) - 200_000) < 500


def test_names_and_addresses_are_plainly_made_up(played: Played) -> None:
    organizations = [history.organization for history in played.histories]
    assert len({organization.name for organization in organizations}) == len(organizations)
    members = [member for organization in organizations for member in organization.members]
    assert len({member.id for member in members}) == len(members)
    assert all(member.email.endswith("@example.org") for member in members)
    # The hash chains are computed over ASCII.
    assert all((member.name + member.email).isascii() for member in members)


def test_fixed_ids_never_change() -> None:
    assert PERSONAS["admin"].user_id == UUID("946b9eb8-3d2d-5af5-9a86-199b5c156908")
    assert SCENARIOS["healthy"].organization_id == UUID("57ef9a5a-71be-5c35-a60d-fb818fd13c01")
    assert PERSONAS["member"].user_id == SCENARIOS["healthy"].user_id
    assert PERSONAS["member"].organization_id == SCENARIOS["healthy"].organization_id


def test_each_wallet_counts_up_moves_forward_and_never_owes(played: Played) -> None:
    last: dict[tuple[str, str], Charge] = {}
    for charge in played.charges:
        wallet = charge.organization_id, charge.token_type
        before = last.get(wallet)
        assert charge.number == (before.number + 1 if before else 1)
        assert before is None or before.at <= charge.at
        assert charge.balance >= 0
        assert charge.at <= NOW
        last[wallet] = charge


def test_figures_of_each_wallet_close(played: Played) -> None:
    for history in played.histories:
        for wallet in history.wallets.values():
            remaining = sum(g.remaining for g in wallet.grants if g.closed_at is None)
            assert remaining == wallet.balance
            assert wallet.pending == 0
            assert wallet.used >= 0


def test_requests_rise_up_to_now_even_at_night(played: Played) -> None:
    assert _rises(played.charges, NOW, str(played.of("burst").organization.id))
    noon = NOW.replace(hour=12)
    afternoon = play(now=noon, charges=100_000)
    assert _rises(afternoon.charges, noon, str(afternoon.of("burst").organization.id))


def _rises(charges: Iterable[Charge], now: datetime, but: str) -> bool:
    hours = Counter(
        (now - charge.at) // timedelta(hours=1)
        for charge in charges
        if charge.organization_id != but
    )
    # By three hours, so that chance does not decide: 12 to 9, 9 to 6, 6 to 3, 3 to 0 hours ago.
    steps = [sum(hours[ago] for ago in range(start, start + 3)) for start in (9, 6, 3, 0)]
    return steps == sorted(set(steps)) and steps[-1] > 5 * steps[0]


def test_weekends_are_quiet_and_use_grows(played: Played) -> None:
    days = Counter(charge.at.date() for charge in played.charges)
    weekdays = [count for day, count in days.items() if day.weekday() < 5]
    weekends = [count for day, count in days.items() if day.weekday() >= 5]
    assert sum(weekends) / len(weekends) < sum(weekdays) / len(weekdays) / 3
    weeks = [
        sum(days[(NOW - timedelta(days=ago)).date()] for ago in range(start, start + 7))
        for start in (99, 64, 29, 1)
    ]
    assert weeks == sorted(set(weeks))


def test_one_organization_carries_a_large_share(played: Played) -> None:
    tokens: Counter[str] = Counter()
    for charge in played.charges:
        tokens[charge.organization_id] += charge.tokens
    (first, most), (_, next_most) = tokens.most_common(2)
    assert first == str(played.of("heavy").organization.id)
    assert most > tokens.total() / 4
    assert most > 2 * next_most


def test_only_the_abusive_user_passes_500_tokens_an_hour(played: Played) -> None:
    by_user: dict[str, list[Charge]] = defaultdict(list)
    for charge in sorted(played.charges, key=lambda charge: charge.at):
        by_user[charge.user_id].append(charge)
    most = {user: _most_in_an_hour(charges) for user, charges in by_user.items()}
    abusive = str(played.of("burst").organization.members[0].id)
    assert most.pop(abusive) > 500
    assert max(most.values()) < 100


def _most_in_an_hour(charges: list[Charge]) -> int:
    window: deque[Charge] = deque()
    total = most = 0
    for charge in charges:
        window.append(charge)
        total += charge.tokens
        while charge.at - window[0].at > timedelta(hours=1):
            total -= window.popleft().tokens
        most = max(most, total)
    return most


def test_contracts_leave_room_and_plans_run_out(played: Played) -> None:
    under_contract = [h for h in played.histories if h.contract]
    assert len(under_contract) > 5
    short = {
        history.organization.role.situation
        for history in played.histories
        if any(rule == "insufficient_tokens" for _, _, rule, _ in history.refusals)
    }
    assert short
    assert not any(
        rule == "insufficient_tokens" for h in under_contract for _, _, rule, _ in h.refusals
    )


def test_every_rule_and_limit_has_refused_in_the_last_weeks(played: Played) -> None:
    since = micros(NOW - timedelta(days=21))
    refusals = [
        (rule, refusal)
        for history in played.histories
        for (_, _, rule, minute), refusal in history.refusals.items()
        if minute > since
    ]
    assert {rule for rule, _ in refusals} == {
        "feature_not_in_plan",
        "insufficient_tokens",
        "organization_paused",
        "payment_failed",
        "rate_limited",
        "user_paused",
    }
    assert {refusal.data.get("limit") for _, refusal in refusals} - {None} == {
        "requests_per_minute",
        "seconds_between_requests",
        "tokens_per_request",
    }


def test_wallets_refresh_every_thirty_days_of_their_own(played: Played) -> None:
    for history in played.histories:
        role = history.organization.role
        for wallet in history.wallets.values():
            assert wallet.refresh_at > micros(NOW) or not role.attended
            begun = datetime.fromisoformat(str(wallet.row()[10]))
            assert (moment(wallet.refresh_at) - begun) == timedelta(days=30)
            assert wallet.refresh_at - wallet.opened_at >= 30 * 24 * HOUR


def test_scenarios_stand_where_they_start(played: Played) -> None:
    def quest_tokens(name: str) -> int:
        return played.of(name).wallets["goal_generation"].balance

    assert (quest_tokens("healthy"), quest_tokens("empty")) == (20, 2)
    # The goodwill that makes it 3 is granted by a verb.
    assert quest_tokens("low") == 2
    assert all(wallet.used == 0 for wallet in played.of("healthy").wallets.values())


def test_documents_are_written_as_jsonb_prints_them() -> None:
    written = stored({"source": "pack_500", "kind": "purchase", "amount": 500})
    assert written == '{"kind": "purchase", "amount": 500, "source": "pack_500"}'
