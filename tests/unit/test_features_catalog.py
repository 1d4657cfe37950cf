"""The registry and the five features beside quests: each really computes from what it is given."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenlib.features import FEATURES, FeatureResult, InvalidInput

# A busy machine is no fault of the code.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = st.lists(
    st.text("abcdefghij", min_size=1, max_size=8), min_size=4, max_size=12, unique=True
)


def run(name: str, **values: Any) -> FeatureResult:
    return FEATURES[name].run(values)


def test_every_feature_of_the_catalog_is_there() -> None:
    assert list(FEATURES) == [
        "generate_leads",
        "generate_goal",
        "analyze_strategy",
        "forecast_revenue",
        "generate_insight",
        "analyze_efficiency",
    ]


@pytest.mark.parametrize("name", list(FEATURES))
def test_the_sample_runs_the_same_way_twice(name: str) -> None:
    feature = FEATURES[name]
    assert feature.name == name
    sample = feature.sample()
    result = feature.run(sample)
    assert result == feature.run(feature.sample())
    assert sample == feature.sample() == json.loads(json.dumps(feature.sample()))
    assert result.title
    assert result.summary.endswith(".")
    assert result.rows
    json.dumps([dict(row) for row in result.rows], allow_nan=False)


@pytest.mark.parametrize("name", list(FEATURES))
def test_editing_a_sample_leaves_the_example_alone(name: str) -> None:
    feature = FEATURES[name]
    edited = feature.sample()
    for value in edited.values():
        if isinstance(value, list):
            value.clear()
    edited.clear()
    assert feature.run(feature.sample()).rows


@pytest.mark.parametrize("name", list(FEATURES))
def test_missing_and_unknown_fields_are_named(name: str) -> None:
    feature = FEATURES[name]
    for field in feature.sample():
        short = feature.sample()
        del short[field]
        with pytest.raises(InvalidInput, match=f"^{field} is missing"):
            feature.run(short)
    with pytest.raises(InvalidInput, match=r"^typo is unknown; the fields are "):
        feature.run({**feature.sample(), "typo": 1})


def test_importing_the_features_brings_neither_the_client_nor_the_console() -> None:
    code = (
        "import sys, tokenlib.features, tokenlib.features.model\n"
        "print([m for m in ('openai', 'streamlit', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


# Leads


def lead(company: str, **other: Any) -> dict[str, Any]:
    return {"company": company, "industry": "Retail", "region": "North", "employees": 50, **other}


PROFILE = {"industry": "retail", "region": "north", "min_employees": 40, "max_employees": 80}


def test_leads_are_ranked_by_fit() -> None:
    result = run(
        "generate_leads",
        profile=PROFILE,
        candidates=[
            lead("Too small", employees=20),
            lead("Too large", employees=160),
            lead("Elsewhere", region="South"),
            lead("Other trade", industry="Mining"),
            lead("Perfect"),
        ],
    )
    fits = {row["company"]: row["fit"] for row in result.rows}
    assert fits == {
        "Perfect": 100, "Too large": 85, "Too small": 85, "Elsewhere": 80, "Other trade": 50
    }  # fmt: skip
    assert [row["company"] for row in result.rows] == list(fits)
    assert [row["rank"] for row in result.rows] == [1, 2, 3, 4, 5]
    assert "Perfect fits best with 100 of 100" in result.summary
    assert "4 of 5 candidates" in result.summary


@patient
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_lead_nearer_to_the_wanted_size_never_fits_worse(one: int, other: int) -> None:
    def distance(employees: int) -> float:
        return max(40 / employees, employees / 80, 1)

    result = run(
        "generate_leads",
        profile=PROFILE,
        candidates=[lead("one", employees=one), lead("other", employees=other)],
    )
    fits = {row["company"]: int(row["fit"]) for row in result.rows}
    assert all(70 <= fit <= 100 for fit in fits.values())
    if distance(one) < distance(other):
        assert fits["one"] >= fits["other"]


# Strategy


def factor(name: str, kind: str, weight: int, impact: int) -> dict[str, Any]:
    return {"factor": name, "kind": kind, "weight": weight, "impact": impact}


@pytest.mark.parametrize(
    ("inside", "outside", "advice"),
    [
        (5, 5, "Grow: use crews to take housing."),
        (5, 1, "Defend: use crews against wages."),
        (1, 5, "Improve: mend paperwork to take housing."),
        (1, 1, "Protect: mend paperwork before wages meets it."),
    ],
)
def test_the_sums_decide_the_direction(inside: int, outside: int, advice: str) -> None:
    result = run(
        "analyze_strategy",
        factors=[
            factor("crews", "strength", 2, inside),
            factor("paperwork", "weakness", 2, 3),
            factor("housing", "opportunity", 2, outside),
            factor("wages", "threat", 2, 3),
        ],
    )
    balance = {5: "+25", 1: "-50"}  # (10 - 6) / 16 and (2 - 6) / 8
    assert result.summary == (
        f"Internal balance {balance[inside]}, external {balance[outside]} of 100. {advice}"
    )
    scores = [int(row["score"]) for row in result.rows]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == 2 * (inside + outside + 6)


# Forecast


def history(first: str, revenue: list[int]) -> list[dict[str, Any]]:
    year, month = int(first[:4]), int(first[5:]) - 1
    return [
        {"month": f"{year + (month + i) // 12}-{(month + i) % 12 + 1:02d}", "revenue": amount}
        for i, amount in enumerate(revenue)
    ]


@patient
@given(
    st.integers(0, 10**6), st.integers(0, 10**4), st.integers(6, 60), st.sampled_from(range(1, 13))
)
def test_a_straight_line_is_continued(start: int, step: int, months: int, first: int) -> None:
    line = [start + step * i for i in range(months + 3)]
    result = run("forecast_revenue", history=history(f"2023-{first:02d}", line[:months]))
    assert [row["forecast"] for row in result.rows] == line[months:]
    assert [row["low"] for row in result.rows] == line[months:]
    assert [row["month"] for row in result.rows] == [
        row["month"] for row in history(f"2023-{first:02d}", line)[months:]
    ]


@patient
@given(st.integers(24, 60), st.lists(st.integers(0, 50_000), min_size=12, max_size=12))
def test_a_yearly_pattern_on_a_line_is_continued(months: int, pattern: list[int]) -> None:
    revenue = [10_000 + 250 * i + pattern[i % 12] for i in range(months + 3)]
    result = run("forecast_revenue", history=history("2022-05", revenue[:months]))
    assert [row["forecast"] for row in result.rows] == revenue[months:]
    assert "+$250 a month, with seasons" in result.summary


def test_the_typical_miss_widens_the_range() -> None:
    # Around the flat line 100: misses of 10, six points, two of them spent on the line.
    wave = [110, 90, 90, 110, 110, 90, 90, 110]
    result = run("forecast_revenue", history=history("2026-01", wave))
    assert "+$0 a month, without seasons, from 8 months" in result.summary
    miss = round((800 / 6) ** 0.5)
    for row in result.rows:
        assert (row["low"], row["forecast"], row["high"]) == (100 - miss, 100, 100 + miss)


def test_a_falling_line_stops_at_zero() -> None:
    result = run("forecast_revenue", history=history("2026-01", [50, 40, 30, 20, 10, 0]))
    assert [row["forecast"] for row in result.rows] == [0, 0, 0]
    assert "-$10 a month" in result.summary


@patient
@given(st.lists(st.integers(0, 10**9), min_size=6, max_size=40))
def test_any_history_gives_three_ordered_rows(revenue: list[int]) -> None:
    result = run("forecast_revenue", history=history("2022-11", revenue))
    assert len(result.rows) == 3
    for row in result.rows:
        assert 0 <= int(row["low"]) <= int(row["forecast"]) <= int(row["high"])


# Insight


def moves(*figures: tuple[str, float, float]) -> FeatureResult:
    return run(
        "generate_insight",
        before_period="May",
        after_period="June",
        figures=[{"measure": m, "before": before, "after": after} for m, before, after in figures],
    )


def test_the_largest_relative_change_comes_first() -> None:
    result = moves(("revenue", 1_234_567, 1_300_000), ("debt", -4, -6), ("jobs", 40, 39.5))
    assert [(row["measure"], row["change_percent"]) for row in result.rows] == [
        ("debt", -50.0), ("revenue", 5.3), ("jobs", -1.2)
    ]  # fmt: skip
    assert result.summary == (
        "debt changed most: -4 in May, -6 in June, -50.0%. Of 3 figures, 1 rose and 2 fell."
    )
    assert "1,234,567 in May" in moves(("revenue", 1_234_567, 1_300_000)).summary


def test_what_was_zero_has_no_percentage() -> None:
    result = moves(("referrals", 0, 4), ("never", 0, 0), ("jobs", 40, 44))
    assert [row["measure"] for row in result.rows] == ["jobs", "never", "referrals"]
    assert "change_percent" not in result.rows[2]
    assert result.summary.endswith("New in June: referrals.")


def test_no_change_is_said() -> None:
    assert moves(("jobs", 40, 40), ("never", 0, 0)).summary == "Nothing changed from May to June."


@patient
@given(NAMES, st.data())
def test_any_figures_are_ranked_and_survive_json(names: list[str], data: st.DataObject) -> None:
    value = st.floats(-1e12, 1e12) | st.integers(-5, 5)
    result = moves(*((name, data.draw(value), data.draw(value)) for name in names))
    changes = [abs(row["change_percent"]) for row in result.rows if "change_percent" in row]  # type: ignore[arg-type]
    assert changes == sorted(changes, reverse=True)
    assert len(result.rows) == len(names)
    json.dumps([dict(row) for row in result.rows], allow_nan=False)


# Efficiency


def crews(*rows: tuple[str, int, float]) -> FeatureResult:
    return run(
        "analyze_efficiency",
        crews=[{"crew": crew, "jobs": jobs, "hours": hours} for crew, jobs, hours in rows],
    )


def test_crews_are_ranked_and_outliers_marked() -> None:
    result = crews(("A", 40, 80), ("B", 41, 80), ("C", 42, 80), ("D", 10, 80), ("E", 90, 80))
    assert [(row["crew"], row["outlier"]) for row in result.rows] == [
        ("E", "fast"), ("C", ""), ("B", ""), ("A", ""), ("D", "slow")
    ]  # fmt: skip
    assert result.rows[0]["jobs_per_hour"] == 1.125
    assert result.summary == (
        "0.56 jobs per hour over 5 crews; E is unusually fast; D is unusually slow. "
        "At the median rate D would complete 31 more."
    )


@patient
@given(NAMES, st.integers(1, 500), st.sampled_from([0.25, 0.3, 1 / 3, 7.5, 80]))
def test_crews_at_one_rate_have_no_outlier(names: list[str], jobs: int, hours: float) -> None:
    result = crews(*((name, jobs, hours) for name in names))
    assert not any(row["outlier"] for row in result.rows)
    assert result.summary.endswith(
        "no crew is out of line. No crew is a whole job behind the median rate."
    )


@patient
@given(NAMES, st.data())
def test_any_crews_are_ranked(names: list[str], data: st.DataObject) -> None:
    jobs, hours = st.integers(0, 100_000), st.floats(0.25, 100_000)
    result = crews(
        (names[0], 1, 8), *((name, data.draw(jobs), data.draw(hours)) for name in names[1:])
    )
    rates = [float(row["jobs_per_hour"]) for row in result.rows]
    assert rates == sorted(rates, reverse=True)
    json.dumps([dict(row) for row in result.rows], allow_nan=False)


# Bad input


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("generate_leads", {"profile": 1}, "profile must be a mapping"),
        ("generate_leads", {"profile": {**PROFILE, "max_employees": 39}},
         "profile.max_employees must be a whole number from 40 to"),
        ("generate_leads", {"candidates": []}, "candidates must be a list of 1 to 200 rows"),
        ("generate_leads", {"candidates": [lead("a"), lead("A")]}, "candidates must name each"),
        ("generate_leads", {"candidates": [lead("a", employees=0)]}, "candidates[0].employees"),
        ("generate_leads", {"candidates": [{"company": "a"}]}, "candidates[0].industry is missing"),
        ("analyze_strategy", {"factors": [factor(str(i), "strength", 1, 1) for i in range(4)]},
         "factors must hold one of each kind; there is no weakness"),
        ("analyze_strategy", {"factors": [factor(str(i), "luck", 1, 1) for i in range(4)]},
         "factors[0].kind must be one of strength, weakness, opportunity, threat"),
        ("analyze_strategy", {"factors": [factor(str(i), "threat", 6, 1) for i in range(4)]},
         "factors[0].weight must be a whole number from 1 to 5"),
        ("forecast_revenue", {"history": history("2026-01", [1] * 5)}, "history must be a list"),
        ("forecast_revenue", {"history": history("2026-01", [-1] * 6)}, "history[0].revenue must"),
        ("forecast_revenue", {"history": history("2026-01", [1] * 6)[::-1]},
         "history[1].month must be 2026-07: months follow each other without a gap"),
        ("forecast_revenue", {"history": [{"month": "June", "revenue": 1}] * 6},
         "history[0].month must be a month like 2026-09"),
        ("generate_insight", {"before_period": ""}, "before_period must be a text"),
        ("generate_insight", {"figures": [{"measure": "a", "before": 1, "after": float("nan")}]},
         "figures[0].after must be a number"),
        ("generate_insight", {"figures": [{"measure": "a", "before": "1", "after": 1}]},
         "figures[0].before must be a number"),
        ("analyze_efficiency", {"crews": [{"crew": str(i), "jobs": 0, "hours": 8}
                                          for i in range(4)]},
         "crews must hold at least one completed job"),
        ("analyze_efficiency", {"crews": [{"crew": str(i), "jobs": 1, "hours": 0}
                                          for i in range(4)]},
         "crews[0].hours must be a number from 0.25 to 100,000"),
        ("analyze_efficiency", {"crews": "four"}, "crews must be a list of 4 to 200 rows"),
    ],
)  # fmt: skip
def test_bad_input_is_named(name: str, change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        FEATURES[name].run({**FEATURES[name].sample(), **change})
    assert str(caught.value).startswith(message)
    assert message.startswith(caught.value.field)


@pytest.mark.parametrize("name", list(FEATURES))
@patient
@given(data=st.data())
def test_odd_input_is_refused_by_name_or_runs(name: str, data: st.DataObject) -> None:
    odd = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    )
    sample = FEATURES[name].sample()
    field = data.draw(st.sampled_from(sorted(sample)))
    value = sample[field]
    if isinstance(value, list) and data.draw(st.booleans()):
        row = data.draw(st.sampled_from(value))
        row[data.draw(st.sampled_from(sorted(row)))] = data.draw(odd)
    else:
        sample[field] = data.draw(odd)
    try:
        result = FEATURES[name].run(sample)
    except InvalidInput as error:
        # Not always the field that was changed: a range may depend on another field.
        assert re.split(r"[.\[]", error.field)[0] in sample  # noqa: PT017 - running is fine too
    else:
        json.dumps([dict(row) for row in result.rows], allow_nan=False)
