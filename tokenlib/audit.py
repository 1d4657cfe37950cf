"""Verify the books, anchor them elsewhere, settle what was found, erase a person's metadata."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

from tokenlib import anchors, answers, archives, inputs
from tokenlib.catalog import CatalogVerbs
from tokenlib.db import as_uuid, statements
from tokenlib.domain import Problem
from tokenlib.errors import InvalidInput, NotAMember

# A batch ends with the organization that reaches the second: a snapshot is not held for long, and
# progress moves.
_BATCH, _BATCH_ROWS = 200, 50_000
_AT_ONCE = 2  # on two connections: one mostly waits for the disk
_OF_ONE = re.compile(r"= (any\(%\(ids\)s\)|\w+\.organization_id)")
_ONE = "= (%(ids)s::uuid[])[1]"
CHECKS = (
    "wallet_sums",
    "wallet_entries",
    "wallet_terms",
    "wallet_dates",
    "log_chain",
    "log_heads",
    "archives",
    "event_chain",
    "event_heads",
    "erasures",
    "legacy_rows",
    "grant_sums",
    "grants",
    "hold_sums",
    "reservations",
    "reservation_terms",
    "keys",
)


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` read and what it found wrong; the books close when `problems` is empty."""

    wallets: int
    entries: int
    problems: tuple[Problem, ...]

    @property
    def closed(self) -> bool:
        """Whether every sum closes, every chain holds and no key was charged twice."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Erasure:
    """How much of one person's metadata `erase` took out."""

    log_entries: int
    reservations: int
    quests: int


class AuditVerbs(CatalogVerbs):
    """The verbs that check and explain."""

    def verify(
        self,
        organization: UUID | str | None = None,
        *,
        anchor: Iterable[str] | None = None,
        archive: Path | str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Verification:
        """Recompute every wallet from its entries: sums, numbers, hashes, grants, holds, keys.

        With the lines of an `anchor` (an open file will do), also that what it knew is still so;
        with the folder of an `archive`, also each archived entry, from its files. Reads in batches
        of organizations, two at a time, so memory stays bounded; `progress(done, total)` counts
        organizations. Each batch is one snapshot, so it may run while charges are written. Raises
        UnknownOrganization, and InvalidInput for what is no anchor or no folder. A run over
        everybody is kept, for Reports.verifications().
        """
        if anchor is not None and not isinstance(anchor, Iterable):
            raise InvalidInput("anchor", f"must be the lines of an anchor, not {anchor!r}")
        if archive is not None and not isinstance(archive, Path | str):
            raise InvalidInput("archive", f"must be the folder of an archive, not {archive!r}")
        named = statements("audit")
        only = None if organization is None else self.known_organization(organization)
        batches = [[only]] if only else list(self._batches())
        if self.database.spread():
            # A question that names one organization everywhere runs where its rows are, whatever it
            # asks; of others Citus cannot answer each.
            batches = [[organization_id] for batch in batches for organization_id in batch]
            named = {name: _OF_ONE.sub(_ONE, text) for name, text in named.items()}
        done, total = 0, sum(map(len, batches))
        wallets = entries = 0
        problems: list[Problem] = []
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            looked = pool.map(partial(self._look, named), batches)
            for batch, (has_wallets, has_entries, found) in zip(batches, looked, strict=True):
                wallets, entries = wallets + has_wallets, entries + has_entries
                problems.extend(found)
                done += len(batch)
                if progress is not None:
                    progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)
        if anchor is not None:
            problems.extend(self._against(anchor, only))
        if archive is not None:
            problems.extend(archives.problems(self.database, Path(archive), only))
        if organization is None:
            result = {"wallets": wallets, "entries": entries, "problems": len(problems)}
            self.database.call(named["record"], result)
        return Verification(wallets, entries, tuple(problems))

    def anchor(self, output: TextIO) -> int:
        """Write where every chain of entries ends, as JSON lines; return how many wallets.

        Keep the file where nobody who can write the database can reach it. May run while charges
        are written.
        """
        named = statements("anchors")
        at = self.database.rows(statements("health")["now"])[0]["now"].isoformat()
        wallets = 0
        for batch in self._batches():
            for row in self.database.rows(named["heads"], {"ids": batch}):
                output.write(anchors.Head(**row).line(at) + "\n")
                wallets += 1
        output.write(anchors.last_line(wallets, at) + "\n")
        return wallets

    def erase(
        self, organization: UUID | str, user: UUID | str, *, actor: str, reason: str
    ) -> Erasure:
        """Erase the metadata of one person's log rows, reservations and quests, for good.

        Each wallet gets an entry that says so, and the books still verify. The person may be
        deleted by now. Raises UnknownOrganization, and NotAMember for somebody of whom nothing is
        there: neither the person nor a row.
        """
        params: dict[str, Any] = {
            "organization_id": as_uuid(organization, "organization"),
            "user_id": as_uuid(user, "user"),
            "actor": inputs.said(actor, "actor"),
            "reason": inputs.said(reason, "reason"),
        }
        row = self.database.call(statements("plans")["erase_metadata"], params)
        if row.pop("status") != "ok":
            raise NotAMember(params["organization_id"], params["user_id"])
        return Erasure(**row)

    def _look(self, named: Mapping[str, str], batch: list[UUID]) -> tuple[int, int, list[Problem]]:
        """Wallets, entries and problems of some organizations, as one snapshot has them."""
        with self.database.transaction() as connection:
            connection.exec_driver_sql("set transaction isolation level repeatable read")
            connection.exec_driver_sql(named["unbounded"])
            counts = connection.exec_driver_sql(named["counts"], {"ids": batch}).one()
            problems = [
                Problem(**row)
                for check in CHECKS
                for row in connection.exec_driver_sql(named[check], {"ids": batch}).mappings()
            ]
        return counts.wallets, counts.entries, problems

    def _batches(self) -> Iterator[list[UUID]]:
        """Everybody, in the order of their ids, some at a time."""
        batch: list[UUID] = []
        rows = 0
        with self.database.transaction() as connection:
            connection.exec_driver_sql(statements("audit")["unbounded"])
            everyone = connection.exec_driver_sql(statements("audit")["organizations"]).all()
        for organization in everyone:
            batch.append(organization.id)
            rows += organization.rows
            if len(batch) == _BATCH or rows >= _BATCH_ROWS:
                yield batch
                batch, rows = [], 0
        if batch:
            yield batch

    def _against(self, anchor: Iterable[str], only: UUID | None) -> Iterator[Problem]:
        """What an anchor knew and the database does not, a batch of wallets at a time."""
        known = (head for head in anchors.heads(anchor) if only in (None, head.organization_id))
        while batch := [asdict(head) for head in islice(known, 5 * _BATCH)]:
            columns = {name: [head[name] for head in batch] for name in batch[0]}
            for row in self.database.rows(statements("anchors")["against_anchor"], columns):
                yield Problem(**row)

    def settle_finding(
        self, organization: UUID | str, finding: UUID | str, *, actor: str, reason: str
    ) -> None:
        """Settle a finding by an entry with actor and reason. Raises AlreadySettled."""
        params = {
            "organization_id": as_uuid(organization, "organization"),
            "finding_id": as_uuid(finding, "finding"),
            "actor": inputs.said(actor, "actor"),
            "reason": inputs.said(reason, "reason"),
        }
        row = self.database.call(statements("plans")["settle_finding"], params)
        if row["status"] != "ok":
            raise answers.refusal({**params, **row, "id": params["finding_id"]})
