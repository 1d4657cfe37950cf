"""Tables, counts, and progress that only a terminal sees."""

from __future__ import annotations

import io
import sys

import pytest

from tokenlib.cli.output import plural, progress, show_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def move_to_the_end() -> None:
    with progress("Counting") as move:
        move(1, 4)
        move(4, 4)


def test_a_terminal_sees_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    move_to_the_end()
    assert "Counting" in terminal.getvalue()
    assert "25%" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_a_file_sees_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    move_to_the_end()
    assert file.getvalue() == ""


def test_nothing_to_do_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("Counting"):
        pass
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [(1, "wallet", "1 wallet"), (0, "wallet", "0 wallets"), (1234, "entry", "1,234 entries")],
)
def test_counts_in_words(count: int, noun: str, said: str) -> None:
    assert plural(count, noun) == said


def test_numbers_stand_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name", "tokens"), [("a", 1200), ("longer", 5)])
    assert capsys.readouterr().out == "name    tokens\na        1,200\nlonger       5\n"
    show_table(("name", "tokens"), [])
    assert capsys.readouterr().out == "name  tokens\n"
