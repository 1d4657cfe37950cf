"""The schema as this tokenlib packages it, in the words of PostgreSQL's catalog."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

Schema = Mapping[str, Mapping[str, str]]

_FUNCTION = re.compile(
    r"^create function tokenlib\.(\w+)\(.*?\$\$(.*?)\$\$;", flags=re.MULTILINE | re.DOTALL
)

_ASKED_ONCE = re.compile(r"\( SELECT (tokenlib\.\w+\(\)) AS \w+\)")


@cache
def packaged() -> Schema:
    """Kind of thing, its name, its definition.

    From `sql/schema.json`, as `make schema` wrote it; what functions do, from their own files.
    """
    text = resources.files("tokenlib").joinpath("sql/schema.json").read_text("utf-8")
    return {**json.loads(text), "function body": _bodies()}


def on_citus(schema: Schema) -> Schema:
    """The same as `sql/citus.sql` leaves it: fewer triggers, and policies without subqueries."""
    names = ("ai_tokens", "ai_token_usage_log", "ai_token_events", "ai_token_archived_keys")
    spread = tuple(f"public.{name}." for name in names)
    return {
        **schema,
        "policy": {
            name: _ASKED_ONCE.sub(r"\1", text).replace("()::uuid[]", "()")
            for name, text in schema["policy"].items()
        },
        "trigger": {
            name: text for name, text in schema["trigger"].items() if not name.startswith(spread)
        },
    }


def _bodies() -> dict[str, str]:
    """The digest of each function's body, as the catalog has it. The last definition counts."""
    bodies: dict[str, str] = {}
    for folder in ("migrations", "functions"):
        files = resources.files("tokenlib").joinpath("sql", folder).iterdir()
        for file in sorted(files, key=lambda file: file.name):
            if file.name.endswith(".sql"):
                for name, body in _FUNCTION.findall(file.read_text("utf-8")):
                    bodies[name] = hashlib.sha256(body.encode()).hexdigest()
    return bodies
