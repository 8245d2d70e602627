"""The trash, evaluations, and a note and an owner for every name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STATEMENTS = ("note", "owner")


def upgrade() -> None:
    """Make the tables and columns; nothing that is there changes."""
    for column in STATEMENTS:
        op.add_column("entries", sa.Column(column, sa.Text(), nullable=True))
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("of_members", sa.Double(), nullable=True),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "length(manifest_sha256) = 64", name=op.f("ck_evaluations_manifest_sha256_length")
        ),
        sa.CheckConstraint("items >= 1", name=op.f("ck_evaluations_items_count")),
        sa.CheckConstraint("of_members >= 0", name=op.f("ck_evaluations_of_members_counts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
    )
    op.create_index("ix_evaluations_manifest_sha256", "evaluations", ["manifest_sha256"])
    op.create_table(
        "trash",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("removed_by", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('adapter', 'bundle')", name=op.f("ck_trash_kind_known")),
        sa.CheckConstraint(
            "name = lower(name) AND length(name) BETWEEN 1 AND 96", name=op.f("ck_trash_name_valid")
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_trash_number_counts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trash")),
    )
    op.create_index("ix_trash_name_number", "trash", ["name", "number"])
    op.create_table(
        "trash_rows",
        sa.Column("trash_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("of_table", sa.String(length=32), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.CheckConstraint("position >= 0", name=op.f("ck_trash_rows_position_counts")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_trash_rows_sha256_length")),
        sa.ForeignKeyConstraint(
            ["trash_id"], ["trash.id"], name=op.f("fk_trash_rows_trash_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trash_id", "position", name=op.f("pk_trash_rows")),
    )
    op.create_index("ix_trash_rows_sha256", "trash_rows", ["sha256"])


def downgrade() -> None:
    """Drop them: what is in the trash is gone, and its bytes are what nothing refers to."""
    for table in ("trash_rows", "trash", "evaluations"):
        op.drop_table(table)
    for column in STATEMENTS:
        op.drop_column("entries", column)
