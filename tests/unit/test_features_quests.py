"""Quests: the arithmetic, its consistency for any request, and refusals that name the field."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlib.features import FEATURES, InvalidInput
from tokenlib.features.model import OfflineModel
from tokenlib.features.quests import Figures, QuestRequest, figures, generate

# A busy machine is no fault of the code.
patient = settings(deadline=None)

REQUEST = QuestRequest(
    goal="Grow the sample business",
    quarter="2026-Q4",
    current_revenue=50_000,
    target_revenue=80_000,
    completed_jobs=75,
    labour_cost_percent=35,
)


@st.composite
def requests(draw: st.DrawFn) -> QuestRequest:
    """Any valid request, the edges of every range included."""
    current = draw(st.integers(1_000, 999_999_999))
    return QuestRequest(
        goal=draw(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=80)),
        quarter=f"20{draw(st.integers(0, 99)):02d}-Q{draw(st.integers(1, 4))}",
        current_revenue=current,
        target_revenue=draw(st.integers(current + 1, 1_000_000_000)),
        completed_jobs=draw(st.integers(1, min(current // 10, 100_000))),
        labour_cost_percent=draw(st.integers(1, 100)),
    )


def test_figures_of_a_worked_example() -> None:
    # 50,000 / 75 = 666.67; 1.3 times that is 866.67; 30,000 / 867 = 34.6 clients;
    # 35 % of 80,000 is 28,000, and 85 % of that 23,800.
    assert figures(REQUEST) == Figures(
        average_job_value=667,
        raised_job_value=867,
        gap=30_000,
        new_clients=35,
        labour_cost=28_000,
        leaner_labour_cost=23_800,
    )


def test_four_steps_with_their_targets() -> None:
    line = generate(REQUEST)
    assert [(step.key, step.target_text) for step in line.steps] == [
        ("build_base", "at least 35 clients"),
        ("raise_job_value", "at least $867"),
        ("run_leaner", "at most $23,800"),
        ("reach_target", "at least $80,000"),
    ]
    assert line.title == "Grow the sample business"
    assert (line.quarter, line.target_amount, line.written_by) == ("2026-Q4", 80_000, "tokenlib")
    assert line.description == (
        "From $50,000 to $80,000 in 2026-Q4: the gap of $30,000 closes with 35 new clients "
        "at $867 a job."
    )
    assert line.steps[0].action_items[0] == "Sign 3 new clients a week until the target is met."


def test_difficulty_and_reward_grow_with_the_ambition() -> None:
    targets = {"easy": 62_500, "medium": 87_500, "hard": 87_501}
    for difficulty, target in targets.items():
        last = generate(replace(REQUEST, target_revenue=target)).steps[-1]
        assert last.difficulty == difficulty


def test_points_follow_the_difficulty_and_the_last_step_counts_twice() -> None:
    line = generate(replace(REQUEST, target_revenue=87_501, labour_cost_percent=50))
    assert [(step.difficulty, step.reward) for step in line.steps] == [
        ("medium", 200),
        ("medium", 200),
        ("easy", 100),
        ("hard", 600),
    ]
    assert line.total_reward == 1_100


@patient
@given(requests())
def test_targets_are_consistent(request: QuestRequest) -> None:
    line = generate(request)
    base, value, leaner, target = line.steps
    gap = request.target_revenue - request.current_revenue
    assert base.target >= 1
    assert base.target * value.target >= gap > (base.target - 1) * value.target
    raised = 130 * request.current_revenue
    assert (value.target - 1) * 100 * request.completed_jobs < raised
    assert raised <= value.target * 100 * request.completed_jobs
    assert value.target > line.figures.average_job_value
    cost = 85 * request.target_revenue * request.labour_cost_percent
    assert leaner.target * 10_000 <= cost < (leaner.target + 1) * 10_000
    assert 0 < leaner.target < line.figures.labour_cost
    assert target.target == line.target_amount == request.target_revenue


@patient
@given(requests())
def test_a_line_is_repeatable_and_survives_json(request: QuestRequest) -> None:
    line = generate(request)
    assert line == generate(request)
    metadata = line.metadata()
    assert json.loads(json.dumps(metadata, allow_nan=False)) == metadata
    # The limit on a charge's metadata; a quest's own must stay of that order.
    assert len(json.dumps(metadata).encode()) < 16 * 1024
    assert metadata["total_reward"] == sum(step.reward for step in line.steps)


@patient
@given(requests())
def test_the_offline_model_changes_nothing(request: QuestRequest) -> None:
    assert generate(request, OfflineModel()) == generate(request)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("goal", "", "1 to 80 characters"),
        ("goal", " \t ", "1 to 80 characters"),
        ("goal", "x" * 81, "1 to 80 characters"),
        ("goal", "nul \x00", "without control characters"),
        ("goal", "half a pair \ud800", "without control characters"),
        ("goal", None, "must be a text"),
        ("quarter", "2026-Q5", "Q1 to Q4"),
        ("quarter", "Q4 2026", "2026-Q4"),
        ("quarter", "2026-Q4\n", "2026-Q4"),
        ("quarter", 2026, "2026-Q4"),
        ("current_revenue", 999, "from 1,000 to 999,999,999"),
        ("current_revenue", 50_000.5, "whole number"),
        ("current_revenue", 10**400, "from 1,000 to 999,999,999"),
        ("target_revenue", 50_000, "from 50,001 to 1,000,000,000"),
        ("target_revenue", 1_000_000_001, "from 50,001 to 1,000,000,000"),
        ("target_revenue", "80000", "whole number"),
        ("completed_jobs", 0, "from 1 to 5,000"),
        ("completed_jobs", 5_001, "from 1 to 5,000"),
        ("completed_jobs", True, "from 1 to 5,000"),
        ("completed_jobs", float("nan"), "whole number"),
        ("labour_cost_percent", 0, "from 1 to 100"),
        ("labour_cost_percent", 101, "from 1 to 100"),
    ],
)
def test_a_bad_field_is_named_with_its_range(field: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        QuestRequest(**{**asdict(REQUEST), field: value})
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} must be ")
    assert says in str(caught.value)


def test_white_space_in_the_goal_becomes_single_spaces() -> None:
    assert replace(REQUEST, goal="  Grow\n\tit\u00a0now ").goal == "Grow it now"


def test_the_catalog_feature_shows_the_same_steps() -> None:
    result = FEATURES["generate_goal"].run(asdict(REQUEST))
    line = generate(REQUEST)
    assert result.summary == line.description
    assert [row["target"] for row in result.rows] == [step.target_text for step in line.steps]
