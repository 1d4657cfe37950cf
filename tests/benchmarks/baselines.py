"""What the gate is measured against, each as fast as its own design allows.

Each has the two tables of the contract with what it needs and no more: the wallets by their key,
the log by its key and by the one index that a balance history reads.

floor      one prepared statement per charge, UPDATE plus INSERT, in autocommit through psycopg,
           a connection per caller: no key, no hash, no checks
textbook   a SQLAlchemy session: SELECT FOR UPDATE, check, UPDATE, INSERT, commit
old        the steps of the old system: read balance, read total, write both, write log; callers
           overwrite each other, and what is lost is counted
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.benchmarks.measure import Caller
from tests.benchmarks.wallets import FEATURE, TOKEN_TYPE, Choose
from tokenlib import migrations
from tokenlib.embedded import SUPERUSER, Embedded

DATABASE = "baselines"
START = 1_000_000_000
KINDS = ("floor", "textbook", "old")

_TABLES = """
create schema {0};
create table {0}.ai_tokens (
    organization_id uuid,
    token_type text,
    balance bigint not null,
    total_used bigint not null default 0,
    last_used_at timestamptz,
    primary key (organization_id, token_type)
) with (fillfactor = 80);
create table {0}.ai_token_usage_log (
    id uuid primary key default gen_random_uuid(),
    organization_id uuid not null,
    user_id uuid not null,
    token_type text not null,
    feature_used text not null,
    tokens_deducted bigint not null,
    remaining_balance bigint not null,
    metadata jsonb,
    created_at timestamptz not null default now()
);
create index on {0}.ai_token_usage_log (organization_id, token_type, created_at);
"""
_WALLETS = """
insert into {0}.ai_tokens (organization_id, token_type, balance)
select organization, token_type, %s from unnest(%s::uuid[]) as organization cross join unnest(array[
    'forecast', 'general', 'goal_generation', 'lead_generation', 'strategy_analysis']) as token_type
"""
_CHARGE = """
with wallet as (
    update floor.ai_tokens set balance = balance - 1, total_used = total_used + 1,
        last_used_at = now()
    where organization_id = %s and token_type = %s
    returning organization_id, token_type, balance
)
insert into floor.ai_token_usage_log
    (organization_id, user_id, token_type, feature_used, tokens_deducted, remaining_balance)
select organization_id, %s, token_type, %s, 1, balance from wallet returning remaining_balance
"""
_BALANCE = "select balance from {}.ai_tokens where organization_id = %s and token_type = %s"
_TOTAL = "select total_used from old.ai_tokens where organization_id = %s and token_type = %s"
_BOTH = """
update old.ai_tokens set balance = %s, total_used = %s, last_used_at = now()
where organization_id = %s and token_type = %s
"""
_LOG = """
insert into old.ai_token_usage_log
    (organization_id, user_id, token_type, feature_used, tokens_deducted, remaining_balance)
values (%s, %s, %s, %s, 1, %s)
"""


class Base(DeclarativeBase):
    """The textbook's tables."""


class Wallet(Base):
    """A row of the textbook's wallets."""

    __tablename__ = "ai_tokens"
    __table_args__ = {"schema": "textbook"}  # noqa: RUF012 - SQLAlchemy's own form

    organization_id: Mapped[UUID] = mapped_column(primary_key=True)
    token_type: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]
    total_used: Mapped[int]
    last_used_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))


class Entry(Base):
    """A row of the textbook's log."""

    __tablename__ = "ai_token_usage_log"
    __table_args__ = {"schema": "textbook"}  # noqa: RUF012 - SQLAlchemy's own form

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    organization_id: Mapped[UUID]
    user_id: Mapped[UUID]
    token_type: Mapped[str]
    feature_used: Mapped[str]
    tokens_deducted: Mapped[int]
    remaining_balance: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))


