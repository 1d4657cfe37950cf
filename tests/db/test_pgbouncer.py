"""The gate through a real PgBouncer in transaction mode, with no setting that says so.

The server process behind a client is another one after each transaction, and shared with everybody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from tests.db.pgbouncer import PgBouncer, running
from tests.faults.proxy import Proxy
from tokenlib import DatabaseUnavailable, InsufficientTokens, TokenlibError, Tokens, Usage
from tokenlib.cluster import PORT
from tokenlib.db import Database
from tokenlib.retry import ONCE, Retry
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]
Pooler = Callable[..., PgBouncer]
GOAL = "generate_goal"
PATIENT = Retry(deadline=60)

pytestmark = pytest.mark.usefixtures("books_close")


@pytest.fixture
def pooler(token_database: TestDatabase) -> Iterator[Pooler]:
    """Start a PgBouncer before the test's database, with so many connections to the server."""
    with ExitStack() as held:

        def start(connections: int, behind: Path | None = None, **settings: object) -> PgBouncer:
            settings["default_pool_size"] = connections
            return held.enter_context(running(token_database.server, behind=behind, **settings))

        yield start


@contextmanager
def gate(
    url: str, retry: Retry = ONCE, pool_size: int = 2, prepare: bool | None = None
) -> Iterator[Tokens]:
    database = Database(url, retry=retry, pool_size=pool_size, prepare=prepare)
    with Tokens(database) as tokens:
        yield tokens


def set_for_the_login(database: TestDatabase, setting: str) -> None:
    """What the gate's login has from its first statement on, in this database."""
    with database.connect("postgres") as operator:
        login = f"role tokenlib_service in database {database.name}"
        operator.execute(f"alter {login} set {setting}".encode())


def charges(owner: psycopg.Connection) -> int:
    row = owner.execute("select count(*) from ai_token_usage_log").fetchone()
    assert row is not None
    return int(row[0])


def once(word: bytes) -> Callable[[bytes], bool]:
    """A rule that breaks the first request that holds the word."""
    left = [word]
    return lambda request: bool(left) and word in request and bool(left.pop())


def charge_in_turns(gates: list[Tokens], person: Person, times: int) -> None:
    for _ in range(times):
        for each in gates:
            each.deduct_tokens(*person, "generate_insight")


# One statement, one transaction ------------------------------------------------------------------


def test_clients_take_turns_at_one_server_connection(
    pooler: Pooler, token_database: TestDatabase, pro: Person, owner: psycopg.Connection
) -> None:
    url = pooler(1).url(token_database.url())
    # More often than it takes until a statement is prepared.
    with gate(url) as one, gate(url) as two:
        charge_in_turns([one, two], pro, 12)
        with one.spend(*pro, GOAL) as held:
            assert two.get_token_balance(pro[0], "goal_generation").reserved == held.tokens
        two.refund(one.deduct_tokens(*pro, GOAL), "a drill")
        assert two.get_token_balance(pro[0], "goal_generation").balance == 17
        one.database.check()
    assert charges(owner) == 2 * 12 + 2


def test_control_what_was_prepared_belongs_to_one_server_connection(
    pooler: Pooler, token_database: TestDatabase, pro: Person
) -> None:
    url = pooler(1).url(token_database.url())
    with gate(url, prepare=True) as one, gate(url, prepare=True) as two:  # noqa: SIM117
        with pytest.raises(DatabaseUnavailable, match=r"prepared statement .* already exists"):
            charge_in_turns([one, two], pro, 12)


def test_without_a_pooler_statements_are_prepared(
    token_database: TestDatabase, tokens: Tokens, pro: Person
) -> None:
    charge_in_turns([tokens], pro, 8)
    prepared = tokens.database.call("select count(*) as statements from pg_prepared_statements", {})
    assert prepared["statements"] > 0


