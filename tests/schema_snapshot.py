"""Write `tokenlib/sql/schema.json`, which `tokenlib doctor` compares with: `make schema`."""

from __future__ import annotations

import json
from pathlib import Path

from tokenlib import doctor, embedded, migrations
from tokenlib.db import Database, statements
from tokenlib.embedded import SUPERUSER
from tokenlib.snapshot import Schema

SNAPSHOT = Path(__file__).parents[1] / "tokenlib" / "sql" / "schema.json"


def fresh(owner_url: str, service_url: str) -> Schema:
    """The schema of a database that is migrated now."""
    migrations.upgrade(owner_url)
    database = Database(service_url)
    try:
        [tables] = database.rows(statements("doctor")["tables"])
        return doctor.found(database, tables["names"])
    finally:
        database.close()


def main() -> None:
    """Migrate a database of a temporary server and write its schema down."""
    with embedded.temporary() as server:
        superuser = server.url("postgres", SUPERUSER)
        migrations.create_roles(superuser)
        migrations.create_database(superuser, "fresh")
        schema = fresh(
            server.url("fresh", "tokenlib_owner"), server.url("fresh", "tokenlib_service")
        )
    # What functions do is read from their own files.
    kept = {kind: things for kind, things in schema.items() if kind != "function body"}
    SNAPSHOT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
