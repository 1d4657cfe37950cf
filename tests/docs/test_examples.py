"""What the documents promise is true: their examples run, their tables and commands exist.

In a python block a comment behind an expression is its result (`balance  # 17`), as `repr` or
`str` gives it; behind `print(…)` it is what is printed. Each must be reached and must be equal.
The blocks of one document share a namespace and a database, in their order.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import subprocess
import sys
import tokenize
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import dedent
from types import CodeType
from typing import Any

import click
import pytest

import tokenlib
from tokenlib import demo
from tokenlib.cli import main
from tokenlib.testing import TestDatabase

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")
SECRET = "a secret of the tests that is longer than 32 bytes"


@dataclass(frozen=True)
class Block:
    """One fenced block: its text, and the line before it in the document."""

    document: Path
    text: str
    line: int


def blocks(document: Path, language: str) -> list[Block]:
    """The fenced blocks of one language."""
    text = document.read_text("utf-8")
    fenced = rf"^( *)```{language}\n(.*?)^ *```$"
    found = [
        Block(document, dedent(match[2]), text.count("\n", 0, match.start()) + 1)
        for match in re.finditer(fenced, text, flags=re.MULTILINE | re.DOTALL)
    ]
    assert len(found) == text.count(f"```{language}\n"), "a block of another shape"
    return found


def comments(text: str) -> dict[int, str]:
    """The comment at the end of each line, by line number."""
    return {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }


class _Results(ast.NodeTransformer):
    """Hands the value of every expression that has a comment behind it to `__result__`."""

    def __init__(self, expected: dict[int, str]) -> None:
        self.expected = expected
        self.wanted: set[int] = set()

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        if node.end_lineno not in self.expected:
            return node
        self.wanted.add(node.end_lineno)
        line = ast.Constant(node.end_lineno)
        call = ast.Call(ast.Name("__result__", ast.Load()), [node.value, line], [])
        return ast.copy_location(ast.Expr(call), node)


def compiled(block: Block) -> tuple[CodeType, dict[int, str], set[int]]:
    """The block as code, with its lines counted as in the document."""
    text = "\n" * block.line + block.text
    expected = comments(text)
    results = _Results(expected)
    tree = ast.fix_missing_locations(results.visit(ast.parse(text)))
    code = compile(tree, block.document.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code, expected, results.wanted


def run(block: Block, namespace: dict[str, Any]) -> None:
    """Run a block; every result must be as its comment says."""
    code, expected, wanted = compiled(block)
    reached: set[int] = set()

    def result(value: object, line: int) -> None:
        reached.add(line)
        where = f"{block.document.name}:{line}"
        assert expected[line] in (repr(value), str(value)), f"{where} gave {value!r}"

    namespace |= {"__result__": result, "print": lambda *words: " ".join(map(str, words))}
    outcome = eval(code, namespace)  # noqa: S307 - our own documents
    if inspect.iscoroutine(outcome):
        asyncio.run(outcome)
    assert reached == wanted, f"{block.document.name}: lines {wanted - reached} were not reached"


def is_test_file(block: Block) -> bool:
    """Whether the block is a test file of the reader's: its first line names it."""
    return bool(re.match(r"# test_\w+\.py\n", block.text))


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_examples_run(
    name: str, token_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENLIB_DATABASE_URL", token_database.url())
    monkeypatch.setenv("TOKENLIB_JWT_SECRET", SECRET)
    # The reader's own model call is the one thing that the documents leave open.
    namespace: dict[str, Any] = {"call_the_model": lambda: "a quest"}
    ran = [block for block in blocks(ROOT / name, "python") if not is_test_file(block)]
    assert ran
    try:
        for block in ran:
            run(block, namespace)
        assert namespace["tokens"].verify().closed
    finally:
        if "tokens" in namespace:
            namespace["tokens"].close()


def test_the_example_of_a_test_passes(tmp_path: Path) -> None:
    [block] = [block for block in blocks(ROOT / "docs/guide.md", "python") if is_test_file(block)]
    (tmp_path / "test_example.py").write_text(block.text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading of the guide, cell by cell."""
    section = re.split(r"^#+ ", GUIDE.split(f"# {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_table_of_errors_is_complete() -> None:
    rows = table("Errors")
    listed = {row[0].strip("`"): row for row in rows}
    public = {name: getattr(tokenlib, name) for name in tokenlib.__all__}
    errors = {
        name: kind
        for name, kind in public.items()
        if isinstance(kind, type) and issubclass(kind, tokenlib.TokenlibError)
    }
    assert set(listed) == set(errors)
    for name, (_, _, status, data) in listed.items():
        assert int(status) == errors[name].status, name
        ours = [kind for kind in errors[name].__mro__ if issubclass(kind, tokenlib.TokenlibError)]
        written = "".join(map(inspect.getsource, ours))
        for attribute in re.findall(r"`(\w+)`", data):
            assert f"self.{attribute}" in written or f"{attribute}:" in written, (name, attribute)


def test_every_public_verb_is_in_the_guide() -> None:
    verbs = [name for name, _ in inspect.getmembers(tokenlib.Tokens, inspect.isfunction)]
    between_our_modules = {
        "carry_out",
        "charge_request",
        "key_of",
        "known_organization",
        "release_quietly",
    }
    missing = {verb for verb in verbs if not verb.startswith("_") and f"{verb}(" not in GUIDE}
    assert missing == between_our_modules


def test_what_a_new_person_of_the_staff_needs_is_in_the_guide() -> None:
    [said] = re.findall(r"`staff_set_staff\((.*?)\)`", GUIDE)
    named = [each.strip().removesuffix("=…") for each in said.split(",")]
    assert named == [*inspect.signature(tokenlib.Tokens.staff_set_staff).parameters][1:]


def test_the_scenarios_are_those_of_the_demo() -> None:
    assert [row[0].strip("`") for row in table("Demo scenarios")] == list(demo.SCENARIOS)


def commands(document: Path) -> list[tuple[str, list[str]]]:
    """Every `tokenlib COMMAND --options` that a document names, in blocks and in running text."""
    text = document.read_text("utf-8")
    shown = [*blocks(document, "sh"), *blocks(document, "bash")]
    lines = "\n".join(block.text for block in shown)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    found = re.findall(r"(?<![\w./-])tokenlib ([a-z]+)([^\n|>#;)]*)", "\n".join([lines, *spans]))
    return [(command, re.findall(r"--[a-z-]+", rest)) for command, rest in found]


def test_every_command_exists() -> None:
    named = [(path.name, *each) for path in DOCUMENTS for each in commands(path)]
    assert {command for _, command, _ in named} >= set(main.commands)
    for document, command, options in named:
        assert command in main.commands, f"{document}: tokenlib {command}"
        whole = main.commands[command]
        parts = [whole, *(whole.commands.values() if isinstance(whole, click.Group) else ())]
        known = {name for part in parts for param in part.params for name in param.opts}
        assert set(options) <= {*known, "--help"}, f"{document}: tokenlib {command} {options}"


def test_every_variable_is_read() -> None:
    read = (ROOT / "tokenlib" / "config.py").read_text("utf-8")
    # The command line's, and those of tests and benchmarks.
    elsewhere = {
        "TOKENLIB_BENCH_DIR",
        "TOKENLIB_CHROMIUM",
        "TOKENLIB_DEBUG",
        "TOKENLIB_TEST_POSTGRES",
    }
    for path in DOCUMENTS:
        for name in set(re.findall(r"TOKENLIB_[A-Z0-9_]+", path.read_text("utf-8"))) - elsewhere:
            # One of several issuers has a number behind.
            first = re.sub(r"(?<=^TOKENLIB_JWT_)(.+)_[0-9]+$", r"\1", name)
            assert f'"{first}"' in read, f"{path.name}: {name}"


def test_every_link_leads_somewhere() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
            name, _, section = link.partition("#")
            target = path.parent / name if name else path
            assert target.is_file(), f"{path.name}: {link}"
            text = target.read_text("utf-8") if target.suffix == ".md" else ""
            headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
            assert not section or section in anchors, f"{path.name}: {link}"
