"""Find what changed most between two periods."""

from collections.abc import Mapping

from tokenlib.features.feature import DemoFeature, FeatureResult
from tokenlib.features.inputs import Fields, distinct
from tokenlib.features.wording import count, figure

LARGEST = 1e12
DECIMALS = 6


def run(values: Mapping[str, object]) -> FeatureResult:
    """Rank figures by their change in percent of the earlier value, up or down.

    Figures count to six decimals. One that was zero before has no percentage: it is ranked last,
    and named in the summary when it is no longer zero.
    """
    fields = Fields(values, ("before_period", "after_period", "figures"))
    earlier, later = fields.text("before_period"), fields.text("after_period")
    rows = [
        (row.text("measure"), _amount(row, "before"), _amount(row, "after"))
        for row in fields.rows("figures", ("measure", "before", "after"), 1, 200)
    ]
    distinct("figures", [measure for measure, _, _ in rows])
    moves = [
        (100 * (after - before) / abs(before), measure, before, after)
        for measure, before, after in rows
        if before
    ]
    moves.sort(key=lambda move: (-abs(move[0]), move[1]))
    new = sorted((measure, after) for measure, before, after in rows if not before)

    ranked: list[dict[str, str | int | float]] = [
        {
            "measure": measure,
            "before": before,
            "after": after,
            "change": round(after - before, DECIMALS),
            "change_percent": round(percent, 1),
        }
        for percent, measure, before, after in moves
    ]
    ranked += [{"measure": name, "before": 0.0, "after": to, "change": to} for name, to in new]
    return FeatureResult(
        title=f"{later} against {earlier}",
        summary=_summary(earlier, later, moves, [measure for measure, after in new if after]),
        rows=tuple(ranked),
    )


def _amount(row: Fields, name: str) -> float:
    return round(row.number(name, -LARGEST, LARGEST), DECIMALS)


def _summary(
    earlier: str, later: str, moves: list[tuple[float, str, float, float]], new: list[str]
) -> str:
    sentences = []
    if moves and moves[0][0]:
        percent, measure, before, after = moves[0]
        change = f"{figure(before)} in {earlier}, {figure(after)} in {later}, {percent:+,.1f}%"
        rose, fell = sum(move[0] > 0 for move in moves), sum(move[0] < 0 for move in moves)
        sentences = [
            f"{measure} changed most: {change}.",
            f"Of {count(len(moves), 'figure')}, {rose} rose and {fell} fell.",
        ]
    if new:
        sentences.append(f"New in {later}: {', '.join(new)}.")
    return " ".join(sentences) or f"Nothing changed from {earlier} to {later}."


FEATURE = DemoFeature(
    name="generate_insight",
    title="Generate an insight",
    description="Finds the figure that changed most between two periods.",
    example={
        "before_period": "August",
        "after_period": "September",
        "figures": [
            {"measure": "Revenue in dollars", "before": 27_000, "after": 29_200},
            {"measure": "Completed jobs", "before": 41, "after": 43},
            {"measure": "Quotes sent", "before": 66, "after": 91},
            {"measure": "Complaints", "before": 5, "after": 3},
            {"measure": "Referrals", "before": 0, "after": 4},
        ],
    },
    run=run,
)
