"""Figures and times as people read them. Nothing here draws or asks the database.

Numbers are written as the reader's browser does, as in the tables. Days stand as 9 Dec 2026: with
a word for the month they are read alike everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from decimal import Decimal
from functools import cache
from typing import Literal, Protocol

import streamlit as st
from babel import Locale, UnknownLocaleError
from babel.numbers import (
    format_decimal,
    format_percent,
    get_decimal_symbol,
    get_group_symbol,
)

from tokenlib.domain import Catalog, Feature, level, uses_left

PACKS = "shared"
"""The token type of purchased packs: pays for every feature, and never refreshes."""

Color = Literal["green", "yellow", "red", "gray", "blue"]


class Wallet(Protocol):
    """What a balance of the gate and a row of the reports have in common."""

    @property
    def token_type(self) -> str: ...
    @property
    def balance(self) -> int: ...
    @property
    def reserved(self) -> int: ...
    @property
    def total_used(self) -> int: ...
    @property
    def total_allocated(self) -> int: ...
    @property
    def unlimited(self) -> bool: ...
    @property
    def refresh_date(self) -> datetime: ...


@dataclass(frozen=True, slots=True)
class Context:
    """What figures are read against: the clock of the books, the reader's time zone, the catalog.

    `types` has the title of each token type.
    """

    now: datetime
    zone: tzinfo
    catalog: Catalog
    types: Mapping[str, str]

    def feature(self, name: str) -> str:
        """A feature's title; its name when the catalog has it no more."""
        known = self.catalog.features.get(name)
        return known.title if known else name

    @property
    def features(self) -> list[str]:
        """Every feature's title, in the catalog's order."""
        return [feature.title for feature in self.catalog.features.values()]

    def token_type(self, name: str) -> str:
        """A token type's title."""
        return self.types.get(name, name)

    def date(self, moment: datetime) -> str:
        """A day: 9 Dec 2026."""
        return minute(moment, self.zone).partition(",")[0]

    def day(self, moment: datetime) -> str:
        """A day, with its year only when that is another one: 9 Dec."""
        said, _, year = self.date(moment).rpartition(" ")
        return said if int(year) == self.now.astimezone(self.zone).year else f"{said} {year}"

    def time(self, moment: datetime) -> str:
        """A minute: 9 Dec 2026, 14:05."""
        return minute(moment, self.zone)

    def days(self, moment: datetime) -> str:
        """How far a day is from today: today, in 9 days, 2 days ago."""
        today = self.now.astimezone(self.zone).date()
        apart = (moment.astimezone(self.zone).date() - today).days
        match apart:
            case 0:
                return "today"
            case 1:
                return "tomorrow"
            case -1:
                return "yesterday"
        return f"in {number(apart)} days" if apart > 0 else f"{number(-apart)} days ago"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a wallet stands: a word and a mark beside the color, which never speaks alone."""

    word: str
    mark: str
    color: Color
    icon: str


PLENTY = Standing("Above half", "●", "green", ":material/check_circle:")
HALF = Standing("Half or less", "◐", "yellow", ":material/pending:")
LOW = Standing("Low", "○", "red", ":material/warning:")
ABSENT = Standing("Not in this plan", "—", "gray", ":material/block:")
UNLIMITED = Standing("Unlimited", "∞", "blue", ":material/all_inclusive:")
STANDINGS = (PLENTY, HALF, LOW, ABSENT, UNLIMITED)


def standing(wallet: Wallet) -> Standing:
    """Green above 50 %, yellow from 20 to 50 %, red below 20 %, gray for 0 of 0."""
    if wallet.unlimited:
        return UNLIMITED
    by_level = {"green": PLENTY, "yellow": HALF, "red": LOW, "none": ABSENT}
    return by_level[level(wallet.balance, wallet.total_allocated)]


def minute(moment: datetime, zone: tzinfo) -> str:
    """A minute in a time zone: 9 Dec 2026, 14:05."""
    local = moment.astimezone(zone)
    return f"{local.day} {local:%b %Y, %H:%M}"


def number(amount: int | Decimal | float) -> str:
    """A number the reader's way: 1,820; in German 1.820."""
    return format_decimal(amount, locale=_language(_told()), decimal_quantization=False)


