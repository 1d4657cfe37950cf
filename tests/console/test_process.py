"""The one gate of the process: opened once, refreshed every minute, closed at the end."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from tokenlib.config import Settings
from tokenlib.console import process
from tokenlib.errors import DatabaseUnavailable
from tokenlib.latency import Pace
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens


@pytest.fixture
def gate(token_database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> process.Gate:
    """A gate of its own, on a database that the environment names."""
    url = token_database.url().replace("postgresql+psycopg", "postgresql")
    monkeypatch.setenv("TOKENLIB_DATABASE_URL", url)
    gate = process.Gate()
    monkeypatch.setattr(process, "gate", gate)
    return gate


def test_everybody_in_the_process_gets_the_same_gate(gate: process.Gate) -> None:
    found: list[Tokens] = []
    threads = [threading.Thread(target=lambda: found.append(gate.tokens())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(tokens) for tokens in found}) == 1
    gate.close()


def test_a_database_that_is_down_is_tried_again(
    gate: process.Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOKENLIB_DATABASE_URL", "postgresql://127.0.0.1:1/nobody")
    with caplog.at_level(logging.ERROR, "tokenlib"):
        gate.open()
    assert "did not answer" in caplog.text
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            gate.tokens()


def test_a_database_of_their_own_gets_no_demo_data(
    gate: process.Gate, token_database: TestDatabase
) -> None:
    with token_database.connect() as owner:
        before = owner.execute("select count(*) from organizations").fetchone()
        gate.open()
        assert owner.execute("select count(*) from organizations").fetchone() == before
    gate.close()


def test_due_periods_are_refreshed_while_the_server_runs(
    gate: process.Gate, token_clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "REFRESH_SECONDS", 0.01)
    token_clock.advance(timedelta(days=31))

    async def serve() -> None:
        async with process.lifespan(None):
            reports = Reports(gate.tokens().database, None)
            served.append(gate.tokens())
            with anyio.fail_after(30):
                while await anyio.to_thread.run_sync(reports.overdue_periods):
                    await anyio.sleep(0.01)

    served: list[Tokens] = []
    anyio.run(serve)
    assert gate.tokens() is not served[0]  # the one that served is closed
    gate.close()


def test_a_refresh_that_fails_is_logged_and_not_the_end(
    gate: process.Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOKENLIB_DATABASE_URL", "postgresql://127.0.0.1:1/nobody")
    with caplog.at_level(logging.WARNING, "tokenlib"):
        gate.refresh()
    assert "could not be refreshed" in caplog.text


def test_the_speed_of_answers_is_kept_while_the_server_runs(
    gate: process.Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(process, "KEPT_EVERY", 2)
    seen = Pace()
    monkeypatch.setattr(process, "pace", seen)
    for _ in range(2):
        seen.add("page", 250.0)

    async def serve() -> None:
        async with process.lifespan(None):
            reports = Reports(gate.tokens().database, None)
            with anyio.fail_after(30):
                while not await anyio.to_thread.run_sync(reports.latest_latencies):
                    await anyio.sleep(0.01)

    anyio.run(serve)
    gate.close()


def test_a_setting_that_cannot_be_meant_ends_the_process_with_its_name(
    gate: process.Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENLIB_PORT", "many")
    with pytest.raises(SystemExit, match="TOKENLIB_PORT must be a whole number"):
        process.settings_or_exit()


def test_the_owner_is_reached_by_the_same_road(tokens: Tokens) -> None:
    url = process.owner_url(tokens)
    assert url.startswith("postgresql+psycopg://tokenlib_owner@")
    assert url.split("@")[1] == tokens.database.url.render_as_string().split("@")[1]


def test_pages_lie_beside_the_package_in_a_checkout(tmp_path: Path) -> None:
    assert (process.pages_folder() / "quests.py").is_file()
    assert process.FRAME.is_file()
    assert not (process.FRAME.parent / "pages").exists()
    assert Settings(data_dir=tmp_path).embedded
