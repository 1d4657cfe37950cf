"""The questions: each of spec's section 6 and of the console's pages, and the operators' own SQL.

A question is asked as a page asks it, by an admin under row-level security. Its plain SQL is the
operators' own where they have one, else the same question answered from the log alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from tokenlib.reports import Reports


@dataclass(frozen=True)
class About:
    """What is asked about: now, the largest organization of the log, somebody there."""

    now: datetime
    largest: UUID
    other: UUID
    user: UUID

    def last(self, days: float) -> tuple[datetime, datetime]:
        """The window of so many days."""
        return self.now - timedelta(days=days), self.now

    def before(self, days: float) -> tuple[datetime, datetime]:
        """The window before that."""
        return self.now - timedelta(days=2 * days), self.now - timedelta(days=days)

    def parameters(self, days: float) -> dict[str, Any]:
        """The same for SQL."""
        since, until = self.last(days)
        return {"since": since, "until": until, "organization": self.largest}


@dataclass(frozen=True)
class Question:
    """A question, and its plain SQL with what both have to agree on."""

    name: str
    ask: Callable[[Reports, About], Any]
    days: float = 30
    plain: str = ""
    same: Callable[[Any], Any] | None = None


_FROM_NOW = {"at", "run_out_at", "overdue", "lag"}


def timeless(answer: Any) -> Any:
    """An answer without what counts from now, as two are asked a moment apart."""
    if is_dataclass(answer):
        answer = {field.name: getattr(answer, field.name) for field in fields(answer)}
    if isinstance(answer, dict):
        return {name: timeless(one) for name, one in answer.items() if name not in _FROM_NOW}
    if isinstance(answer, list | tuple):
        return [timeless(one) for one in answer]
    return answer


_IN_WINDOW = "created_at >= %(since)s and created_at < %(until)s"
_BY_FEATURE = (
    "select feature_used, count(*), sum(tokens_deducted)::bigint from ai_token_usage_log"
    f" where {_IN_WINDOW} group by feature_used order by 1"
)
_BY_DAY = (
    "select (created_at at time zone 'UTC')::date, sum(tokens_deducted)::bigint"
    f" from ai_token_usage_log where {_IN_WINDOW} group by 1 order by 1"
)
_TOP_ORGANIZATIONS = (
    "select o.name, sum(l.tokens_deducted)::bigint as tokens, count(*) from ai_token_usage_log l"
    " join organizations o on o.id = l.organization_id"
    " where l.created_at >= %(since)s and l.created_at < %(until)s"
    " group by o.id, o.name order by tokens desc, count(*) desc, o.id limit 10"
)
_TOP_USER = (
    "select user_id, sum(tokens_deducted)::bigint as tokens, count(*) from ai_token_usage_log"
    f" where {_IN_WINDOW} group by organization_id, user_id"
    " order by tokens desc, count(*) desc, organization_id, user_id limit 1"
)
_BY_RULE = (
    "select rule, sum(count)::bigint from ai_token_refusals"
    " where last_at >= %(since)s and last_at < %(until)s and data ->> 'mode' is null"
    " group by rule order by 1"
)


def _features(rows: Any) -> Any:
    return sorted((row.feature, row.uses, row.tokens) for row in rows if row.uses)


def _by_feature(days: float, said: str) -> Question:
    return Question(
        f"uses and tokens per feature, {said}",
        lambda ask, it: ask.usage_by_feature(*it.last(days)),
        days,
        _BY_FEATURE,
        _features,
    )


def _by_day(days: float) -> Question:
    return Question(
        f"tokens per day, {days} days",
        lambda ask, it: ask.usage_by_day(*it.last(days)),
        days,
        _BY_DAY,
        lambda rows: [(row.day, row.tokens) for row in rows if row.uses],
    )


OF_THE_OPERATORS = [
    _by_feature(1, "24 hours"),
    _by_feature(7, "7 days"),
    _by_feature(30, "30 days"),
    Question(
        "tokens per organization, 30 days, top 10",
        lambda ask, it: ask.top_organizations(*it.last(30)),
        30,
        _TOP_ORGANIZATIONS,
        lambda rows: [(row.name, row.tokens, row.uses) for row in rows],
    ),
    Question(
        "user with the most tokens, 24 hours",
        lambda ask, it: ask.top_users(*it.last(1), limit=1),
        1,
        _TOP_USER,
        lambda rows: [(row.user_id, row.tokens, row.calls) for row in rows],
    ),
    _by_day(7),
    _by_day(90),
    Question("stuck tokens", lambda ask, it: ask.stuck_tokens()),
    Question("reservations past expiry", lambda ask, it: ask.reservations(expired_only=True)),
    Question("periods past refresh, how many", lambda ask, it: len(ask.overdue_periods())),
    Question("sums that do not close", lambda ask, it: ask.sums_that_do_not_close()),
    Question("wallets of the largest organization", lambda ask, it: ask.wallets(it.largest)),
    Question("organizations at 80 %", lambda ask, it: ask.organizations(near=80)),
    Question("organizations at 100 %", lambda ask, it: ask.organizations(near=100)),
    Question("who runs out within a week", lambda ask, it: ask.run_outs()),
    Question(
        "refusals by reason, 30 days",
        lambda ask, it: ask.refusals_by_rule(*it.last(30)),
        30,
        _BY_RULE,
        lambda rows: sorted((row.rule, row.count) for row in rows if row.count),
    ),
    Question("organizations refused often", lambda ask, it: ask.frequent_refusals(*it.last(30))),
    Question("users refused often", lambda ask, it: ask.frequent_refusals(*it.last(30), by="user")),
    Question("who should upgrade", lambda ask, it: ask.upgrade_candidates(*it.last(30))),
    Question("refunds, 30 days", lambda ask, it: ask.refunds(*it.last(30))),
    Question(
        "cost against revenue, 30 days", lambda ask, it: ask.cost_against_revenue(*it.last(30))
    ),
]

OF_THE_CONSOLE = [
    Question("overview, 24 hours", lambda ask, it: ask.overview(*it.last(1))),
    Question("overview, 30 days", lambda ask, it: ask.overview(*it.last(30))),
    Question("overview, 90 days", lambda ask, it: ask.overview(*it.last(90))),
    Question("what needs attention", lambda ask, it: ask.attention()),
    Question("what moved since Monday", lambda ask, it: ask.movers()),
    Question("organizations, by name", lambda ask, it: ask.organizations()),
    Question("organizations, search", lambda ask, it: ask.organizations("0777")),
    Question(
        "organizations, most used",
        lambda ask, it: ask.organizations(sort="total_used", descending=True),
    ),
    Question("organizations, lowest level", lambda ask, it: ask.organizations(sort="level")),
    Question("organizations, first to run out", lambda ask, it: ask.organizations(sort="run_out")),
    Question("one organization", lambda ask, it: ask.organization(it.largest)),
    Question("its members", lambda ask, it: ask.members(it.largest)),
    Question("its entries", lambda ask, it: ask.ledger(it.largest)),
    Question(
        "its story of a wallet",
        lambda ask, it: ask.explain(it.largest, "general"),
    ),
    Question("its grants", lambda ask, it: ask.grants(it.largest)),
    Question(
        "its features, 30 days", lambda ask, it: ask.usage_by_feature(*it.last(30), it.largest)
    ),
    Question(
        "its days, 30 days",
        lambda ask, it: ask.usage_by_day(*it.last(30), organization_id=it.largest),
    ),
    Question(
        "its spenders, 30 days",
        lambda ask, it: ask.top_users(*it.last(30), organization_id=it.largest),
    ),
    Question("its refusals, 30 days", lambda ask, it: ask.refusals(*it.last(30), it.largest)),
    Question(
        "another one's days, 30 days",
        lambda ask, it: ask.usage_by_day(*it.last(30), organization_id=it.other),
    ),
    Question(
        "usage by feature and hour, 24 hours",
        lambda ask, it: ask.usage_series(*it.last(1), bucket="hour"),
    ),
    Question("usage by feature and day, 30 days", lambda ask, it: ask.usage_series(*it.last(30))),
    Question(
        "usage by feature and week, 90 days",
        lambda ask, it: ask.usage_series(*it.last(90), bucket="week"),
    ),
    Question(
        "usage by organization, 30 days",
        lambda ask, it: ask.usage_series(*it.last(30), "organization"),
    ),
    Question(
        "usage by organization, 90 days",
        lambda ask, it: ask.usage_series(*it.last(90), "organization"),
    ),
    Question("usage by user, 30 days", lambda ask, it: ask.usage_series(*it.last(30), "user")),
    Question("usage by plan, 30 days", lambda ask, it: ask.usage_series(*it.last(30), "plan")),
    Question(
        "the first 25 by organization, 30 days",
        lambda ask, it: ask.usage_series(*it.last(30), "organization", top=25),
    ),
    Question(
        "the 30 days before, by organization",
        lambda ask, it: ask.usage_before(*it.last(30), it.before(30), top=25),
    ),
    Question(
        "the 30 days before, by user",
        lambda ask, it: ask.usage_before(*it.last(30), it.before(30), "user", 25),
    ),
    Question(
        "the 7 days before, by organization",
        lambda ask, it: ask.usage_before(*it.last(7), it.before(7), top=25),
    ),
    Question(
        "the days before, by feature",
        lambda ask, it: ask.usage_series(*it.before(30), bucket="week", top=25),
    ),
    Question("totals of the 30 days before", lambda ask, it: ask.usage_totals(*it.before(30))),
    Question(
        "usage of a user by feature, 30 days",
        lambda ask, it: ask.usage_series(*it.last(30), organization_id=it.largest, user_id=it.user),
    ),
    Question("totals, 30 days", lambda ask, it: ask.usage_totals(*it.last(30))),
    Question("totals, 90 days", lambda ask, it: ask.usage_totals(*it.last(90))),
    Question(
        "totals of a plan, 30 days", lambda ask, it: ask.usage_totals(*it.last(30), plan="pro")
    ),
    Question(
        "totals of a feature, 30 days",
        lambda ask, it: ask.usage_totals(*it.last(30), feature="generate_goal"),
    ),
    Question(
        "totals of a user, 30 days", lambda ask, it: ask.usage_totals(*it.last(30), user_id=it.user)
    ),
    Question("the charges, a page", lambda ask, it: ask.usage_rows(*it.last(30))),
    Question(
        "the charges of a user, a page",
        lambda ask, it: ask.usage_rows(*it.last(30), user_id=it.user),
    ),
    Question("latest charges", lambda ask, it: ask.latest_charges()),
    Question("spenders by organization, 24 hours", lambda ask, it: ask.spenders(*it.last(1))),
    Question("spenders by organization, 30 days", lambda ask, it: ask.spenders(*it.last(30))),
    Question("spenders by user, 30 days", lambda ask, it: ask.spenders(*it.last(30), "user")),
    Question("abuse, 24 hours", lambda ask, it: ask.abuse(*it.last(1))),
    Question("abuse, 7 days", lambda ask, it: ask.abuse(*it.last(7))),
    Question("refusals, a page", lambda ask, it: ask.refusals(*it.last(30))),
    Question("plans changed from outside", lambda ask, it: ask.plan_drift()),
    Question("up to when usage is closed", lambda ask, it: ask.closing()),
    Question("findings", lambda ask, it: ask.findings()),
    Question("changes", lambda ask, it: ask.changes()),
    Question("what another cost would do", lambda ask, it: ask.preview_cost("generate_goal", 4)),
]

QUESTIONS = OF_THE_OPERATORS + OF_THE_CONSOLE
