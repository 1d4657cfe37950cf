"""docs/api.md: each language's blocks are one program, run against a real server."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from playwright._impl._driver import compute_driver_executable
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.api.callers import PEPPER, SETTINGS
from tests.api.test_wire import serving
from tests.cli.shell import free_port
from tokenlib.api import create_app
from tokenlib.api.errors import CODES
from tokenlib.config import Settings
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"


def blocks(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.M | re.S)
    assert len(found) >= 8
    return "\n".join(found)


def expected(program: str, comment: str) -> list[re.Pattern[str]]:
    """What the comments say is printed, in order; what `…` stands for is left open."""
    said = re.findall(comment, program, re.M)
    return [re.compile(".*".join(map(re.escape, each.split("…")))) for each in said]


@dataclass(frozen=True)
class Reader:
    """Somebody who tries the page: variables, and a folder of their own."""

    environment: dict[str, str]
    folder: Path

    def run(self, *command: str, wanted: list[re.Pattern[str]]) -> None:
        """Run a program; it prints what the comments say and no more."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            # PYTHONPATH: the code that is tested here, not one that is installed beside it.
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
                "HOME": str(self.folder),
                **self.environment,
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line for line in done.stdout.splitlines() if line]
        for line, pattern in zip(lines, wanted, strict=False):
            assert pattern.fullmatch(line), (line, pattern.pattern)
        assert len(lines) == len(wanted), (lines[-1], len(lines), len(wanted))


@pytest.fixture
def reader(tokens: Tokens, token_database: TestDatabase, tmp_path: Path) -> Iterator[Reader]:
    tokens.pepper = PEPPER
    admin = uuid4()
    with token_database.connect() as owner:
        owner.execute(
            "insert into tokenlib_staff (user_id, email, full_name, role)"
            " values (%s, 'admin@example.org', 'An admin', 'admin')",
            (admin,),
        )
    organization = tokens.create_organization("Acme", "pro")
    member = tokens.add_member(organization, "A member", "member@example.org")
    key = tokens.staff_create_key(
        admin, "The reader", ["check", "spend", "read", "admin", "metrics"], reason="to read"
    )
    app = create_app(lambda: tokens, Settings(data_dir=tmp_path, **SETTINGS))
    with serving(Starlette(routes=[Mount("/api", app=app)])) as port:
        environment = {
            "API": f"http://127.0.0.1:{port}/api/v1",
            "API_KEY": str(key.secret),
            "ORG": str(organization),
            "MEMBER": str(member),
        }
        yield Reader(environment, tmp_path)
    assert tokens.verify().closed


@pytest.mark.skipif(
    shutil.which("curl") is None and "CI" not in os.environ,
    reason="there is no curl on this machine",
)
def test_the_lines_for_the_shell(reader: Reader) -> None:
    program = blocks("sh")
    # A shell shows each answer on a line of its own.
    whole = f'set -euo pipefail\ncurl() {{ command curl "$@"; echo; }}\n{program}'
    reader.run("bash", "-c", whole, wanted=expected(program, r"^# ((?:\{|tokenlib_).*)$"))


@pytest.mark.thorough  # it fills a demo of its own
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    shutil.which("curl") is None and "CI" not in os.environ,
    reason="there is no curl on this machine",
)
def test_from_nothing_to_the_first_call(data_dir: Path, tmp_path: Path) -> None:
    """A new data folder, the lines as they stand, and a server that ends as it is told to."""
    [program] = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.M | re.S)
    port = str(free_port())
    command = tmp_path / "tokenlib"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tokenlib "$@"\n')
    command.chmod(0o755)
    shell = [str(shutil.which("bash")), "-euo", "pipefail", "-c"]
    ends = "status=0; kill %1; wait %1 || status=$?; echo; echo served until $status"
    done = subprocess.run(
        [*shell, f"{program.replace('8501', port)}\n{ends}"],
        cwd=tmp_path,
        env={
            "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(tmp_path),
            "TOKENLIB_DATA_DIR": str(data_dir),
            "TOKENLIB_PORT": port,
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [wanted] = expected(program, r"^# (\{.*)$")
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"allowed"')]
    assert len(answers) == 1, done.stdout
    assert wanted.fullmatch(answers[0])
    assert "served until 0" in done.stdout
    assert "tkl_" not in done.stdout + done.stderr


def test_the_lines_of_python(reader: Reader) -> None:
    program = blocks("python")
    wanted = expected(program, r"\)  # (.+)$")
    # The last of the loop over what staff do: it prints one line each.
    reader.run(sys.executable, "-c", program, wanted=repeated(wanted, "True"))


def test_the_lines_of_javascript(reader: Reader) -> None:
    node = compute_driver_executable()[0]
    program = blocks("js")
    (reader.folder / "program.mjs").write_text(program)
    wanted = expected(program, r"; // (.+)$")
    reader.run(str(node), "program.mjs", wanted=repeated(wanted, "true"))


def repeated(wanted: list[re.Pattern[str]], line: str) -> list[re.Pattern[str]]:
    """The loop over what staff do prints its one line five times."""
    place = max(
        index
        for index, pattern in enumerate(wanted)
        if pattern.pattern == line and wanted[index - 1].pattern == "60"
    )
    return [*wanted[:place], *[wanted[place]] * 5, *wanted[place + 1 :]]


def test_every_endpoint_is_in_each_language(reader: Reader) -> None:
    app = create_app(lambda: pytest.fail("not asked"), Settings(data_dir=reader.folder))
    for path in app.openapi()["paths"]:
        if path.startswith("/v1/tokens/"):
            continue  # the guide has them
        parts = path.removeprefix("/v1").split("/")
        wanted = "/".join(r"[^/\s]+" if part.startswith("{") else part for part in parts)
        for language in ("sh", "python", "js") if path.count("/") > 2 else ("sh",):
            assert re.search(rf"{wanted}(?![\w/-])", blocks(language)), (language, path)


def test_every_code_that_the_page_names_is_one() -> None:
    for code in re.findall(r"4\d\d, `(\w+)`", DOCUMENT.read_text("utf-8")):
        assert code in CODES
