"""What reports compute without a database: how unusual a day is, and cells that stay text."""

from __future__ import annotations

import pytest

from tokenlib.reports import neutralised
from tokenlib.reports.spend import robust_z


def test_unusual_is_measured_from_the_median_in_median_deviations() -> None:
    past = [3, 4, 5, 6, 7]  # median 5, deviations 2 1 0 1 2, their median 1
    assert robust_z(5, past) == 0
    assert robust_z(7, past) == pytest.approx(2 * 0.6745)
    assert robust_z(1, past) == pytest.approx(-4 * 0.6745)


def test_one_wild_day_does_not_hide_the_next() -> None:
    calm = [4, 5, 6] * 9
    found = robust_z(1000, [*calm, 1000])
    assert found is not None
    assert found > 3.5


def test_where_most_days_are_alike_the_mean_deviation_speaks() -> None:
    past = [0] * 24 + [10] * 4  # mean deviation 40 / 28
    assert robust_z(20, past) == pytest.approx(20 / (40 / 28 * 1.2533))


def test_without_a_past_nothing_is_unusual() -> None:
    assert robust_z(50, [0] * 28) is None
    assert robust_z(50, []) is None


def test_a_past_without_any_change_tells_only_its_own_value() -> None:
    assert robust_z(5, [5] * 28) == 0
    assert robust_z(6, [5] * 28) is None


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "=HYPERLINK(…)", "-", "="]
)
def test_text_that_a_spreadsheet_would_run_gets_a_quote_in_front(text: str) -> None:
    assert neutralised(text) == f"'{text}"


@pytest.mark.parametrize("value", ["Acme = 1", "a-b", "", "'=1", " =1", -5, 1.5, None, True])
def test_everything_else_stays_as_it_is(value: object) -> None:
    assert neutralised(value) is value
