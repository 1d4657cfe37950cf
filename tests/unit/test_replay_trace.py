"""Reading a trace: which files are one, and errors that name the line and the column."""

from __future__ import annotations

import hashlib
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from tokenlib.errors import InvalidInput
from tokenlib.replay import Request, Trace
from tokenlib.replay.trace import MAX_LINE_BYTES

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD = "2023-11-16 18:17:03.9799600,4808,10\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


def write(path: Path, *lines: str, header: str = HEADER) -> Path:
    path.write_text(header + "".join(lines), encoding="utf-8", newline="")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInput) as refused:
        Trace(path)
    assert refused.value.field == "trace.csv"
    return refused.value.message


def test_a_row_is_a_request_with_its_line(path: Path) -> None:
    trace = Trace(write(path, GOOD, "2023-11-16 18:17:04.0319600,0,1000000000\r\n"))
    assert (trace.rows, trace.skipped) == (2, 0)
    assert list(trace.requests()) == [
        Request(2, datetime(2023, 11, 16, 18, 17, 3, 979960, UTC), 4808, 10),
        Request(3, datetime(2023, 11, 16, 18, 17, 4, 31960, UTC), 0, 1_000_000_000),
    ]
    assert trace.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "header",
    [
        "output_units,model,TIME,input_units\n",
        '"GENERATEDTOKENS","any", timestamp ,"contexttokens"\n',
        "\ufeffoutput_units;Model;Time;Input_Units\r\n",
        "output_units\tmodel\ttime\tinput_units\n",
    ],
)
def test_columns_are_found_by_their_names(path: Path, header: str) -> None:
    mark = next(sign for sign in ",;\t" if sign in header)
    row = mark.join(["7", '"x, y; z"', "2024-01-01T00:00:00+02:00", " 5 "])
    (request,) = Trace(write(path, row, header=header)).requests()
    assert request == Request(2, datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2))), 5, 7)


def test_blank_lines_are_no_rows_but_count_as_lines(path: Path) -> None:
    assert [r.line for r in Trace(write(path, "\n", GOOD, " \r\n", GOOD, "\n")).requests()] == [
        3,
        5,
    ]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("", "is empty."),
        (HEADER, "has no rows below its header."),
        (
            "a,ContextTokens,GeneratedTokens\n",
            "has no column for the time. Name it time or TIMESTAMP",
        ),
        ("time,GeneratedTokens\n", "has no column for the input units."),
        ("time,input_units,\n", "has no column for the output units."),
        ("time,TIMESTAMP,input_units,output_units\n", "has two columns for the time."),
        ("time,input_units,Input_Units,output_units\n", "has two columns for the input units."),
        (GOOD, "the header has: '2023-11-16 18:17:03.9799600', '4808', '10'."),
        ('"time,input_units\n', "line 1 is not CSV"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(path: Path, header: str, said: str) -> None:
    assert said in refusal(write(path, header=header))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2023-11-16,4808\n", "line 3 has 2 fields, and the header has 3."),
        ("2023-11-16,4808,10,\n", "line 3 has 4 fields, and the header has 3."),
        ("yesterday,1,2\n", "line 3, column TIMESTAMP, must be a time such as"),
        (",1,2\n", "line 3, column TIMESTAMP, must be a time such as"),
        ("2023-11-16,-1,2\n", "line 3, column ContextTokens, must be a whole number from 0"),
        ("2023-11-16,1.0,2\n", "line 3, column ContextTokens, must be a whole number from 0"),
        ("2023-11-16,1,\n", "line 3, column GeneratedTokens, must be a whole number from 0"),
        ("2023-11-16,1,\u0661\n", "line 3, column GeneratedTokens, must be a whole number from 0"),
        ("2023-11-16,1,1000000001\n", "from 0 to 1000000000, not '1000000001'."),
        (f"2023-11-16,1,{'9' * 5000}\n", f"from 0 to 1000000000, not '{'9' * 40}'."),
        ('2023-11-16,1,"2\n', "line 3 is not CSV"),
        (f"{'x' * (MAX_LINE_BYTES + 9)}\n", f"line 3 is longer than {MAX_LINE_BYTES} bytes."),
    ],
)
def test_a_bad_row_is_named_by_line_and_column_or_left_out(path: Path, row: str, said: str) -> None:
    write(path, GOOD, row, GOOD)
    assert said in refusal(path)
    trace = Trace(path, skip_bad_rows=True)
    assert (trace.rows, trace.skipped) == (2, 1)
    assert [request.line for request in trace.requests()] == [2, 4]
    assert said in trace.first_skipped[0]


def test_other_encodings_are_refused(path: Path) -> None:
    path.write_bytes((HEADER + GOOD).encode("utf-16"))
    assert "line 1 is not UTF-8 text" in refusal(path)
    path.write_bytes(HEADER.encode() + b"2023-11-16,1,2\n\xe4,1,2\n")
    assert "line 3 is not UTF-8 text" in refusal(path)
    assert Trace(path, skip_bad_rows=True).rows == 1


def test_only_the_first_skipped_rows_are_kept(path: Path) -> None:
    trace = Trace(write(path, GOOD, *["x,1,2\n"] * 50), skip_bad_rows=True)
    assert (trace.skipped, len(trace.first_skipped)) == (50, 10)


def test_a_trace_of_bad_rows_alone_is_refused(path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"trace\.csv has no good rows\."):
        Trace(write(path, "x,1,2\n"), skip_bad_rows=True)


def test_a_limit_reads_no_further(path: Path) -> None:
    trace = Trace(write(path, GOOD, GOOD, "x,1,2\n"), limit=2)
    assert trace.rows == len(list(trace.requests())) == 2


def test_the_length_of_a_trace_takes_no_memory(path: Path) -> None:
    write(path, *[GOOD] * 50_000)
    tracemalloc.start()
    try:
        assert Trace(path).rows == 50_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 4
