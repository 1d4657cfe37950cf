"""Runs `tokenlib …` in this process, as a shell would."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner, Result

from tokenlib.cli import main

DELAYED_SECONDS = 0.03
"""Without TCP_NODELAY an answer takes 40 ms more: then none is quicker, on any machine."""


@dataclass(frozen=True)
class Shell:
    """Runs `tokenlib …` in this process. Nothing of the real environment reaches it."""

    environment: dict[str, str | None]

    def set(self, **environment: str) -> Shell:
        """A shell with these variables besides."""
        return Shell({**self.environment, **environment})

    def __call__(self, *arguments: object, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(
            main,
            [str(argument) for argument in arguments],
            env=self.environment,
            prog_name="tokenlib",
        )
        assert result.exit_code == exit_code, (result.stdout, result.stderr)
        return result

    def json(self, *arguments: object, exit_code: int = 0) -> Any:
        """The JSON that `tokenlib … --json` prints, on stdout and alone there."""
        return json.loads(self(*arguments, "--json", exit_code=exit_code).stdout)

    def error(self, *arguments: object, exit_code: int) -> str:
        """The one line that a command which fails prints; nothing is on stdout."""
        result = self(*arguments, exit_code=exit_code)
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        return line.removeprefix("Error: ")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