def test_no_startup_option_is_sent_and_times_are_read_all_the_same(
    pooler: Pooler, token_database: TestDatabase, pro: Person
) -> None:
    set_for_the_login(token_database, "timezone = 'Asia/Kathmandu'")
    set_for_the_login(token_database, "datestyle = 'German'")
    pgbouncer = pooler(2)
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
        psycopg.connect(pgbouncer.conninfo(token_database.name), options="-c timezone=UTC")
    question = "select now() as now, current_setting('datestyle') as style, pg_backend_pid() as pid"
    with gate(pgbouncer.url(token_database.url())) as tokens:
        [first] = tokens.database.rows(question)
        # Another client sits on that connection, so the next transaction is the other one's.
        with psycopg.connect(pgbouncer.conninfo(token_database.name)) as other:
            other.execute("select")
            rows = [first, *tokens.database.rows(question), tokens.database.call(question, {})]
    assert len({row["pid"] for row in rows}) == 2
    for row in rows:
        assert row["now"].tzinfo is not None
        assert row["now"].utcoffset() == UTC.utcoffset(None)
        assert row["style"].startswith("ISO")


# Claims ------------------------------------------------------------------------------------------

STATE = (
    "select current_user as who, current_setting('request.jwt.claims', true) as claims,"
    " pg_backend_pid() as pid"
)


@pytest.mark.parametrize("end", ["commit", "rollback", "exception"])
def test_claims_do_not_leak_to_the_next_client_of_a_server_connection(
    pooler: Pooler, token_database: TestDatabase, pro: Person, end: str
) -> None:
    organization, user = pro
    url = pooler(1).url(token_database.url())
    with gate(url) as one, gate(url) as two:
        pid = one.database.call(STATE, {})["pid"]
        try:
            with one.database.transaction(reader="authenticated", user_id=user) as connection:
                seen = connection.exec_driver_sql("select organization_id from ai_tokens").scalars()
                assert set(seen) == {organization}
                member = connection.exec_driver_sql(STATE).one()
                assert (member.who, member.pid) == ("authenticated", pid)
                assert str(user) in member.claims
                if end == "rollback":
                    connection.exec_driver_sql("rollback")
                elif end == "exception":
                    raise KeyError(end)
        except KeyError:
            assert end == "exception"
        for each in (two, one):
            nobody = {"who": "tokenlib_service", "claims": "", "pid": pid}
            # Outside a transaction, in one as the service, as a member without a name, as staff.
            assert each.database.call(STATE, {}) == nobody
            assert each.database.rows(STATE) == [nobody]
            assert each.database.rows("select * from ai_tokens", reader="authenticated") == []
            assert each.database.rows("select * from ai_tokens", reader="tokenlib_reader") == []


def test_control_claims_of_a_session_leak_to_the_next_client(
    pooler: Pooler, token_database: TestDatabase, pro: Person
) -> None:
    """What a client that knows nothing of poolers does to us: we set our own, each time."""
    pgbouncer = pooler(1)
    claims = f'{{"sub": "{pro[1]}"}}'
    with (
        psycopg.connect(pgbouncer.conninfo(token_database.name), autocommit=True) as other,
        gate(pgbouncer.url(token_database.url())) as tokens,
    ):
        other.execute("select set_config('request.jwt.claims', %s, false)", (claims,))
        assert tokens.database.call(STATE, {})["claims"] == claims
        assert tokens.database.rows("select * from ai_tokens", reader="authenticated") == []
        own = "select distinct organization_id from ai_tokens"
        [row] = tokens.database.rows(own, reader="authenticated", user_id=pro[1])
        assert row["organization_id"] == pro[0]


# Races -------------------------------------------------------------------------------------------


def together(calls: list[Callable[[], Usage]]) -> list[Usage | TokenlibError]:
    """Run all calls in 32 threads; their answers, or errors."""

    def run(call: Callable[[], Usage]) -> Usage | TokenlibError:
        try:
            return call()
        except TokenlibError as error:
            return error

    with ThreadPoolExecutor(32) as threads:
        return list(threads.map(run, calls))


