"""Who asks for what and when, before any gate has looked at it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from operator import itemgetter
from random import Random
from typing import NamedTuple

from tokenlib.demo.moments import HOUR, MINUTE, SECOND
from tokenlib.demo.people import Organization
from tokenlib.demo.rhythm import Rhythm
from tokenlib.demo.roles import PERIOD, Role
from tokenlib.domain import Feature

# What users reach for, in shares of their requests.
TASTE = {
    "generate_insight": 38,
    "analyze_strategy": 25,
    "analyze_efficiency": 13,
    "generate_leads": 9,
    "forecast_revenue": 8,
    "generate_goal": 7,
}
_SOON = "seconds_between_requests"
_LARGE = "tokens_per_request"
_OFTEN = "requests_per_minute"
_MOST_STARTER_REQUESTS = 45
_BURST_REQUESTS = 600
_BURST_LENGTH = 38 * MINUTE
_BURST_REFUSALS = 64
_PAUSED_REFUSALS = 9
# Every so many requests somebody asks again too soon, or for too much at once.
_TOO_SOON = 900
_TOO_LARGE = 4000


class Request(NamedTuple):
    """One request of a member, by place, for one unit of a feature; `limit` names a limit hit."""

    at: int
    member: int
    feature: str
    limit: str | None = None


def within_plan(
    organization: Organization,
    features: Mapping[str, Feature],
    allowances: Mapping[tuple[str, str], int | None],
    rhythm: Rhythm,
    random: Random,
    scale: float,
) -> list[Request]:
    """Requests of an organization that lives on its plan: `level` times what the plan gives."""
    role = organization.role
    periods = (rhythm.now - role.joined_at) / PERIOD
    requests: list[Request] = []
    by_type: dict[str, int] = {}
    for name in TASTE:
        by_type[features[name].token_type] = by_type.get(features[name].token_type, 0) + 1
    for name in TASTE:
        feature = features[name]
        allowance = allowances.get((role.plan, feature.token_type)) or 0
        tokens = role.level * allowance * periods * scale / by_type[feature.token_type]
        count = round(tokens / feature.cost * random.uniform(0.8, 1.2))
        if role.plan == "starter":
            count = round(role.level * _MOST_STARTER_REQUESTS * scale * TASTE[name] / 100)
        requests += _requests(role, [name], count, rhythm, random)
    return _finished(role, requests, rhythm, random)


def under_contract(
    organization: Organization, count: int, rhythm: Rhythm, random: Random
) -> list[Request]:
    """`count` requests of an organization whose allowances follow its use."""
    role = organization.role
    features = random.choices(list(TASTE), weights=list(TASTE.values()), k=count)
    if role.burst_at is None:
        return _finished(role, _requests(role, features, count, rhythm, random), rhythm, random)
    usual = _requests(role, features, max(0, count - _BURST_REQUESTS), rhythm, random)
    return _finished(role, usual + _burst(role.burst_at, random), rhythm, random)


def contract(
    requests: Iterable[Request], features: Mapping[str, Feature], role: Role
) -> dict[str, int]:
    """Allowances of which the largest period of these requests leaves a quarter, rounded up."""
    used: dict[tuple[str, int], int] = {}
    for request in requests:
        feature = features[request.feature]
        period = feature.token_type, (request.at - role.joined_at) // PERIOD
        used[period] = used.get(period, 0) + feature.cost
    most: dict[str, int] = {feature.token_type: 100 for feature in features.values()}
    for (token_type, _), tokens in used.items():
        most[token_type] = max(most[token_type], tokens)
    return {token_type: _round_up(tokens * 4 // 3) for token_type, tokens in most.items()}


def _requests(
    role: Role, features: list[str], count: int, rhythm: Rhythm, random: Random
) -> list[Request]:
    """`count` requests over the organization's life; `features` one for each, or one for all."""
    moments = rhythm.moments(random, count, role.joined_at, rhythm.now)
    # Some members use much more than others, nobody most of it.
    weights = list(accumulate(1 / (place + 1) ** 0.5 for place in range(role.members)))
    members = random.choices(range(role.members), cum_weights=weights, k=len(moments))
    each = features * len(moments) if len(features) == 1 else features
    return list(map(Request, moments, members, each))


def _finished(role: Role, requests: list[Request], rhythm: Rhythm, random: Random) -> list[Request]:
    """In order of time, with what the role takes away and adds."""
    due = role.due(rhythm.now)
    last = rhythm.now if role.quiet_since is None else role.quiet_since
    if not role.attended:
        last = due
    requests = [request for request in requests if request.at < last]
    if role.quests_now is not None:
        requests = [r for r in requests if r.at < due or r.feature != "generate_goal"]
        step = (rhythm.now - due) // (role.quests_now + 1)
        requests += [
            Request(due + step * (turn + 1), turn % role.members, "generate_goal")
            for turn in range(role.quests_now)
        ]
    soon = random.sample(requests, int(len(requests) / _TOO_SOON + random.random()))
    large = random.sample(requests, int(len(requests) / _TOO_LARGE + random.random()))
    requests += [r._replace(at=r.at + SECOND, limit=_SOON) for r in soon]
    requests += [r._replace(at=r.at + 20 * SECOND, limit=_LARGE) for r in large]
    requests.sort(key=itemgetter(0))
    return [request for request in requests if request.at < rhythm.now]


def _burst(start: int, random: Random) -> list[Request]:
    """One member's script: a request every four seconds, more refused, then refused for good."""
    step = _BURST_LENGTH // _BURST_REQUESTS
    features = random.choices(("generate_insight", "analyze_strategy"), (1, 4), k=_BURST_REQUESTS)
    requests = [Request(start + turn * step, 0, feature) for turn, feature in enumerate(features)]
    requests += [
        Request(start + random.randrange(_BURST_LENGTH), 0, "generate_insight", _OFTEN)
        for _ in range(_BURST_REFUSALS)
    ]
    return requests + [
        Request(start + HOUR + turn * 7 * MINUTE, 0, "analyze_strategy")
        for turn in range(_PAUSED_REFUSALS)
    ]


def _round_up(tokens: int) -> int:
    """To two leading digits."""
    unit = 10 * int("1" + "0" * max(0, len(str(tokens)) - 3))
    return -(-tokens // unit) * unit
