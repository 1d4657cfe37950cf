"""The house: `import tokenlib` is quick and pulls in neither the console nor the API."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

PROBE = """
import json, sys, time
start = time.process_time()  # of this process alone, however busy the machine is
for _ in range(5_000_000):
    pass
begun = time.process_time()
import tokenlib
elapsed = time.process_time() - begun
loops = elapsed / (begun - start)
print(json.dumps([loops, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
MOST = 1.3
"""How many times an empty loop of five million turns it may take, on a machine of any speed."""
CONSOLE_AND_API = {"altair", "fastapi", "openai", "pandas", "streamlit"}


def probe() -> tuple[float, set[str]]:
    """The import's processor time in a new process, in empty loops, and what it brings in."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True
    )
    loops, modules = json.loads(result.stdout)
    return float(loops), set(modules)


def test_the_import_is_quick() -> None:
    assert statistics.median(probe()[0] for _ in range(5)) < MOST


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
