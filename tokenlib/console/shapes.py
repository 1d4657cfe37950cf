"""Rows of use over time as frames: filled to whole windows, summed, compared with the time before.

Nothing here draws or asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, tzinfo
from math import isnan
from typing import Protocol

import pandas as pd

from tokenlib.console import format as fmt
from tokenlib.console.ranges import Step, Window, end


class Use(Protocol):
    """What a row of use over time has. `key` is None for everything outside the top."""

    @property
    def start(self) -> datetime: ...
    @property
    def key(self) -> str | None: ...
    @property
    def label(self) -> str | None: ...
    @property
    def uses(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def refunded(self) -> int: ...


OTHER = "Other"
_REST = "*"


def titles(rows: Iterable[Use]) -> dict[str | None, str]:
    """What each key is called, the most tokens first and everything else last; no two alike."""
    tokens: dict[str | None, int] = {}
    names: dict[str | None, str] = {}
    for row in rows:
        tokens[row.key] = tokens.get(row.key, 0) + row.tokens
        names[row.key] = row.label or row.key or OTHER
    called = list(names.values())
    return {
        key: names[key] if called.count(names[key]) == 1 else f"{names[key]} ({str(key)[:8]})"
        for key in sorted(names, key=lambda key: (key is None, -tokens[key], names[key]))
    }


def bars(
    rows: Sequence[Use],
    window: Window,
    step: Step,
    zone: tzinfo,
    names: Mapping[str | None, str],
    most: int,
    picked: tuple[str, str] | None = None,
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The frame of a stacked chart, the labels of its bars in order, and its groups.

    Of `names` the first `most` stand alone; the rest is summed into one group. Bars that are not
    whole are drawn weaker, and so is everything but the `picked` start and key.
    """
    labels = [name(start, step, window, zone) for start in window.starts(step, zone)]
    alone = [key for key in names if key is not None][:most]
    groups = [names[key] for key in alone]
    lines = []
    for row in rows:
        start = row.start.astimezone(zone)
        group = (row.key or "", names[row.key]) if row.key in alone else ("", OTHER)
        marks = name(start, step, window, zone), partial(start, step, window, zone)
        lines.append((start.isoformat(), *marks, *group, row.tokens, row.uses))
    columns = ["start", "label", "note", "key", "group"]
    frame = pd.DataFrame(lines, columns=[*columns, "value", "uses"])
    frame = frame.groupby(columns, as_index=False, sort=False).sum()
    if OTHER in set(frame["group"]) and OTHER not in groups:
        groups.append(OTHER)
    if picked is None:
        frame["strength"] = (frame["note"] == "").map({True: 1.0, False: 0.5})
    else:
        at, of = picked
        own = (frame["start"] == at) & ((frame["key"] == of) | (of == ""))
        frame["strength"] = own.map({True: 1.0, False: 0.3})
    frame["place"] = [groups.index(group) for group in frame["group"]]
    return frame, labels, groups


def compared(
    rows: Sequence[Use], before: Sequence[Use], names: Mapping[str | None, str]
) -> pd.DataFrame:
    """A line for each key: its use, its share, and the change since the time before.

    `before` is NaN where it is not known: for everything else, which was something else then, and
    for a key that may have been among it.
    """
    keys = [_REST if key is None else key for key in names]
    now = _summed(rows).reindex(keys, fill_value=0)
    then = _summed(before)["tokens"]
    unlisted = float("nan") if _REST in then.index else 0.0
    then = then.drop(_REST, errors="ignore").astype(float).reindex(keys, fill_value=unlisted)
    then[[key == _REST for key in keys]] = float("nan")
    total = now["tokens"].sum()
    return pd.DataFrame(
        {
            "key": list(names),
            "group": list(names.values()),
            "uses": now["uses"].to_numpy(),
            "tokens": now["tokens"].to_numpy(),
            "share": (now["tokens"] / total if total else now["tokens"] * 0.0).to_numpy(),
            "before": then.to_numpy(),
            "change": [change(int(a), b) for a, b in zip(now["tokens"], then, strict=True)],
            "refunded": now["refunded"].to_numpy(),
            "net": (now["tokens"] - now["refunded"]).to_numpy(),
        }
    )


def change(now: float, before: float) -> str:
    """How much more or less than before: ▲ 12 %, ▼ 3 %, = 0 %, new."""
    if isnan(before):
        return "—"
    if not before:
        return "new" if now else "= 0 %"
    percent = round((now - before) / before * 100)
    return f"{'▲' if percent > 0 else '▼' if percent < 0 else '='} {fmt.number(abs(percent))} %"


def name(start: datetime, step: Step, window: Window, zone: tzinfo) -> str:
    """What a bar is called: 3 Nov; 3 Nov 14:00; week of 3 Nov; 20 Nov, so far."""
    year = f" {start:%Y}" if start.year != window.until.astimezone(zone).year else ""
    day = f"{start.day} {start:%b}{year}"
    if step == "hour":
        day = f"{day} {start:%H:%M}{' again' if start.fold else ''}"
    elif step == "week":
        day = f"week of {day}"
    return f"{day}, so far" if end(start, step) > window.until else day


def partial(start: datetime, step: Step, window: Window, zone: tzinfo) -> str:
    """What of a bar lies outside the window, in words; empty for a whole one."""
    cut = []
    if start < window.since:
        cut.append(f"from {window.since.astimezone(zone):%d %b %H:%M}")
    if end(start, step) > window.until:
        cut.append(f"until {window.until.astimezone(zone):%d %b %H:%M}")
    return ", ".join(cut)


def _summed(rows: Sequence[Use]) -> pd.DataFrame:
    frame = pd.DataFrame(
        [
            (_REST if row.key is None else row.key, row.uses, row.tokens, row.refunded)
            for row in rows
        ],
        columns=["key", "uses", "tokens", "refunded"],
    )
    return frame.groupby("key").sum()
