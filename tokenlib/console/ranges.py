"""The one control of the time range, kept in the URL, and the steps that a range is drawn in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Literal

import streamlit as st

Step = Literal["hour", "day", "week"]

RANGES = {
    "24h": ("24 hours", timedelta(hours=24)),
    "7d": ("7 days", timedelta(days=7)),
    "30d": ("30 days", timedelta(days=30)),
    "90d": ("90 days", timedelta(days=90)),
}
CUSTOM = "Custom"
KEY = "range"
DATES = "dates"

MOST_BY_HOUR = timedelta(days=14)
LEAST_BY_DAY = timedelta(days=1)
LEAST_BY_WEEK = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Window:
    """A window of time: `since` belongs to it, `until` does not.

    `shift` is how far back the window before it lies; None for its own length. `words` name it, and
    `dates` say that it is whole days of a calendar and not rolling.
    """

    since: datetime
    until: datetime
    words: str
    shift: timedelta | None = None
    dates: bool = False

    @property
    def length(self) -> timedelta:
        """How long it is, as a clock on the wall counts."""
        return self.until - self.since

    @property
    def by_day(self) -> bool:
        """Whether it holds enough days to draw them."""
        return self.length > LEAST_BY_DAY

    @property
    def phrase(self) -> str:
        """When that was: in the last 30 days; from 1 Nov to 14 Nov 2026."""
        return self.words if self.dates else f"in the last {self.words}"

    def days(self, zone: tzinfo) -> list[date]:
        """Every calendar day in it, of a time zone."""
        return [start.date() for start in self.starts("day", zone)]

    def starts(self, step: Step, zone: tzinfo) -> list[datetime]:
        """When each hour, day or week that it touches began, in a time zone."""
        start, starts = begin(self.since, step, zone), []
        while start < self.until:
            starts.append(start)
            start = end(start, step)
        return starts or [start]

    @property
    def steps(self) -> list[Step]:
        """The steps in which it can be drawn, the usual one first."""
        if not self.by_day:
            return ["hour"]
        steps: list[Step] = ["day"]
        if self.length <= MOST_BY_HOUR:
            steps.append("hour")
        if self.length >= LEAST_BY_WEEK:
            steps.append("week")
        return steps

    @property
    def before(self) -> Window:
        """The window before this one, of the same length and as far through its days."""
        shift = self.shift or self.length
        words = f"the {self.words} before" if not self.dates else "the same time before"
        return Window(self.since - shift, self.until - shift, words, self.shift, self.dates)


def choose(now: datetime, default: str = "30d") -> Window:
    """Draw the control and return the rolling window that the reader chose."""
    chosen = _control([*RANGES], default)
    return _rolling(now, chosen)


def choose_any(now: datetime, zone: tzinfo, default: str = "30d") -> Window:
    """The same, with days of the reader's own choice in the reader's time zone."""
    chosen = _control([*RANGES, CUSTOM], default)
    if chosen != CUSTOM:
        return _rolling(now, chosen)
    today = now.astimezone(zone).date()
    if DATES not in st.session_state and DATES not in st.query_params:
        # Not a default: that would be missing in the address, and be other days tomorrow.
        week = today - timedelta(days=6), today
        st.session_state[DATES] = week
        st.query_params[DATES] = [day.isoformat() for day in week]
    days: tuple[date, ...] = st.date_input(
        "Days",
        [],
        max_value=today,
        key=DATES,
        bind="query-params",
        format="DD/MM/YYYY",
        label_visibility="collapsed",
        width=230,
    )
    return between(days[0], days[-1], now, zone) if days else _rolling(now, default)


def between(first: date, last: date, now: datetime, zone: tzinfo) -> Window:
    """The calendar days from `first` to `last`, both whole, as far as they have passed."""
    since = datetime.combine(first, time(), zone)
    until = datetime.combine(last + timedelta(days=1), time(), zone)
    local = now.astimezone(zone)
    words = f"on {_day(first)}" if first == last else f"from {_day(first)} to {_day(last)}"
    shift = timedelta(days=(last - first).days + 1)
    return Window(since, max(since, min(until, local)), words, shift, dates=True)


def query() -> dict[str, list[str]]:
    """The range that was chosen, for a link to another page."""
    return {name: st.query_params.get_all(name) for name in (KEY, DATES) if name in st.query_params}


def choose_step(window: Window) -> Step:
    """Hour, day or week, as far as the window allows."""
    steps = window.steps
    if len(steps) == 1:
        return steps[0]
    order: list[Step] = ["hour", "day", "week"]
    return st.segmented_control(
        "Step",
        [step for step in order if step in steps],
        key="step",
        bind="query-params",
        default=steps[0],
        required=True,
        format_func=str.capitalize,
        label_visibility="collapsed",
    )


def begin(moment: datetime, step: Step, zone: tzinfo) -> datetime:
    """When the hour, day or week (from Monday) of a moment began, in a time zone."""
    local = moment.astimezone(zone)
    if step == "hour":
        return local.replace(minute=0, second=0, microsecond=0)
    day = local.date() - timedelta(days=local.weekday() if step == "week" else 0)
    return datetime.combine(day, time(), zone)


def end(start: datetime, step: Step) -> datetime:
    """When the hour, day or week that began at `start` is over."""
    if step == "hour":  # in UTC, for the hour that the clocks repeat or skip
        return (start.astimezone(UTC) + timedelta(hours=1)).astimezone(start.tzinfo)
    return start + timedelta(days=7 if step == "week" else 1)


def _control(options: list[str], default: str) -> str:
    return st.segmented_control(
        "Time range",
        options,
        key=KEY,
        bind="query-params",
        default=default,
        required=True,
        label_visibility="collapsed",
    )


def _rolling(now: datetime, name: str) -> Window:
    words, length = RANGES[name]
    until = now.astimezone(UTC)
    return Window(until - length, until, words)


def _day(day: date) -> str:
    return f"{day.day} {day:%b %Y}"