class Baselines:
    """The three in a database of their own on the server."""

    def __init__(self, server: Embedded) -> None:
        self._server, self._held = server, ExitStack()

    def close(self) -> None:
        """End the connections of the callers that were made."""
        self._held.close()

    def connect(self) -> psycopg.Connection[Any]:
        """A connection in autocommit, until `close`."""
        conninfo = self._server.conninfo(DATABASE, SUPERUSER)
        return self._held.enter_context(psycopg.connect(conninfo, autocommit=True))

    def floor(self, choose: Choose) -> Caller:
        """A charge of the floor."""
        cursor = self.connect().cursor()

        def charge() -> int:
            organization, user = choose()
            cursor.execute(_CHARGE, (organization, TOKEN_TYPE, user, FEATURE), prepare=True)
            return _value(cursor)

        return charge

    def floor_check(self, choose: Choose) -> Caller:
        """A bare prepared SELECT of a balance."""
        cursor, question = self.connect().cursor(), _BALANCE.format("floor")

        def check() -> bool:
            cursor.execute(question, (choose()[0], TOKEN_TYPE), prepare=True)
            return _value(cursor) >= 1

        return check

    def textbook(self, choose: Choose) -> Caller:
        """A charge by the textbook."""
        engine = self._engine()

        def charge() -> int:
            organization, user = choose()
            with Session(engine, expire_on_commit=False) as session:
                wallet = session.scalars(
                    sa.select(Wallet)
                    .where(Wallet.organization_id == organization, Wallet.token_type == TOKEN_TYPE)
                    .with_for_update()
                ).one()
                if wallet.balance < 1:
                    raise ValueError("not enough tokens")
                now = datetime.now(UTC)
                wallet.balance -= 1
                wallet.total_used += 1
                wallet.last_used_at = now
                session.add(
                    Entry(
                        organization_id=organization,
                        user_id=user,
                        token_type=TOKEN_TYPE,
                        feature_used=FEATURE,
                        tokens_deducted=1,
                        remaining_balance=wallet.balance,
                        created_at=now,
                    )
                )
                session.commit()
                return wallet.balance

        return charge

    def textbook_check(self, choose: Choose) -> Caller:
        """A balance by the textbook."""
        engine = self._engine()

        def check() -> bool:
            with Session(engine) as session:
                balance = session.scalars(
                    sa.select(Wallet.balance).where(
                        Wallet.organization_id == choose()[0], Wallet.token_type == TOKEN_TYPE
                    )
                ).one()
                return balance >= 1

        return check

    def old(self, choose: Choose) -> Caller:
        """A charge of the old system."""
        cursor, question = self.connect().cursor(), _BALANCE.format("old")

        def charge() -> int:
            organization, user = choose()
            wallet = (organization, TOKEN_TYPE)
            balance = _value(cursor.execute(question, wallet, prepare=True))
            total = _value(cursor.execute(_TOTAL, wallet, prepare=True))
            cursor.execute(_BOTH, (balance - 1, total + 1, *wallet), prepare=True)
            cursor.execute(
                _LOG, (organization, user, TOKEN_TYPE, FEATURE, balance - 1), prepare=True
            )
            return balance - 1

        return charge

    def found(self, kind: str) -> tuple[int, int]:
        """How many charges the log has, and how many the balances know of."""
        [found] = (
            self.connect()
            .execute(
                f"select (select count(*) from {kind}.ai_token_usage_log),"
                f" (select sum(%s - balance) from {kind}.ai_tokens)".encode(),
                (START,),
            )
            .fetchall()
        )
        return int(found[0]), int(found[1])

    def _engine(self) -> sa.Engine:
        # One per caller, as the connections of the others: nobody waits for a pool.
        url = self._server.url(DATABASE, SUPERUSER)
        engine = sa.create_engine(url, pool_size=1, max_overflow=0)
        self._held.callback(engine.dispose)
        return engine


@contextmanager
def baselines(server: Embedded, organizations: list[UUID]) -> Iterator[Baselines]:
    """Make their database and fill it."""
    migrations.create_database(server.url("postgres", SUPERUSER), DATABASE)
    with closing(Baselines(server)) as made:
        connection = made.connect()
        for kind in KINDS:
            connection.execute(_TABLES.format(kind).encode())
            connection.execute(_WALLETS.format(kind).encode(), (START, organizations))
        connection.execute("vacuum analyze")
        yield made


def _value(cursor: psycopg.Cursor[Any]) -> int:
    [row] = cursor.fetchall()
    return int(row[0])
