"""Weigh strengths, weaknesses, opportunities and threats against each other."""

from collections.abc import Mapping

from tokenlib.features.feature import DemoFeature, FeatureResult
from tokenlib.features.inputs import Fields, InvalidInput, distinct

KINDS = ("strength", "weakness", "opportunity", "threat")


def run(values: Mapping[str, object]) -> FeatureResult:
    """Score each factor as weight times impact, and name the direction that the sums point to.

    The internal balance is (strengths - weaknesses) / (strengths + weaknesses), the external one
    the same of opportunities and threats, both from -100 to 100. Zero counts as positive.
    """
    rows = Fields(values, ("factors",)).rows(
        "factors", ("factor", "kind", "weight", "impact"), len(KINDS), 40
    )
    factors = [
        (
            row.text("factor"),
            row.choice("kind", KINDS),
            row.whole("weight", 1, 5),
            row.whole("impact", 1, 5),
        )
        for row in rows
    ]
    distinct("factors", [factor for factor, _, _, _ in factors])
    sums = {
        kind: sum(weight * impact for _, of, weight, impact in factors if of == kind)
        for kind in KINDS
    }
    for kind, total in sums.items():
        if not total:
            raise InvalidInput("factors", f"must hold one of each kind; there is no {kind}")

    factors.sort(key=lambda factor: (-factor[2] * factor[3], factor[0]))
    first = {kind: next(name for name, of, _, _ in factors if of == kind) for kind in KINDS}
    internal = _balance(sums["strength"], sums["weakness"])
    external = _balance(sums["opportunity"], sums["threat"])
    if internal >= 0 and external >= 0:
        advice = f"Grow: use {first['strength']} to take {first['opportunity']}."
    elif internal >= 0:
        advice = f"Defend: use {first['strength']} against {first['threat']}."
    elif external >= 0:
        advice = f"Improve: mend {first['weakness']} to take {first['opportunity']}."
    else:
        advice = f"Protect: mend {first['weakness']} before {first['threat']} meets it."
    everything = sum(sums.values())
    return FeatureResult(
        title="Strategy by weight",
        summary=f"Internal balance {internal:+d}, external {external:+d} of 100. {advice}",
        rows=tuple(
            {
                "factor": name,
                "kind": kind,
                "weight": weight,
                "impact": impact,
                "score": weight * impact,
                "share_percent": round(100 * weight * impact / everything, 1),
            }
            for name, kind, weight, impact in factors
        ),
    )


def _balance(good: int, bad: int) -> int:
    return round(100 * (good - bad) / (good + bad))


FEATURE = DemoFeature(
    name="analyze_strategy",
    title="Analyze the strategy",
    description="Weighs strengths, weaknesses, opportunities and threats, and names a direction.",
    example={
        "factors": [
            {"factor": "repeat customers", "kind": "strength", "weight": 5, "impact": 4},
            {"factor": "trained crews", "kind": "strength", "weight": 3, "impact": 4},
            {"factor": "few written processes", "kind": "weakness", "weight": 3, "impact": 3},
            {"factor": "one large customer", "kind": "weakness", "weight": 4, "impact": 3},
            {"factor": "new housing nearby", "kind": "opportunity", "weight": 4, "impact": 4},
            {"factor": "rising wages", "kind": "threat", "weight": 4, "impact": 3},
            {"factor": "a cheaper competitor", "kind": "threat", "weight": 3, "impact": 3},
        ]
    },
    run=run,
)
