"""Quests: a quarterly revenue goal as four steps with computed targets.

The arithmetic, with r revenue now, t the target, j jobs completed and s percent labour cost:

- average job value  a = r / j, shown to the nearest dollar;
- raised job value   v = 1.3 * r / j, rounded up;
- gap                g = t - r;
- new clients        n = g / v, rounded up: one job each at the raised value, while the work that
  is there already is counted at its value of today;
- labour cost        at the target, s percent of t, to the nearest dollar; leaner, 85 % of that
  share, rounded down.

What has to be reached is rounded up and what must not be exceeded is rounded down, so that
meeting the first two targets closes the gap. Amounts are whole dollars.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tokenlib.features import prose
from tokenlib.features.feature import DemoFeature, FeatureResult
from tokenlib.features.inputs import Fields, InvalidInput, text, whole
from tokenlib.features.model import Model
from tokenlib.features.wording import count, dollars, half_up

RAISE_PERCENT = 30
LEANER_PERCENT = 15
WEEKS = 13
MOST_REVENUE = 1_000_000_000
LEAST_JOB_VALUE = 10
MODEL_TIMEOUT = 30.0
"""Seconds that a model may take to word a quest line."""

Difficulty = Literal["easy", "medium", "hard"]
POINTS: Mapping[Difficulty, int] = {"easy": 100, "medium": 200, "hard": 300}


@dataclass(frozen=True, slots=True)
class QuestRequest:
    """A quarter's revenue goal and where the business stands; amounts in whole dollars.

    `current_revenue` and `completed_jobs` belong to one quarter, as the target does;
    `labour_cost_percent` is the share of revenue that labour costs. A job brings $10 or more on
    average. Raises InvalidInput, which names the field and its range.
    """

    goal: str
    quarter: str
    current_revenue: int
    target_revenue: int
    completed_jobs: int
    labour_cost_percent: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "goal", text("goal", self.goal, prose.LONGEST_TITLE))
        quarter: object = self.quarter
        if not isinstance(quarter, str) or not re.fullmatch(r"20[0-9]{2}-Q[1-4]", quarter):
            raise InvalidInput("quarter", "must be a year from 2000 to 2099 and Q1 to Q4: 2026-Q4")
        current = self._whole("current_revenue", 1_000, MOST_REVENUE - 1)
        self._whole("target_revenue", current + 1, MOST_REVENUE)
        self._whole("completed_jobs", 1, min(current // LEAST_JOB_VALUE, 100_000))
        self._whole("labour_cost_percent", 1, 100)

    def _whole(self, name: str, low: int, high: int) -> int:
        checked = whole(name, getattr(self, name), low, high)
        object.__setattr__(self, name, checked)
        return checked


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of a quest line, in whole dollars and clients; see the module for each."""

    average_job_value: int
    raised_job_value: int
    gap: int
    new_clients: int
    labour_cost: int
    leaner_labour_cost: int


@dataclass(frozen=True, slots=True)
class QuestStep:
    """One step: reach `target` of `unit` in `metric`, and claim `reward` points."""

    key: str
    title: str
    objective: str
    metric: str
    target: int
    unit: Literal["clients", "dollars"]
    bound: Literal["at least", "at most"]
    difficulty: Difficulty
    reward: int
    action_items: tuple[str, ...]

    @property
    def target_text(self) -> str:
        """The target as a person reads it: at least $1,820."""
        amount = dollars(self.target) if self.unit == "dollars" else count(self.target, "client")
        return f"{self.bound} {amount}"


@dataclass(frozen=True, slots=True)
class QuestLine:
    """A generated quest line; the units are what a model read and wrote, 0 when there was none."""

    title: str
    description: str
    quarter: str
    target_amount: int
    figures: Figures
    steps: tuple[QuestStep, ...]
    written_by: Literal["tokenlib", "model"] = "tokenlib"
    input_units: int = 0
    output_units: int = 0

    @property
    def total_reward(self) -> int:
        """Points for all steps together."""
        return sum(step.reward for step in self.steps)

    def metadata(self) -> dict[str, object]:
        """Steps, rewards and figures, ready for JSON: the column `metadata` of `quests`."""
        return {
            "steps": [
                {**asdict(step), "action_items": list(step.action_items)} for step in self.steps
            ],
            "figures": asdict(self.figures),
            "total_reward": self.total_reward,
            "written_by": self.written_by,
        }


def generate(
    request: QuestRequest, model: Model | None = None, *, timeout: float = MODEL_TIMEOUT
) -> QuestLine:
    """The quest line for a request: the same one every time, except for a model's words.

    A `model` that writes words replaces titles, description and action items, never a figure.
    Raises ModelError when the model fails or its answer is not usable.
    """
    line = _own_line(request)
    if model is None:
        return line
    facts = {
        **asdict(request),
        **asdict(line.figures),
        "steps": [{"key": step.key, "objective": step.objective} for step in line.steps],
    }
    words, completion = prose.ask(model, facts, [step.key for step in line.steps], timeout)
    line = replace(line, input_units=completion.input_units, output_units=completion.output_units)
    if words is None:
        return line
    steps = tuple(
        replace(
            step, title=words.steps[step.key].title, action_items=words.steps[step.key].action_items
        )
        for step in line.steps
    )
    return replace(
        line, title=words.title, description=words.description, steps=steps, written_by="model"
    )


def figures(request: QuestRequest) -> Figures:
    """The arithmetic at the head of this module, in whole numbers throughout."""
    revenue, jobs, target = request.current_revenue, request.completed_jobs, request.target_revenue
    raised_job_value = _up(revenue * (100 + RAISE_PERCENT), jobs * 100)
    gap = target - revenue
    labour = target * request.labour_cost_percent
    return Figures(
        average_job_value=half_up(revenue, jobs),
        raised_job_value=raised_job_value,
        gap=gap,
        new_clients=_up(gap, raised_job_value),
        labour_cost=half_up(labour, 100),
        leaner_labour_cost=labour * (100 - LEANER_PERCENT) // 10_000,
    )