def test_two_hundred_calls_with_one_key_charge_once(
    pooler: Pooler, token_database: TestDatabase, pro: Person, owner: psycopg.Connection
) -> None:
    with gate(pooler(8).url(token_database.url()), PATIENT, pool_size=16) as crowd:
        calls = [lambda: crowd.deduct_tokens(*pro, GOAL, idempotency_key="key")] * 200
        answers = together(calls)
    assert {answer.id for answer in answers if isinstance(answer, Usage)} != set()
    assert len({answer.id for answer in answers if isinstance(answer, Usage)}) == 1
    assert sum(isinstance(answer, Usage) and not answer.replayed for answer in answers) == 1
    assert not any(isinstance(answer, TokenlibError) for answer in answers)
    assert charges(owner) == 1


def test_a_hundred_charges_on_a_balance_for_sixty(
    pooler: Pooler, token_database: TestDatabase, tokens: Tokens, pro: Person
) -> None:
    tokens.upgrade_tokens(pro[0], "general", 10)
    with gate(pooler(8).url(token_database.url()), PATIENT, pool_size=16) as crowd:
        answers = together([lambda: crowd.deduct_tokens(*pro, "generate_insight")] * 100)
    assert sum(isinstance(answer, Usage) for answer in answers) == 60
    assert sum(isinstance(answer, InsufficientTokens) for answer in answers) == 40
    wallet = tokens.get_token_balance(pro[0], "general")
    assert (wallet.balance, wallet.total_used) == (0, 60)


# Somebody stands in the way ----------------------------------------------------------------------


@contextmanager
def holding(database: TestDatabase, organization: UUID) -> Iterator[None]:
    """Somebody has locked the organization's wallets, and does not go on."""
    with database.connect() as holder, holder.transaction():
        holder.execute(
            "select from ai_tokens where organization_id = %s for update", (organization,)
        )
        yield


@pytest.mark.parametrize("ends", ["the login's lock_timeout", "our deadline"])
def test_a_stuck_wallet_ends_in_time_and_charges_nothing(
    pooler: Pooler, token_database: TestDatabase, pro: Person, ends: str, owner: psycopg.Connection
) -> None:
    deadline = 1.0
    if ends == "the login's lock_timeout":
        deadline = 60
        set_for_the_login(token_database, "lock_timeout = '300ms'")
    url = pooler(2).url(token_database.url())
    with gate(url, Retry(deadline, again=False)) as tokens:
        with holding(token_database, pro[0]):
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable, match="wallet is busy") as failed:
                tokens.deduct_tokens(*pro, GOAL)
        assert failed.value.outcome == "not_charged"
        assert time.monotonic() - began < 30
        assert charges(owner) == 0
        assert tokens.deduct_tokens(*pro, GOAL).remaining_balance == 17


def test_who_sits_on_the_only_connection_loses_it(
    pooler: Pooler, token_database: TestDatabase, pro: Person
) -> None:
    set_for_the_login(token_database, "idle_in_transaction_session_timeout = '300ms'")
    pgbouncer = pooler(1)
    with (
        psycopg.connect(pgbouncer.conninfo(token_database.name)) as idle,
        gate(pgbouncer.url(token_database.url()), PATIENT) as tokens,
    ):
        idle.execute("select")
        assert tokens.deduct_tokens(*pro, GOAL).remaining_balance == 17
        with pytest.raises(psycopg.Error, match="idle-in-transaction timeout"):
            idle.execute("select")


def test_a_pooler_without_a_free_connection_is_given_up_in_time(
    pooler: Pooler, token_database: TestDatabase, pro: Person, owner: psycopg.Connection
) -> None:
    pgbouncer = pooler(1)
    with gate(pgbouncer.url(token_database.url()), Retry(1.0)) as tokens:
        tokens.database.check()
        with psycopg.connect(pgbouncer.conninfo(token_database.name)) as other:
            other.execute("select")
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable) as failed:
                tokens.deduct_tokens(*pro, GOAL, idempotency_key="key")
            assert time.monotonic() - began < 30
        # PgBouncer does not say whether it had passed it on; the books do.
        assert failed.value.outcome == "unknown"
        assert not tokens.deduct_tokens(*pro, GOAL, idempotency_key="key").replayed
        assert charges(owner) == 1


