"""The chain of events, and the database role that made each change."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BATCH = 1000
EVENTS = sa.table(
    "events",
    sa.column("id", sa.BigInteger()),
    sa.column("at", sa.DateTime(timezone=True)),
    sa.column("actor", sa.Text()),
    sa.column("action", sa.String()),
    sa.column("subject", sa.String()),
    sa.column("name", sa.Text()),
    sa.column("version", sa.Integer()),
    sa.column("details", sa.JSON()),
    sa.column("digest", sa.String()),
)


def upgrade() -> None:
    """Add both columns, and chain the events that are there; their roles were not recorded."""
    op.add_column("events", sa.Column("role", sa.Text(), nullable=True))
    op.add_column("events", sa.Column("digest", sa.String(length=64), nullable=True))
    _chain_events(op.get_bind())
    with op.batch_alter_table("events") as events:
        events.alter_column("digest", existing_type=sa.String(length=64), nullable=False)
        events.create_check_constraint(op.f("ck_events_digest_length"), "length(digest) = 64")
    if op.get_bind().dialect.name == "postgresql":
        # After the column: in one statement with it, the default would also fill the rows that are there.
        op.execute("ALTER TABLE events ALTER COLUMN role SET DEFAULT session_user")


def downgrade() -> None:
    """Drop both columns."""
    with op.batch_alter_table("events") as events:
        events.drop_constraint(op.f("ck_events_digest_length"), type_="check")
        events.drop_column("digest")
        events.drop_column("role")


def _chain_events(connection: sa.Connection) -> None:
    last, previous = None, None
    change = (
        sa.update(EVENTS)
        .where(EVENTS.c.id == sa.bindparam("event"))
        .values(digest=sa.bindparam("new", type_=sa.String()))
    )
    while True:
        query = sa.select(EVENTS).order_by(EVENTS.c.id).limit(BATCH)
        rows = connection.execute(query if last is None else query.where(EVENTS.c.id > last)).all()
        if not rows:
            return
        digests = []
        for row in rows:
            previous = _digest(previous, row)
            digests.append({"event": row.id, "new": previous})
        connection.execute(change, digests)
        last = rows[-1].id


def _digest(previous: str | None, row: Any) -> str:
    values = [
        previous,
        _in_utc(row.at).isoformat(timespec="microseconds"),
        row.actor,
        None,
        row.action,
        row.subject,
        row.name,
        row.version,
        row.details,
    ]
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _in_utc(moment: datetime) -> datetime:
    # SQLite keeps no time zone: every moment is in UTC.
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
