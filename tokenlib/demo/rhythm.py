"""When requests happen: by the hour of the business day, the day of the week, and growth.

The business day is laid so that now is 15:00 of it, whatever the clock says: a demo started at
night shows the last 24 hours as busy as one started in the afternoon, rising up to now.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from random import Random

from tokenlib.demo.moments import HOUR, micros

_NOW_HOUR = 15
# Share of a busy hour, from midnight to midnight; rises until the hour before now.
_HOURS = (1, 1, 1, 1, 1, 2, 5, 12, 26, 44, 58, 66, 70, 82, 100, 96, 84, 60, 36, 22, 14, 8, 4, 2)
_WEEKDAYS = (96, 104, 108, 102, 84, 18, 14)  # Monday to Sunday
_GROWTH = 2.2  # the last day against the first, like for like


class Rhythm:
    """The hours of the last `days` days before `now`, weighted."""

    def __init__(self, now: datetime, days: int) -> None:
        self.now = micros(now)
        self.hours = days * 24
        today = now.date()
        weights = []
        for ago in range(self.hours, 0, -1):
            hour = _NOW_HOUR - ago
            day = today + timedelta(days=hour // 24)
            growth = 1 + (_GROWTH - 1) * (1 - ago / self.hours)
            weights.append(_HOURS[hour % 24] * _WEEKDAYS[day.weekday()] * growth)
        self._weights = weights

    def shares(self) -> list[float]:
        """What part of all requests has happened by the end of each hour; the last is 1."""
        total = sum(self._weights)
        return [weight / total for weight in accumulate(self._weights)]

    def moments(self, random: Random, count: int, since: int, until: int) -> list[int]:
        """`count` moments from `since` to `until` in no order, none outside the days of history."""
        first = max(0, self.hours - (self.now - since) // HOUR)
        last = min(self.hours, self.hours - (self.now - until) // HOUR)
        if count <= 0 or first >= last:
            return []
        hours: Sequence[int] = range(first, last)
        cumulative = list(accumulate(self._weights[first:last]))
        start = self.now - self.hours * HOUR
        return [
            start + hour * HOUR + int(random.random() * HOUR)
            for hour in random.choices(hours, cum_weights=cumulative, k=count)
        ]
