"""Forecast the next three months of revenue from a monthly history."""

import math
import re
from collections.abc import Mapping
from statistics import fmean

from tokenlib.features.feature import DemoFeature, FeatureResult
from tokenlib.features.inputs import Fields, InvalidInput
from tokenlib.features.wording import dollars

AHEAD = 3
FEWEST_MONTHS = 6
MONTHS_FOR_SEASONS = 24
MOST_REVENUE = 1_000_000_000


def run(values: Mapping[str, object]) -> FeatureResult:
    """A straight trend by least squares; from 24 months on, with a level for each calendar month.

    `low` and `high` are one typical miss away: the standard error of the fit to the history.
    Whole dollars, to the nearest; a forecast below zero is shown as zero.
    """
    rows = Fields(values, ("history",)).rows("history", ("month", "revenue"), FEWEST_MONTHS, 240)
    months = [_month(row.value("month"), f"history[{i}].month") for i, row in enumerate(rows)]
    for i in range(1, len(months)):
        if months[i] != months[i - 1] + 1:
            raise InvalidInput(
                f"history[{i}].month",
                f"must be {_name(months[i - 1] + 1)}: months follow each other without a gap",
            )
    revenue = [row.whole("revenue", 0, MOST_REVENUE) for row in rows]

    seasonal = len(months) >= MONTHS_FOR_SEASONS
    slope, levels, miss = _fit(months, revenue, 12 if seasonal else 1)
    forecast = []
    for month in range(months[-1] + 1, months[-1] + 1 + AHEAD):
        expected = levels[month % len(levels)] + slope * (month - months[0])
        forecast.append((month, *(_dollars(expected + side * miss) for side in (0, -1, 1))))
    total = sum(expected for _, expected, _, _ in forecast)
    return FeatureResult(
        title="Revenue forecast",
        summary=(
            f"{dollars(total)} in the next {AHEAD} months. The trend is "
            f"{'-' if slope < 0 else '+'}{dollars(_dollars(abs(slope)))} a month, "
            f"{'with' if seasonal else 'without'} seasons, from {len(months)} months; "
            f"a month typically misses by {dollars(_dollars(miss))}."
        ),
        rows=tuple(
            {"month": _name(month), "forecast": expected, "low": low, "high": high}
            for month, expected, low, high in forecast
        ),
    )


def _fit(months: list[int], revenue: list[int], seasons: int) -> tuple[float, list[float], float]:
    """Least squares of one slope and a level per season, together: slope, levels, typical miss."""
    times = [month - months[0] for month in months]
    groups = [[i for i, month in enumerate(months) if month % seasons == s] for s in range(seasons)]
    time_means = [fmean(times[i] for i in group) for group in groups]
    means = [fmean(revenue[i] for i in group) for group in groups]
    # Measured from the mean of its own season, a month says only what the trend adds.
    pairs = [
        (times[i] - time_means[s], revenue[i] - means[s])
        for s, group in enumerate(groups)
        for i in group
    ]
    slope = math.fsum(t * r for t, r in pairs) / math.fsum(t * t for t, _ in pairs)
    levels = [mean - slope * time for mean, time in zip(means, time_means, strict=True)]
    left = math.fsum((r - slope * t) ** 2 for t, r in pairs)
    return slope, levels, math.sqrt(left / (len(pairs) - seasons - 1))


def _month(value: object, field: str) -> int:
    """Months since the year 0, so that following months follow by one."""
    if not isinstance(value, str) or not re.fullmatch(r"[12][0-9]{3}-(0[1-9]|1[0-2])", value):
        raise InvalidInput(field, "must be a month like 2026-09")
    return int(value[:4]) * 12 + int(value[5:]) - 1


def _name(month: int) -> str:
    return f"{month // 12:04d}-{month % 12 + 1:02d}"


def _dollars(amount: float) -> int:
    return max(0, math.floor(amount + 0.5))


EXAMPLE_REVENUE = (
    21_400,
    20_900,
    23_800,
    25_100,
    27_300,
    28_800,
    29_500,
    28_900,
    27_000,
    25_800,
    23_100,
    24_600,
    23_500,
    23_200,
    25_700,
    27_600,
    29_400,
    31_300,
    31_600,
    31_400,
    29_200,
    28_100,
    25_600,
    26_700,
    25_900,
    25_300,
    28_100,
    29_700,
)

FEATURE = DemoFeature(
    name="forecast_revenue",
    title="Forecast revenue",
    description="Continues a monthly history for three months, with its trend and its seasons.",
    example={
        "history": [
            {"month": _name(2024 * 12 + i), "revenue": revenue}
            for i, revenue in enumerate(EXAMPLE_REVENUE)
        ]
    },
    run=run,
)