# Cuts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["before the pooler", "behind it"])
@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_charge_with_a_key_survives_a_cut_and_is_charged_once(
    pooler: Pooler,
    token_database: TestDatabase,
    pro: Person,
    owner: psycopg.Connection,
    lost: str,
    side: str,
) -> None:
    server = token_database.server.data_dir / "run" / f".s.PGSQL.{PORT}"
    with ExitStack() as held:
        if side == "behind it":
            proxy = held.enter_context(Proxy(server))
            url = pooler(2, behind=proxy.folder).url(token_database.url())
        else:
            pgbouncer = pooler(2)
            proxy = held.enter_context(Proxy(pgbouncer.socket))
            url = proxy.url(pgbouncer.url(token_database.url()))
        tokens = held.enter_context(gate(url, PATIENT))
        setattr(proxy, "cut" if lost == "request" else "drop", once(b"tokenlib.deduct("))
        usage = tokens.deduct_tokens(*pro, GOAL, idempotency_key="key")
        assert proxy.broken == 1
        assert usage.replayed is (lost == "reply")
        assert usage.remaining_balance == 17
        assert charges(owner) == 1


def test_a_server_that_was_away_is_found_again_soon(
    pooler: Pooler, token_database: TestDatabase, pro: Person, owner: psycopg.Connection
) -> None:
    server = token_database.server.data_dir / "run" / f".s.PGSQL.{PORT}"
    with Proxy(server) as proxy, ThreadPoolExecutor(1) as thread:
        pgbouncer = pooler(2, behind=proxy.folder)
        with gate(pgbouncer.url(token_database.url()), PATIENT) as tokens:
            tokens.database.check()
            proxy.cut = lambda _request: True
            charge = thread.submit(tokens.deduct_tokens, *pro, GOAL, idempotency_key="key")
            # The connection that was there, and the attempt to open another.
            while proxy.broken < 2 and not charge.done():
                time.sleep(0.01)
            proxy.cut = lambda _request: False
            began = time.monotonic()
            assert charge.result().remaining_balance == 17
            # Unless told otherwise it would wait for 15 seconds before it tries again.
            assert time.monotonic() - began < 10
    assert charges(owner) == 1


def test_a_pooler_that_is_killed_loses_nothing(
    pooler: Pooler, token_database: TestDatabase, tokens: Tokens, owner: psycopg.Connection
) -> None:
    organization = tokens.create_organization("Acme", "pro")
    user = tokens.add_member(organization, "A member", "member@example.org")
    tokens.upgrade_tokens(organization, "general", 100_000)
    pgbouncer = pooler(4)
    answers: dict[str, Usage] = {}
    over = threading.Event()

    def charge(crowd: Tokens, name: int) -> None:
        count = 0
        while not over.is_set():
            key = f"{name}-{(count := count + 1)}"
            answers[key] = crowd.deduct_tokens(
                organization, user, "generate_insight", idempotency_key=key
            )

    with (
        gate(pgbouncer.url(token_database.url()), PATIENT, pool_size=8) as crowd,
        ThreadPoolExecutor(4) as threads,
    ):
        clients = [threads.submit(charge, crowd, name) for name in range(4)]
        try:
            for _ in range(3):
                goal = len(answers) + 40
                while len(answers) < goal and not any(client.done() for client in clients):
                    time.sleep(0.01)
                pgbouncer.kill()
                pgbouncer.start()
        finally:
            over.set()
        for client in clients:
            client.result()
    assert charges(owner) == len(answers) == len({usage.id for usage in answers.values()})
    assert tokens.get_token_balance(organization, "general").total_used == len(answers)
