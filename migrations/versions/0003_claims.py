"""The names of those who claim what was not found here: of pulled members, and of records that came along."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLES = ("adapter_versions", "verifications")


def upgrade() -> None:
    """Add the column that names who claims it; what is there already stays as it was recorded."""
    for table in TABLES:
        op.add_column(table, sa.Column("claimed_by", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop the columns: an earlier version takes claims for facts."""
    for table in TABLES:
        op.drop_column(table, "claimed_by")
