"""The server that the fault tests share, and the table of what happened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults import world as worlds
from tests.faults.checker import Findings
from tests.faults.world import ROOT, Server, World
from tokenlib import embedded

COLUMNS = (
    "fault",
    "times",
    "answers",
    "refused",
    "not charged",
    "unknown",
    "replays",
    "longest",
    "found",
)


@dataclass
class Table:
    """One row per fault and per control."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, fault: str, times: int, findings: Findings, **more: object) -> None:
        """Put what happened on record."""
        self.rows.append(
            {
                "fault": fault,
                "times": times,
                "answers": findings.told["ok"],
                "refused": findings.told["refused"],
                "not charged": findings.told["not_charged"],
                "unknown": findings.told["unknown"],
                "replays": findings.replays,
                "longest": findings.longest,
                "found": dict(findings.kinds),
                **more,
            }
        )


_TABLE = pytest.StashKey[Table]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = Table()


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    return request.config.stash[_TABLE]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with worlds.folder() as folder, embedded.running(folder / "data") as started:
        yield worlds.prepare(started)


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[[Server], World]:
    """A fresh world on a server."""
    return lambda server: worlds.create(server, tmp_path)


@pytest.fixture
def world(server: Server, make_world: Callable[[Server], World]) -> World:
    """A fresh world on the server that all tests share."""
    return make_world(server)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash[_TABLE].rows
    if not rows:
        return
    results = ROOT / "build" / "faults.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(rows, indent=2) + "\n")
    terminalreporter.section("faults")
    for line in render(rows):
        terminalreporter.write_line(line)


def render(rows: list[dict[str, Any]]) -> list[str]:
    """The table as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        found = ", ".join(f"{kind} {count}" for kind, count in sorted(row["found"].items()))
        cells = {**row, "longest": f"{row['longest']:.1f} s", "found": found or "nothing"}
        lines.append("| " + " | ".join(str(cells[name]) for name in COLUMNS) + " |")
    return lines
