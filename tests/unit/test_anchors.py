"""An anchor is read back as it was written, or refused with the line that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from tokenlib import InvalidInput
from tokenlib.anchors import Head, heads, last_line

AT = "2026-03-01T12:00:00+00:00"
HEADS = [
    Head(UUID(int=1), "forecast", 0, "", 1, "a" * 64),
    Head(UUID(int=2), "general", 3, "b" * 64, 2, "c" * 64),
]
LINES = [*(head.line(AT) for head in HEADS), last_line(2, AT)]


def test_it_is_read_back_as_it_was_written() -> None:
    assert list(heads(LINES)) == HEADS
    assert list(heads([last_line(0, AT)])) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda lines: lines[:-1], "is not complete"),
        (lambda lines: lines[1:], "is not complete"),
        (lambda lines: lines[:0], "is not complete"),
        (lambda lines: [lines[0][:40]], "no anchor of tokenlib: line 1"),
        (lambda lines: [lines[0], "[1]"], "no anchor of tokenlib: line 2"),
        (lambda lines: [lines[0], ""], "no anchor of tokenlib: line 2"),
        (lambda lines: lines + lines, "more after its end, in line 4"),
    ],
)
def test_a_file_that_is_no_whole_anchor_is_refused(
    spoil: Callable[[list[str]], list[str]], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        list(heads(spoil(LINES)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ('"log_number": 3', '"log_number": "3"'),
        ('"log_number": 3', '"log_number": 0'),
        ('"log_number": 3', '"log_number": -3'),
        ('"log_number": 3', '"log_number": true'),
        ('"event_number": 2, ', ""),
        ("b" * 64, "b" * 63),
        (str(UUID(int=2)), "someone"),
        ('"general"', "7"),
    ],
)
def test_a_value_that_cannot_be_is_refused(field: str, value: str) -> None:
    assert field in LINES[1]
    with pytest.raises(InvalidInput, match="line 2"):
        list(heads([LINES[0], LINES[1].replace(field, value), LINES[2]]))
