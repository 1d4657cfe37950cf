"""The books: tables, write path, privileges, default catalog."""

from tokenlib.migrations import run_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_file("0001_tables.sql")
    run_file("0001_functions.sql")
    run_file("0001_privileges.sql")
    run_file("0001_catalog.sql")


def downgrade() -> None:
    run_file("0001_down.sql")