def _own_line(request: QuestRequest) -> QuestLine:
    found = figures(request)
    return QuestLine(
        title=request.goal,
        description=(
            f"From {dollars(request.current_revenue)} to {dollars(request.target_revenue)} in "
            f"{request.quarter}: the gap of {dollars(found.gap)} closes with "
            f"{count(found.new_clients, 'new client')} at {dollars(found.raised_job_value)} a job."
        ),
        quarter=request.quarter,
        target_amount=request.target_revenue,
        figures=found,
        steps=(
            _build_base(request, found),
            _raise_job_value(found),
            _run_leaner(request, found),
            _reach_target(request, found),
        ),
    )


def _build_base(request: QuestRequest, found: Figures) -> QuestStep:
    difficulty = _difficulty(found.new_clients, request.completed_jobs)
    weekly = _up(found.new_clients, WEEKS)
    return QuestStep(
        key="build_base",
        title="Build the base",
        objective=f"Win {count(found.new_clients, 'new client')} in {request.quarter}.",
        metric="New clients in the quarter",
        target=found.new_clients,
        unit="clients",
        bound="at least",
        difficulty=difficulty,
        reward=POINTS[difficulty],
        action_items=(
            f"Sign {count(weekly, 'new client')} a week until the target is met.",
            f"Ask for a referral after each job: {count(request.completed_jobs, 'chance')} so far.",
            "Note where each new client came from, and do more of what brings most.",
        ),
    )


def _raise_job_value(found: Figures) -> QuestStep:
    # The same relative step for everyone, hence the same difficulty.
    extra = found.raised_job_value - found.average_job_value
    return QuestStep(
        key="raise_job_value",
        title="Raise the job value",
        objective=(
            f"Sell new jobs at {dollars(found.raised_job_value)} on average, {RAISE_PERCENT}% "
            f"above the {dollars(found.average_job_value)} of today."
        ),
        metric="Average value of a new job",
        target=found.raised_job_value,
        unit="dollars",
        bound="at least",
        difficulty="medium",
        reward=POINTS["medium"],
        action_items=(
            f"Offer an addition worth {dollars(extra)} with each quote.",
            f"Review every quote below {dollars(found.raised_job_value)} before it goes out.",
            "Bundle the services that are often bought together.",
        ),
    )


def _run_leaner(request: QuestRequest, found: Figures) -> QuestStep:
    # The smaller the share of labour already is, the harder it is to cut.
    share = request.labour_cost_percent
    difficulty: Difficulty = "easy" if share >= 50 else "medium" if share >= 25 else "hard"
    saved = found.labour_cost - found.leaner_labour_cost
    return QuestStep(
        key="run_leaner",
        title="Run leaner",
        objective=(
            f"Deliver the target with {dollars(found.leaner_labour_cost)} of labour, "
            f"{LEANER_PERCENT}% below the {dollars(found.labour_cost)} that it would cost "
            f"at {share}% of revenue."
        ),
        metric="Labour cost in the quarter",
        target=found.leaner_labour_cost,
        unit="dollars",
        bound="at most",
        difficulty=difficulty,
        reward=POINTS[difficulty],
        action_items=(
            f"Save {dollars(_up(saved, WEEKS))} of labour a week, {dollars(saved)} in all.",
            "Compare planned with worked hours for each job, and fix the largest difference.",
            "Plan jobs that are near each other on the same day.",
        ),
    )


def _reach_target(request: QuestRequest, found: Figures) -> QuestStep:
    difficulty = _difficulty(found.gap, request.current_revenue)
    earned = found.new_clients * found.raised_job_value
    return QuestStep(
        key="reach_target",
        title="Reach the target",
        objective=(
            f"Close {request.quarter} with {dollars(request.target_revenue)}, "
            f"{dollars(found.gap)} more than now."
        ),
        metric="Revenue in the quarter",
        target=request.target_revenue,
        unit="dollars",
        bound="at least",
        difficulty=difficulty,
        reward=2 * POINTS[difficulty],
        action_items=(
            f"Invoice {dollars(_up(request.target_revenue, WEEKS))} a week on average.",
            f"Keep the work of today at {dollars(request.current_revenue)}.",
            f"Add {count(found.new_clients, 'job')} worth {dollars(earned)} to it.",
        ),
    )


def _difficulty(increase: int, base: int) -> Difficulty:
    """Easy up to a quarter more than now, hard above three quarters more."""
    return "easy" if increase * 4 <= base else "medium" if increase * 4 <= base * 3 else "hard"


def _up(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _run(values: Mapping[str, object]) -> FeatureResult:
    fields = Fields(values, tuple(QuestRequest.__dataclass_fields__))
    # The request checks each field itself.
    given: dict[str, Any] = {name: fields.value(name) for name in fields.known}
    line = generate(QuestRequest(**given))
    return FeatureResult(
        title=line.title,
        summary=line.description,
        rows=tuple(
            {
                "step": step.title,
                "metric": step.metric,
                "target": step.target_text,
                "difficulty": step.difficulty,
                "reward": step.reward,
            }
            for step in line.steps
        ),
    )


FEATURE = DemoFeature(
    name="generate_goal",
    title="Generate a quest line",
    description="Turns a quarterly revenue goal into four steps with computed targets.",
    example={
        "goal": "Grow the cleaning business",
        "quarter": "2026-Q4",
        "current_revenue": 84_000,
        "target_revenue": 120_000,
        "completed_jobs": 120,
        "labour_cost_percent": 40,
    },
    run=_run,
)
