"""Asks the package index for known vulnerabilities of what the lock files name, by pip-audit.

`make audit` fails for a vulnerability, and when something could not be audited; with
--allow-unaudited the latter is said and no failure, for machines whose index gives no advisories.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock")
_OPTIONS = ("--require-hashes", "--disable-pip", "--format=json", "--progress-spinner=off")


def pip_audit(lock: str) -> str:
    """What pip-audit finds, as JSON; empty when it got no answer."""
    command = [sys.executable, "-m", "pip_audit", f"--requirement={ROOT / lock}", *_OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if not done.stdout:
        sys.stderr.write(done.stderr[-2000:])
    return done.stdout


def main(arguments: list[str], ask: Callable[[str], str] = pip_audit) -> int:
    """0 for nothing known; 1 for a vulnerability; 3 for packages that could not be asked about."""
    vulnerable, unaudited, audited = [], [], 0
    for lock in LOCKS:
        said = ask(lock)
        packages = json.loads(said)["dependencies"] if said else []
        if not packages:
            unaudited.append(lock)
        for package in packages:
            name = f"{package['name']} {package.get('version', '')}".strip()
            if "skip_reason" in package:
                unaudited.append(name)
            else:
                audited += 1
            for found in package.get("vulns", []):
                fixed = ", ".join(found["fix_versions"]) or "no version yet"
                vulnerable.append(f"{lock}: {name}: {found['id']}, mended in {fixed}")
    for line in vulnerable:
        print(line)
    unaudited = sorted(set(unaudited))
    if unaudited:
        few = ", ".join(unaudited[:5]) + (" and more" if len(unaudited) > 5 else "")
        print(f"not audited: {len(unaudited)} (the index gives no advisories for {few})")
    if not vulnerable and not unaudited:
        print(f"{audited} packages, no known vulnerability")
    if vulnerable:
        return 1
    return 3 if unaudited and "--allow-unaudited" not in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
