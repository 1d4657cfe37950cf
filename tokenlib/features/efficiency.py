"""Compare crews by the jobs they complete per hour."""

from collections.abc import Mapping
from fractions import Fraction
from statistics import median, quantiles

from tokenlib.features.feature import DemoFeature, FeatureResult
from tokenlib.features.inputs import Fields, InvalidInput, distinct
from tokenlib.features.wording import count

FEWEST_CREWS = 4
REACH = Fraction(3, 2)


def run(values: Mapping[str, object]) -> FeatureResult:
    """Rank crews by jobs per hour and mark the outliers.

    An outlier lies more than 1.5 times the distance of the quartiles outside them (Tukey's rule).
    """
    rows = Fields(values, ("crews",)).rows("crews", ("crew", "jobs", "hours"), FEWEST_CREWS, 200)
    crews = [
        (row.text("crew"), row.whole("jobs", 0, 100_000), row.number("hours", 0.25, 100_000))
        for row in rows
    ]
    distinct("crews", [crew for crew, _, _ in crews])
    if not any(jobs for _, jobs, _ in crews):
        raise InvalidInput("crews", "must hold at least one completed job")

    # Exact, so that crews with the same rate never look different by a rounding.
    ranked = sorted(
        ((jobs / Fraction(hours), crew, jobs, hours) for crew, jobs, hours in crews),
        key=lambda row: (-row[0], row[1]),
    )
    rates = [rate for rate, _, _, _ in ranked]
    low, _, high = quantiles(rates, n=4, method="inclusive")
    reach = REACH * (high - low)
    middle = median(rates)
    overall = sum(jobs for _, jobs, _ in crews) / sum(Fraction(hours) for _, _, hours in crews)
    marks = {
        crew: "fast" if rate > high + reach else "slow" if rate < low - reach else ""
        for rate, crew, _, _ in ranked
    }
    outliers = [f"{crew} is unusually {mark}" for crew, mark in marks.items() if mark]
    behind, crew_behind = max(
        (int(middle * Fraction(hours)) - jobs, crew) for _, crew, jobs, hours in ranked
    )
    return FeatureResult(
        title="Jobs per hour by crew",
        summary=(
            f"{float(overall):.2f} jobs per hour over {count(len(crews), 'crew')}; "
            f"{'; '.join(outliers) or 'no crew is out of line'}. "
            + (
                f"At the median rate {crew_behind} would complete {behind:,} more."
                if behind > 0
                else "No crew is a whole job behind the median rate."
            )
        ),
        rows=tuple(
            {
                "crew": crew,
                "jobs": jobs,
                "hours": hours,
                "jobs_per_hour": round(float(rate), 3),
                "against_overall_percent": round(float(100 * (rate / overall - 1)), 1),
                "outlier": marks[crew],
            }
            for rate, crew, jobs, hours in ranked
        ),
    )


FEATURE = DemoFeature(
    name="analyze_efficiency",
    title="Analyze efficiency",
    description="Compares crews by jobs per hour and marks the unusual ones.",
    example={
        "crews": [
            {"crew": "Crew A", "jobs": 42, "hours": 80},
            {"crew": "Crew B", "jobs": 39, "hours": 76.5},
            {"crew": "Crew C", "jobs": 44, "hours": 82},
            {"crew": "Crew D", "jobs": 21, "hours": 78},
            {"crew": "Crew E", "jobs": 40, "hours": 79},
        ]
    },
    run=run,
)
