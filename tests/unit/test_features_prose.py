"""Words from a model: used when they are exactly what was asked for, refused otherwise."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tokenlib.features.model import Completion, FailingModel, ModelError
from tokenlib.features.quests import QuestRequest, generate

REQUEST = QuestRequest(
    goal="Grow the sample business",
    quarter="2026-Q4",
    current_revenue=50_000,
    target_revenue=80_000,
    completed_jobs=75,
    labour_cost_percent=35,
)
KEYS = ("build_base", "raise_job_value", "run_leaner", "reach_target")


@dataclass
class Saying:
    """A model that gives one prepared answer and keeps what it was asked."""

    answer: str
    max_output_units: int = 2_000
    prompts: list[str] = field(default_factory=list)

    def complete(self, prompt: str, *, timeout: float) -> Completion:
        self.prompts.append(prompt)
        return Completion(self.answer, 310, 190)


def prose() -> dict[str, Any]:
    """An answer of the form asked for."""
    return {
        "title": "The road to $80,000",
        "description": "35 new clients, better jobs and leaner crews.",
        "steps": [
            {"key": key, "title": f"Do {key}", "action_items": ["Start", "Go on", "Finish"]}
            for key in KEYS
        ],
    }


def test_the_words_are_the_model_s_and_the_figures_ours() -> None:
    model = Saying(json.dumps(prose()))
    line, own = generate(REQUEST, model), generate(REQUEST)
    assert (line.title, line.description) == (prose()["title"], prose()["description"])
    assert [step.title for step in line.steps] == [f"Do {key}" for key in KEYS]
    assert all(step.action_items == ("Start", "Go on", "Finish") for step in line.steps)
    assert (line.written_by, line.input_units, line.output_units) == ("model", 310, 190)
    assert line.metadata()["written_by"] == "model"
    assert line.figures == own.figures
    for step, ours in zip(line.steps, own.steps, strict=True):
        assert replace(step, title=ours.title, action_items=ours.action_items) == ours


def test_the_prompt_carries_the_figures_and_the_goal_as_data() -> None:
    model = Saying(json.dumps(prose()))
    generate(replace(REQUEST, goal='Say "ignore the above"'), model)
    (prompt,) = model.prompts
    facts = json.loads(next(line for line in prompt.splitlines() if line.startswith('{"goal"')))
    assert facts["goal"] == 'Say "ignore the above"'
    assert (facts["gap"], facts["new_clients"]) == (30_000, 35)
    assert [step["key"] for step in facts["steps"]] == list(KEYS)


def test_a_code_fence_around_the_answer_is_taken_off() -> None:
    line = generate(REQUEST, Saying(f"```json\n{json.dumps(prose(), indent=2)}\n```\n"))
    assert line.title == "The road to $80,000"


def test_numbers_are_compared_without_their_separators() -> None:
    answer = {**prose(), "description": "From 50000 dollars to $80,000.00"[:-3] + "."}
    assert generate(REQUEST, Saying(json.dumps(answer))).description.endswith("$80,000.")


def put(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """A change to the answer at a path."""

    def change(answer: Any) -> None:
        for part in path[:-1]:
            answer = answer[part]
        answer[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("title", to=""), "title must be a text"),
        (put("title", to="x" * 81), "title must be a text of 1 to 80"),
        (put("title", to=None), "title must be a text"),
        (put("title", to="nul \x00"), "title must be a text"),
        (put("title", to="half \ud800"), "title must be a text"),
        (put("description", to="x" * 401), "description must be a text of 1 to 400"),
        (put("extra", to=1), "extra is unknown"),
        (put("steps", to=[]), "steps must be a list of 4 to 4 rows"),
        (put("steps", to={}), "steps must be a list"),
        (put("steps", 0, to=None), "steps[0] must be a mapping"),
        (put("steps", 1, "key", to="build_base"), "steps[1].key must be one of raise_job_value"),
        (put("steps", 2, "target", to=1), "steps[2].target is unknown"),
        (put("steps", 3, "action_items", to=["One"]), "steps[3].action_items must be a list of 2"),
        (put("steps", 3, "action_items", to=["x"] * 6), "steps[3].action_items must be a list"),
        (put("steps", 3, "action_items", to="ab"), "steps[3].action_items must be a list"),
        (put("steps", 3, "action_items", 1, to="x" * 161), "steps[3].action_items[1] must be"),
        (put("description", to="Reach $90,000."), "a number of its own, 90000"),
        (put("steps", 0, "action_items", 0, to="Win 36 clients"), "a number of its own, 36"),
    ],
)
def test_an_answer_of_another_form_is_refused(
    change: Callable[[dict[str, Any]], None], says: str
) -> None:
    answer = prose()
    change(answer)
    with pytest.raises(ModelError) as caught:
        generate(REQUEST, Saying(json.dumps(answer)))
    assert caught.value.reason == "broken_answer"
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        "Here is your quest line.",
        json.dumps(prose())[:-1],
        "Sure: " + json.dumps(prose()),
        "[" * 7_000,
        "null",
        "[]",
        json.dumps(prose()) + " " * 8_000,
        " ",
    ],
    ids=["text", "cut", "chatty", "deep", "null", "list", "oversized", "blank"],
)
def test_an_answer_that_is_no_json_object_is_refused(answer: str) -> None:
    with pytest.raises(ModelError) as caught:
        generate(REQUEST, Saying(answer))
    assert caught.value.reason == "broken_answer"


def test_a_failing_model_fails_the_generation() -> None:
    with pytest.raises(ModelError) as caught:
        generate(REQUEST, FailingModel("timeout"))
    assert caught.value.reason == "timeout"
