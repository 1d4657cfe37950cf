"""Alembic's environment: one connection, our schema's version table, plain SQL files."""

from alembic import context

config = context.config
connection = config.attributes.get("connection")

if connection is None:
    context.configure(dialect_name="postgresql", version_table_schema="tokenlib", as_sql=True)
    context.execute("create schema if not exists tokenlib")
else:
    context.configure(connection=connection, version_table_schema="tokenlib")

with context.begin_transaction():
    context.run_migrations()