def tenths(amount: float) -> str:
    """A number with one decimal: 12.3; in German 12,3."""
    return format_decimal(amount, "#,##0.0", locale=_language(_told()))


def signed(amount: int) -> str:
    """A number that is added or taken away: +1,820, -3."""
    return f"{'-' if amount < 0 else '+'}{number(abs(amount))}"


def percent(share: float) -> str:
    """A part of the whole, from 0 to 1: 12%; in German 12 %."""
    return format_percent(share, locale=_language(_told()))


def permille(share: float) -> str:
    """The same with one decimal: 12.3%; in German 12,3 %."""
    language = _language(_told())
    pattern = str(language.percent_formats[None].pattern).replace("0", "0.0", 1)
    return format_percent(share, pattern, locale=language)


def change(share: float) -> str:
    """How much more or less: +12%, -3%."""
    return f"{'-' if share < 0 else '+'}{percent(abs(share))}"


def signs() -> tuple[str, str, list[int]]:
    """How numbers are written there: the decimal sign, the sign between groups, their lengths."""
    language = _language(_told())
    last, others = language.decimal_formats[None].grouping
    decimal, group = get_decimal_symbol(language), get_group_symbol(language)
    return decimal, group, [last] if last == others else [last, *[others] * 5]


def _told() -> str:
    """The language that the browser tells; none outside of a page."""
    return st.context.locale or ""


@cache
def _language(told: str) -> Locale:
    """How numbers are written there. In English where that is not known."""
    try:
        return Locale.parse(told, sep="-")
    except (ValueError, TypeError, UnknownLocaleError):
        return Locale("en")


def plain(text: str) -> str:
    """Text from people or models for a place that reads Markdown: every sign as it stands.

    Else a name could draw an image from another host.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def count(amount: int, noun: str) -> str:
    """An amount and its noun: 1 use, 2 uses."""
    return f"{number(amount)} {noun}" if amount == 1 else f"{number(amount)} {noun}s"


def price(feature: Feature, longest: int | None = None) -> str:
    """What a use costs: 3 tokens. By the size of the answer: 3 to 9 tokens, or 3 tokens per 700
    output units where nobody knows how many the `longest` has."""
    least = count(feature.cost, "token")
    if feature.unit_size is None:
        return least
    if longest is None:
        return f"{least} per {count(feature.unit_size, 'output unit')}"
    most = feature.cost * feature.units(longest)
    return least if most == feature.cost else f"{number(feature.cost)} to {count(most, 'token')}"


def uses_for(balance: int, feature: Feature) -> str:
    """How often it can run with that: 6; up to 6 where a long answer costs more."""
    least = "" if feature.unit_size is None else "up to "
    return f"{least}{number(uses_left(balance, feature.cost))}"


def people(amount: int) -> str:
    """How many persons: 1 person, 12 people."""
    return "1 person" if amount == 1 else f"{number(amount)} people"


def dollars(cents: int) -> str:
    """Cents as dollars: $149, $1,234.50."""
    whole, rest = divmod(cents, 100)
    if not rest:
        return f"${number(whole)}"
    return f"${format_decimal(Decimal(cents) / 100, '#,##0.00', locale=_language(_told()))}"


def balance(wallet: Wallet) -> str:
    """What is left of what was given: 17 of 20."""
    if wallet.unlimited:
        return "Unlimited"
    if wallet.total_allocated == 0:
        return ABSENT.word
    return of(wallet)


def of(wallet: Wallet) -> str:
    """The same for any wallet, also one without a limit."""
    return f"{number(wallet.balance)} of {number(wallet.total_allocated)}"


def uses(wallet: Wallet, catalog: Catalog) -> list[str]:
    """What the balance buys, a line for each feature: "Generate a quest: 5 left"."""
    if wallet.unlimited or wallet.total_allocated == 0:
        return []
    if wallet.token_type == PACKS:
        return ["Pays for every feature"]
    return [
        f"{feature.title}: {uses_for(wallet.balance, feature)} left"
        for feature in catalog.features.values()
        if feature.token_type == wallet.token_type
    ]
