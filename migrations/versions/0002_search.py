"""The search's index, and events about the catalog itself and the content store."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SUBJECTS_BEFORE = "subject IN ('adapter', 'bundle', 'base')"
SUBJECTS = "subject IN ('adapter', 'bundle', 'base', 'catalog', 'store')"
# Indexes that answer a search only if they also have the rows' ids.
WIDENED = (
    ("events", ["name"], ["name", "id"]),
    ("tags", ["tag"], ["tag", "version_id"]),
    ("adapter_targets", ["kind"], ["kind", "version_id"]),
)
INDEXES = (
    ["added_at", "version_id"],
    ["weights_bytes", "version_id"],
    ["max_rank", "version_id"],
    ["base_model_id", "is_latest", "max_rank", "version_id"],
    ["license", "version_id"],
)
BATCH = 1000
VERSIONS = sa.text(
    "SELECT a.id, e.name, a.origin_location, a.stated_base, a.declared_base, b.name, a.license, a.task_type "
    "FROM adapter_versions a JOIN versions v ON v.id = a.id JOIN entries e ON e.id = v.entry_id "
    "LEFT JOIN base_models b ON b.id = a.base_model_id "
    "WHERE a.id > :last ORDER BY a.id LIMIT :batch"
)
TAGS = sa.text("SELECT version_id, tag FROM tags WHERE version_id BETWEEN :first AND :last ORDER BY 1, 2")
WORD = sa.text("INSERT INTO search_words (version_id, word) VALUES (:version_id, :word)")


def upgrade() -> None:
    """Create the index and fill it from what is there."""
    _change_subjects(SUBJECTS)
    for table, before, after in WIDENED:
        op.drop_index(_index_of(table, before), table)
        op.create_index(_index_of(table, after), table, after)
    op.create_table(
        "search_adapters",
        sa.Column("version_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", _ordered(96), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("is_latest", sa.Boolean(create_constraint=True, name="is_latest_boolean"), nullable=False),
        sa.Column("base_model_id", sa.Integer(), nullable=True),
        sa.Column("max_rank", sa.Integer(), nullable=False),
        sa.Column("weights_bytes", sa.BigInteger(), nullable=False),
        sa.Column("license", sa.Text(), nullable=True),
        sa.Column("sound", sa.Boolean(create_constraint=True, name="sound_boolean"), nullable=False),
        sa.Column("fusable", sa.Boolean(create_constraint=True, name="fusable_boolean"), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["adapter_versions.id"],
            name=op.f("fk_search_adapters_version_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["base_model_id"], ["base_models.id"], name=op.f("fk_search_adapters_base_model_id")
        ),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_search_adapters")),
    )
    op.create_table(
        "search_words",
        sa.Column("version_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("word", _ordered(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["search_adapters.version_id"],
            name=op.f("fk_search_words_version_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("version_id", "word", name=op.f("pk_search_words")),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO search_adapters (version_id, name, number, is_latest, base_model_id, max_rank, "
        "weights_bytes, license, sound, fusable, added_at) "
        "SELECT a.id, e.name, v.number, "
        "NOT EXISTS (SELECT 1 FROM versions n WHERE n.entry_id = v.entry_id AND n.number > v.number), "
        "a.base_model_id, coalesce(a.max_rank, 0), a.weights_bytes, "
        "a.license, a.sound, a.fusable, v.created_at "
        "FROM adapter_versions a JOIN versions v ON v.id = a.id JOIN entries e ON e.id = v.entry_id"
    )
    _fill_words(op.get_bind())
    op.create_index("ix_search_adapters_name_number", "search_adapters", ["name", "number"], unique=True)
    for columns in INDEXES:
        op.create_index(_index_of("search_adapters", columns), "search_adapters", columns)
    op.create_index("ix_search_words_word_version_id", "search_words", ["word", "version_id"])


def downgrade() -> None:
    """Drop the index, and the events that the first catalog cannot hold."""
    op.drop_table("search_words")
    op.drop_table("search_adapters")
    for table, before, after in WIDENED:
        op.drop_index(_index_of(table, after), table)
        op.create_index(_index_of(table, before), table, before)
    op.execute("DELETE FROM events WHERE subject IN ('catalog', 'store')")
    _change_subjects(SUBJECTS_BEFORE)


def _index_of(table: str, columns: list[str]) -> str:
    return f"ix_{table}_{'_'.join(columns)}"


def _ordered(max_characters: int) -> sa.types.TypeEngine[str]:
    return sa.String(max_characters).with_variant(sa.String(max_characters, collation="C"), "postgresql")


def _change_subjects(subjects: str) -> None:
    # SQLite changes a constraint by making the table again, and constraints are not read from the
    # database, so the old one is gone with the old table.
    with op.batch_alter_table("events") as events:
        if op.get_bind().dialect.name != "sqlite":
            events.drop_constraint(op.f("ck_events_subject_known"), type_="check")
        events.create_check_constraint(op.f("ck_events_subject_known"), subjects)


def _fill_words(connection: sa.Connection) -> None:
    last = 0
    while versions := connection.execute(VERSIONS, {"last": last, "batch": BATCH}).all():
        last = versions[-1].id
        tags: dict[int, list[str | None]] = {}
        for identifier, tag in connection.execute(TAGS, {"first": versions[0].id, "last": last}):
            tags.setdefault(identifier, []).append(tag)
        rows = [
            {"version_id": identifier, "word": word}
            for identifier, name, *texts in versions
            for word in _words([name, *tags.get(identifier, []), *texts])
        ]
        connection.execute(WORD, rows)


def _words(texts: list[str | None]) -> Iterator[str]:
    found = (
        word[:64]
        for text in texts
        if text is not None
        for word in re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    )
    yield from list(dict.fromkeys(found))[:256]
