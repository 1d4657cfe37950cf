"""The questions that the rollups answer, each with a window and a time zone."""

# ruff: noqa: ARG005 - they take what some of them need

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

from tokenlib.reports import Reports
from tokenlib.reports.organizations import OrganizationSort

NOW = datetime(2026, 3, 30, 9, 17, 23, 456789, tzinfo=UTC)
DAY = timedelta(days=1)
STEP = timedelta(minutes=5)
FEATURES = {
    "generate_leads": "lead_generation",
    "generate_goal": "goal_generation",
    "generate_insight": "general",
    "analyze_efficiency": "general",
    "taken_away": "general",
}

Question = Callable[[Reports, datetime, datetime, str], Any]
QUESTIONS: dict[str, Question] = {
    "usage_by_feature": lambda r, s, u, z: r.usage_by_feature(s, u),
    "usage_by_day": lambda r, s, u, z: r.usage_by_day(s, u, z),
    "usage_by_day, by feature": lambda r, s, u, z: r.usage_by_day(s, u, z, by_feature=True),
    "top_organizations": lambda r, s, u, z: r.top_organizations(s, u, 5),
    "top_users": lambda r, s, u, z: r.top_users(s, u, 5),
    "cost_against_revenue": lambda r, s, u, z: r.cost_against_revenue(s, u),
    "usage_totals": lambda r, s, u, z: r.usage_totals(s, u),
    "usage_totals of a feature": lambda r, s, u, z: r.usage_totals(s, u, feature="generate_goal"),
    "usage_series by day": lambda r, s, u, z: r.usage_series(s, u, "feature", "day", z, 2),
    "usage_series by week": lambda r, s, u, z: r.usage_series(s, u, "all", "week", z),
    "usage_series by hour": lambda r, s, u, z: r.usage_series(
        max(s, u - 3 * DAY), u, "feature", "hour", z
    ),
    "usage_series by organization": lambda r, s, u, z: r.usage_series(
        s, u, "organization", "day", z, 3
    ),
    "usage_series by user": lambda r, s, u, z: r.usage_series(s, u, "user", "day", z, 4),
    "usage_before": lambda r, s, u, z: r.usage_before(s, u, (s - (u - s), s), top=3),
    "usage_before, users": lambda r, s, u, z: r.usage_before(
        s, u, (s - 2 * DAY, u - DAY), "user", 4
    ),
    "usage_series by plan": lambda r, s, u, z: r.usage_series(s, u, "plan", "day", z),
    "usage_series by plan and week": lambda r, s, u, z: r.usage_series(s, u, "plan", "week", z, 1),
    "usage_series of a plan": lambda r, s, u, z: r.usage_series(
        s, u, "feature", "day", z, 3, plan="pro"
    ),
    "usage_series of a plan, a feature": lambda r, s, u, z: r.usage_series(
        s, u, "plan", "day", z, plan="enterprise", feature="generate_goal"
    ),
    "usage_totals of a plan": lambda r, s, u, z: r.usage_totals(s, u, plan="pro"),
    "usage_totals of no plan": lambda r, s, u, z: r.usage_totals(s, u, plan="starter"),
    "usage_totals of a plan, a feature": lambda r, s, u, z: r.usage_totals(
        s, u, plan="enterprise", feature="generate_goal"
    ),
    "spenders": lambda r, s, u, z: r.spenders(s, u, "organization", 5),
    "spenders, users": lambda r, s, u, z: r.spenders(s, u, "user", 5),
    "abuse": lambda r, s, u, z: r.abuse(s, u),
    "overview": lambda r, s, u, z: r.overview(s, u, z),
    "movers": lambda r, s, u, z: r.movers(z, 5),
    "run_outs": lambda r, s, u, z: r.run_outs(u - s, 7),
    "preview_cost": lambda r, s, u, z: [
        r.preview_cost(feature, (u - s).days % 9 + 1, 4) for feature in FEATURES
    ],
    "refusals_by_rule": lambda r, s, u, z: r.refusals_by_rule(s, u),
    "frequent_refusals": lambda r, s, u, z: r.frequent_refusals(s, u, 5),
    "frequent_refusals, users": lambda r, s, u, z: r.frequent_refusals(s, u, 5, "user"),
    "frequent_refusals, users and plans": lambda r, s, u, z: r.frequent_refusals(
        s, u, 5, "user", "plan"
    ),
    "upgrade_candidates": lambda r, s, u, z: r.upgrade_candidates(s, u, 3),
    "plan_drift": lambda r, s, u, z: r.plan_drift(),
    "organizations": lambda r, s, u, z: [
        r.organizations(sort=sort, limit=4, offset=(u - s).days % 11, descending=s.minute % 2 == 0)
        for sort in get_args(OrganizationSort)
    ],
    "organizations, narrowed": lambda r, s, u, z: [
        r.organizations(**narrow, sort=sort, limit=5)
        for narrow in (
            {"level": "red"},
            {"level": "none"},
            {"near": 80},
            {"near": 100},
            {"plan": "pro"},
            {"search": "organization 1"},
        )
        for sort in ("name", "level", "run_out")
    ],
    "movers of any two windows": lambda r, s, u, z: r.database.rows(
        "select * from tokenlib.movers(%(since)s, %(until)s, %(before)s, %(before_until)s, 3)",
        {
            "since": max(s, NOW - 12 * DAY),
            "until": max(u, NOW - 12 * DAY),
            "before": max(s, NOW - 15 * DAY),
            "before_until": max(u, NOW - 15 * DAY),
        },
    ),
}
OF_ONE: dict[str, Callable[[Reports, datetime, datetime, str, UUID], Any]] = {
    "usage_by_feature": lambda r, s, u, z, o: r.usage_by_feature(s, u, o),
    "usage_by_day": lambda r, s, u, z, o: r.usage_by_day(s, u, z, o, by_feature=True),
    "top_users": lambda r, s, u, z, o: r.top_users(s, u, 5, o),
    "usage_totals": lambda r, s, u, z, o: r.usage_totals(s, u, organization_id=o),
    "usage_series": lambda r, s, u, z, o: r.usage_series(s, u, timezone=z, organization_id=o),
    "usage_series by user": lambda r, s, u, z, o: r.usage_series(
        s, u, "user", "day", z, 2, organization_id=o
    ),
    "usage_before": lambda r, s, u, z, o: r.usage_before(
        s, u, (s - DAY, s), "user", 2, organization_id=o
    ),
    "spenders": lambda r, s, u, z, o: r.spenders(s, u, "user", 5, o),
    "abuse": lambda r, s, u, z, o: r.abuse(s, u, organization_id=o),
    "spenders, organizations": lambda r, s, u, z, o: r.spenders(s, u, limit=5, organization_id=o),
}
OF_A_PERSON: dict[str, Callable[[Reports, datetime, datetime, UUID, UUID], Any]] = {
    "usage_totals of a user": lambda r, s, u, o, p: r.usage_totals(s, u, user_id=p),
    "usage_totals of a user there": lambda r, s, u, o, p: r.usage_totals(
        s, u, organization_id=o, user_id=p
    ),
}
