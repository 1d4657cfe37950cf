"""Books with old rows, and how their tests archive and verify them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from tests.db.demo_loaded import OWNER
from tokenlib import Reservation, Tokens, Usage
from tokenlib.archives import Archived, archive
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]
CUT = datetime(2026, 4, 1, tzinfo=UTC)


@dataclass
class Old:
    """Books with a month of old rows in every form, and newer ones; it is the end of July."""

    tokens: Tokens
    database: TestDatabase
    folder: Path
    person: Person
    first: Usage
    hold: Reservation

    def archive(self, before: datetime = CUT) -> Archived:
        return archive(self.database.url(OWNER), self.folder, before, actor="keeper")

    def kinds(self, *, folder: Path | None = None) -> set[str]:
        found = self.tokens.verify(archive=folder)
        return {problem.kind for problem in found.problems}
