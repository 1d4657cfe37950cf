"""The house: `import tokenlib` is quick and pulls in neither the console nor the API."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

PROBE = """
import json, sys, time
start = time.process_time()  # of this process alone, however busy the machine is
import tokenlib
elapsed = time.process_time() - start
print(json.dumps([elapsed, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
LIMIT_SECONDS = 0.15
CONSOLE_AND_API = {"altair", "fastapi", "openai", "pandas", "streamlit"}


def probe() -> tuple[float, set[str]]:
    """The processor time that the import takes in a new process, and what it brings in."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True
    )
    elapsed, modules = json.loads(result.stdout)
    return float(elapsed), set(modules)


def test_the_import_is_quick() -> None:
    assert statistics.median(probe()[0] for _ in range(5)) < LIMIT_SECONDS


def test_the_import_pulls_nothing_heavy() -> None:
    modules = probe()[1]
    assert "tokenlib" in modules
    heavy = {
        "altair",
        "fastapi",
        "pandas",
        "sqlalchemy",
        "alembic",
        "psycopg",
        "streamlit",
        "openai",
    }
    assert not modules & heavy


def test_connecting_pulls_neither_the_console_nor_the_api() -> None:
    code = (
        "import sys, tokenlib.tokens, tokenlib.embedded;"
        "print(*{n.partition('.')[0] for n in sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    modules = set(result.stdout.split())
    assert {"tokenlib", "sqlalchemy"} <= modules
    assert not modules & CONSOLE_AND_API
