"""`make bench`: every part in one go; `python -m tests.benchmarks PART` for one of them.

Prints tables, writes build/bench.json, and ends with code 1 when a target is not met. What the
figures mean stands in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import api, gate, memory, questions, verify

RESULT = Path(__file__).parents[2] / "build" / "bench.json"
PARTS = {"gate": gate, "api": api, "verify": verify, "questions": questions, "memory": memory}


def main() -> int:
    """Run the part that is named, else all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parts = parser.add_subparsers(dest="part", metavar=f"{{{','.join(PARTS)}}}")
    for name, part in PARTS.items():
        part.arguments(parts.add_parser(name, description=part.__doc__))
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    missed = []
    for name in [options.part] if options.part else PARTS:
        start = time.monotonic()
        chosen = options if options.part else parser.parse_args([name])
        results[name] = PARTS[name].run(chosen)
        results[name]["seconds"] = round(time.monotonic() - start)
        missed += [one for one in results[name]["targets"] if not one["met"]]
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(results, indent=2) + "\n")
        print(f"{name} took {results[name]['seconds']} s.\n")
    print(f"Written to {os.path.relpath(RESULT)}.")
    if missed:
        print(f"Not met: {'; '.join(one['what'] for one in missed)}.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
