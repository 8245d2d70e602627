"""The entry point of alembic: runs the revisions over a connection that the caller supplies.

Each revision is one transaction, on SQLite too: the caller's engine begins transactions itself, so
SQLite's DDL takes part in them.
"""

from __future__ import annotations

from alembic import context

from meteora_registry.registry.catalog.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transaction_per_migration=True,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
