"""Figures and times as people read them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tokenlib.console import format as fmt
from tokenlib.console.format import ABSENT, HALF, LOW, PLENTY, UNLIMITED, Context, Standing
from tokenlib.console.ranges import Window
from tokenlib.domain import Catalog, Feature

NOW = datetime(2026, 11, 20, 23, 30, tzinfo=UTC)
CATALOG = Catalog(
    features={
        "generate_insight": Feature("generate_insight", "Generate an insight", "general", 1),
        "analyze_efficiency": Feature("analyze_efficiency", "Analyze efficiency", "general", 2),
        "generate_goal": Feature("generate_goal", "Generate a quest", "goal_generation", 3),
    },
    token_types=("goal_generation", "general", "shared"),
    plans=("starter", "pro"),
)
ROME = Context(NOW, ZoneInfo("Europe/Rome"), CATALOG, {"general": "General"})


@dataclass
class Wallet:
    """A wallet of a test."""

    balance: int
    total_allocated: int
    token_type: str = "general"
    unlimited: bool = False
    reserved: int = 0
    total_used: int = 0
    refresh_date: datetime = NOW


@pytest.mark.parametrize(
    ("wallet", "standing", "words"),
    [
        (Wallet(51, 100), PLENTY, "51 of 100"),
        (Wallet(50, 100), HALF, "50 of 100"),
        (Wallet(20, 100), HALF, "20 of 100"),
        (Wallet(19, 100), LOW, "19 of 100"),
        (Wallet(0, 100), LOW, "0 of 100"),
        (Wallet(0, 0), ABSENT, "Not in this plan"),
        (Wallet(5, 1000, unlimited=True), UNLIMITED, "Unlimited"),
        (Wallet(1234, 5000), HALF, "1,234 of 5,000"),
    ],
)
def test_a_wallet_stands_where_its_balance_puts_it(
    wallet: Wallet, standing: Standing, words: str
) -> None:
    assert fmt.standing(wallet) is standing
    assert fmt.balance(wallet) == words


def test_no_two_standings_share_a_word_a_mark_or_an_icon() -> None:
    for field in ("word", "mark", "icon", "color"):
        assert len({getattr(standing, field) for standing in fmt.STANDINGS}) == 5


def test_what_a_balance_buys_is_said_for_each_feature_of_its_type() -> None:
    assert fmt.uses(Wallet(5, 50), CATALOG) == [
        "Generate an insight: 5 left",
        "Analyze efficiency: 2 left",
    ]
    assert fmt.uses(Wallet(5, 50, "goal_generation"), CATALOG) == ["Generate a quest: 1 left"]
    assert fmt.uses(Wallet(5, 50, "shared"), CATALOG) == ["Pays for every feature"]
    assert fmt.uses(Wallet(0, 0), CATALOG) == []
    assert fmt.uses(Wallet(9, 9, unlimited=True), CATALOG) == []


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (timedelta(0), "today"),
        (timedelta(hours=23), "today"),
        (timedelta(hours=24), "tomorrow"),
        (timedelta(days=9), "in 9 days"),
        (timedelta(hours=-1), "yesterday"),
        (timedelta(days=-3), "3 days ago"),
    ],
)
def test_days_are_those_of_the_readers_calendar(step: timedelta, words: str) -> None:
    # In Rome it is half past midnight of the 21st.
    assert ROME.days(NOW + step) == words


def test_a_day_has_its_year_only_when_that_is_another_one() -> None:
    assert ROME.day(NOW) == "21 Nov"  # late on the 20th in UTC
    assert ROME.day(NOW + timedelta(days=365)).endswith(f" {NOW.year + 1}")


def test_times_are_in_the_readers_zone() -> None:
    assert ROME.date(NOW) == "21 Nov 2026"
    assert ROME.time(NOW) == "21 Nov 2026, 00:30"


def test_a_name_that_the_catalog_has_no_more_is_shown_as_it_is() -> None:
    assert ROME.feature("generate_goal") == "Generate a quest"
    assert ROME.feature("gone") == "gone"
    assert ROME.token_type("general") == "General"
    assert ROME.token_type("gone") == "gone"


def test_amounts() -> None:
    assert fmt.count(1, "token") == "1 token"
    assert fmt.count(1820, "token") == "1,820 tokens"
    assert fmt.count(0, "use") == "0 uses"
    assert fmt.dollars(14900) == "$149"
    assert fmt.dollars(123450) == "$1,234.50"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Plain words, and Łódź", "Plain words\\, and Łódź"),
        ("![x](http://h/p.png)", "\\!\\[x\\]\\(http\\:\\/\\/h\\/p\\.png\\)"),
        (":material/home: $1 & $2", "\\:material\\/home\\: \\$1 \\& \\$2"),
        ("two\n\n# lines", "two \\# lines"),
    ],
)
def test_text_from_people_is_never_markdown(text: str, shown: str) -> None:
    assert fmt.plain(text) == shown


def test_a_window_names_every_day_that_it_touches() -> None:
    window = Window(NOW - timedelta(days=2), NOW, "2 days")
    days = window.days(ZoneInfo("Europe/Rome"))
    assert [day.day for day in days] == [19, 20, 21]
    assert window.before.until == window.since
    assert window.before.since == NOW - timedelta(days=4)


@pytest.mark.parametrize(
    ("told", "whole", "half", "part", "less", "price"),
    [
        ("en-US", "1,234,567", "1,820.5", "12%", "-3%", "$1,234.50"),
        ("de-DE", "1.234.567", "1.820,5", "12\N{NO-BREAK SPACE}%", None, "$1.234,50"),
        ("fr-FR", "1 234 567", "1 820,5", None, None, "$1 234,50"),
        ("en-IN", "12,34,567", "1,820.5", "12%", "-3%", "$1,234.50"),
        ("", "1,234,567", "1,820.5", "12%", "-3%", "$1,234.50"),
        ("no such language", "1,234,567", "1,820.5", "12%", "-3%", "$1,234.50"),
    ],
)
def test_numbers_are_written_as_the_browsers_language_does(
    monkeypatch: pytest.MonkeyPatch,
    told: str,
    whole: str,
    half: str,
    part: str | None,
    less: str | None,
    price: str,
) -> None:
    monkeypatch.setattr(fmt, "_told", lambda: told)
    narrow = "\N{NARROW NO-BREAK SPACE}"
    if told == "fr-FR":
        whole, half, price = (text.replace(" ", narrow) for text in (whole, half, price))
    assert fmt.number(1_234_567) == whole
    assert fmt.number(1820.5) == half
    assert fmt.signed(-1_234_567) == f"-{whole}"
    assert fmt.count(1_234_567, "token") == f"{whole} tokens"
    assert fmt.dollars(123_450) == price
    if part:
        assert fmt.percent(0.12) == part
        assert fmt.change(0.12) == f"+{part}"
    if less:
        assert fmt.change(-0.03) == less


SIZED = Feature("generate_goal", "Generate a quest", "goal_generation", 3, 700)


@pytest.mark.parametrize(
    ("feature", "longest", "said"),
    [
        (CATALOG.features["generate_insight"], None, "1 token"),
        (CATALOG.features["generate_goal"], 2_000, "3 tokens"),
        (SIZED, None, "3 tokens per 700 output units"),
        (SIZED, 0, "3 tokens"),
        (SIZED, 700, "3 tokens"),
        (SIZED, 701, "3 to 6 tokens"),
        (SIZED, 700_001, "3 to 3,003 tokens"),
    ],
)
def test_a_price_by_the_size_of_the_answer_is_no_single_figure(
    feature: Feature, longest: int | None, said: str
) -> None:
    assert fmt.price(feature, longest) == said


def test_what_a_balance_buys_at_most_is_said_so() -> None:
    assert fmt.uses_for(20, CATALOG.features["generate_goal"]) == "6"
    assert fmt.uses_for(20, SIZED) == "up to 6"


@pytest.mark.parametrize(
    ("language", "signs", "share"),
    [
        ("", (".", ",", [3]), "12.3%"),
        ("de-DE", (",", ".", [3]), "12,3\N{NO-BREAK SPACE}%"),
        ("en-IN", (".", ",", [3, 2, 2, 2, 2, 2]), "12.3%"),
        ("no such", (".", ",", [3]), "12.3%"),
    ],
)
def test_numbers_are_written_as_the_reader_does(
    monkeypatch: pytest.MonkeyPatch,
    language: str,
    signs: tuple[str, str, list[int]],
    share: str,
) -> None:
    monkeypatch.setattr(fmt, "_told", lambda: language)
    assert fmt.signs() == signs
    assert fmt.permille(0.1234) == share
