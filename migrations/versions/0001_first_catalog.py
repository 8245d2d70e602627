"""The first catalog: entries and versions, adapters, bundles, bases, verifications, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "base_models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_base_models")),
        sa.UniqueConstraint("name", name=op.f("uq_base_models_name")),
    )
    op.create_table(
        "entries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("latest_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('adapter', 'bundle')", name=op.f("ck_entries_kind_known")),
        sa.CheckConstraint("latest_version >= 0", name=op.f("ck_entries_latest_version_counts")),
        sa.CheckConstraint(
            "name = lower(name) AND length(name) BETWEEN 1 AND 96", name=op.f("ck_entries_name_valid")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_entries")),
        sa.UniqueConstraint("id", "kind", name=op.f("uq_entries_id_kind")),
        sa.UniqueConstraint("name", name=op.f("uq_entries_name")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.CheckConstraint("subject IN ('adapter', 'bundle', 'base')", name=op.f("ck_events_subject_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_name"), "events", ["name"])
    op.create_table(
        "base_spellings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("base_model_id", sa.Integer(), nullable=False),
        sa.Column("spelling", sa.Text(), nullable=False),
        sa.Column("spelling_key", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_model_id"], ["base_models.id"], name=op.f("fk_base_spellings_base_model_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_base_spellings")),
        sa.UniqueConstraint("spelling_key", name=op.f("uq_base_spellings_spelling_key")),
    )
    op.create_index(op.f("ix_base_spellings_base_model_id"), "base_spellings", ["base_model_id"])
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("entry_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("number >= 1", name=op.f("ck_versions_number_counts")),
        sa.ForeignKeyConstraint(
            ["entry_id", "kind"], ["entries.id", "entries.kind"], name=op.f("fk_versions_entry_id_kind")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("entry_id", "number", name=op.f("uq_versions_entry_id_number")),
    )
    op.create_table(
        "adapter_versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("origin_kind", sa.String(length=16), nullable=False),
        sa.Column("origin_location", sa.Text(), nullable=False),
        sa.Column("origin_commit", sa.String(length=64), nullable=True),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("config_sha256", sa.String(length=64), nullable=False),
        sa.Column("canonical_config_sha256", sa.String(length=64), nullable=False),
        sa.Column("weights_bytes", sa.BigInteger(), nullable=False),
        sa.Column("declared_base", sa.Text(), nullable=True),
        sa.Column("stated_base", sa.Text(), nullable=True),
        sa.Column("base_revision", sa.Text(), nullable=True),
        sa.Column("base_model_id", sa.Integer(), nullable=True),
        sa.Column("task_type", sa.Text(), nullable=True),
        sa.Column("license", sa.Text(), nullable=True),
        sa.Column("peft_version", sa.Text(), nullable=True),
        sa.Column("shape_signature", sa.String(length=64), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("max_rank", sa.Integer(), nullable=True),
        sa.Column("scaling", sa.Double(), nullable=True),
        sa.Column("dtypes", sa.String(length=64), nullable=True),
        sa.Column("sound", sa.Boolean(create_constraint=True, name="sound_boolean"), nullable=False),
        sa.Column("fusable", sa.Boolean(create_constraint=True, name="fusable_boolean"), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.CheckConstraint(
            "origin_kind IN ('hub', 'folder')", name=op.f("ck_adapter_versions_origin_kind_known")
        ),
        sa.CheckConstraint(
            "length(canonical_config_sha256) = 64",
            name=op.f("ck_adapter_versions_canonical_config_sha256_length"),
        ),
        sa.CheckConstraint(
            "length(config_sha256) = 64", name=op.f("ck_adapter_versions_config_sha256_length")
        ),
        sa.CheckConstraint(
            "length(shape_signature) = 64", name=op.f("ck_adapter_versions_shape_signature_length")
        ),
        sa.CheckConstraint(
            "length(weights_sha256) = 64", name=op.f("ck_adapter_versions_weights_sha256_length")
        ),
        sa.CheckConstraint("max_rank >= 1", name=op.f("ck_adapter_versions_max_rank_counts")),
        sa.CheckConstraint("weights_bytes >= 0", name=op.f("ck_adapter_versions_weights_bytes_counts")),
        sa.ForeignKeyConstraint(
            ["base_model_id"], ["base_models.id"], name=op.f("fk_adapter_versions_base_model_id")
        ),
        sa.ForeignKeyConstraint(
            ["id"], ["versions.id"], name=op.f("fk_adapter_versions_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_versions")),
    )
    op.create_index(op.f("ix_adapter_versions_base_model_id"), "adapter_versions", ["base_model_id"])
    op.create_index(op.f("ix_adapter_versions_shape_signature"), "adapter_versions", ["shape_signature"])
    op.create_index(
        op.f("ix_adapter_versions_weights_sha256_canonical_config_sha256"),
        "adapter_versions",
        ["weights_sha256", "canonical_config_sha256"],
    )
    op.create_table(
        "aliases",
        sa.Column("entry_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(length=96), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "alias = lower(alias) AND length(alias) BETWEEN 1 AND 96", name=op.f("ck_aliases_alias_valid")
        ),
        sa.ForeignKeyConstraint(
            ["entry_id", "number"],
            ["versions.entry_id", "versions.number"],
            name=op.f("fk_aliases_entry_id_number"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["entry_id"], ["entries.id"], name=op.f("fk_aliases_entry_id")),
        sa.PrimaryKeyConstraint("entry_id", "alias", name=op.f("pk_aliases")),
    )
    op.create_table(
        "bundle_versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("base", sa.Text(), nullable=True),
        sa.Column("base_revision", sa.Text(), nullable=True),
        sa.Column("dtype", sa.String(length=16), nullable=False),
        sa.Column("top_k", sa.Integer(), nullable=False),
        sa.Column("temperature", sa.Double(), nullable=False),
        sa.Column("gate_kind", sa.String(length=16), nullable=False),
        sa.Column("gate_scope", sa.String(length=16), nullable=False),
        sa.Column("gate_fitted", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "length(manifest_sha256) = 64", name=op.f("ck_bundle_versions_manifest_sha256_length")
        ),
        sa.CheckConstraint("temperature > 0", name=op.f("ck_bundle_versions_temperature_positive")),
        sa.CheckConstraint("top_k >= 1", name=op.f("ck_bundle_versions_top_k_counts")),
        sa.ForeignKeyConstraint(
            ["id"], ["versions.id"], name=op.f("fk_bundle_versions_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bundle_versions")),
    )
    op.create_index(op.f("ix_bundle_versions_manifest_sha256"), "bundle_versions", ["manifest_sha256"])
    op.create_table(
        "tags",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("tag", sa.String(length=96), nullable=False),
        sa.CheckConstraint(
            "tag = lower(tag) AND length(tag) BETWEEN 1 AND 96", name=op.f("ck_tags_tag_valid")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_tags_version_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", "tag", name=op.f("pk_tags")),
    )
    op.create_index(op.f("ix_tags_tag"), "tags", ["tag"])
    op.create_table(
        "adapter_files",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_adapter_files_sha256_length")),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_adapter_files_size_bytes_counts")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["adapter_versions.id"],
            name=op.f("fk_adapter_files_version_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("version_id", "name", name=op.f("pk_adapter_files")),
    )
    op.create_index(op.f("ix_adapter_files_sha256"), "adapter_files", ["sha256"])
    op.create_table(
        "adapter_targets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("in_features", sa.Integer(), nullable=False),
        sa.Column("out_features", sa.Integer(), nullable=False),
        sa.Column("min_rank", sa.Integer(), nullable=False),
        sa.Column("max_rank", sa.Integer(), nullable=False),
        sa.Column("min_scaling", sa.Double(), nullable=False),
        sa.Column("max_scaling", sa.Double(), nullable=False),
        sa.Column("layers", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "1 <= min_rank AND min_rank <= max_rank", name=op.f("ck_adapter_targets_ranks_ordered")
        ),
        sa.CheckConstraint(
            "in_features >= 1 AND out_features >= 1", name=op.f("ck_adapter_targets_features_count")
        ),
        sa.CheckConstraint("layers >= 1", name=op.f("ck_adapter_targets_layers_count")),
        sa.CheckConstraint("min_scaling <= max_scaling", name=op.f("ck_adapter_targets_scalings_ordered")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["adapter_versions.id"],
            name=op.f("fk_adapter_targets_version_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_targets")),
        sa.UniqueConstraint(
            "version_id",
            "kind",
            "in_features",
            "out_features",
            name=op.f("uq_adapter_targets_version_id_kind_in_features_out_features"),
        ),
    )
    op.create_index(op.f("ix_adapter_targets_kind"), "adapter_targets", ["kind"])
    op.create_table(
        "bundle_members",
        sa.Column("bundle_version_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("adapter_version_id", sa.Integer(), nullable=True),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("config_sha256", sa.String(length=64), nullable=False),
        sa.CheckConstraint("position >= 0", name=op.f("ck_bundle_members_position_counts")),
        sa.ForeignKeyConstraint(
            ["adapter_version_id"],
            ["adapter_versions.id"],
            name=op.f("fk_bundle_members_adapter_version_id"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["bundle_version_id"],
            ["bundle_versions.id"],
            name=op.f("fk_bundle_members_bundle_version_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("bundle_version_id", "position", name=op.f("pk_bundle_members")),
        sa.UniqueConstraint(
            "bundle_version_id", "name", name=op.f("uq_bundle_members_bundle_version_id_name")
        ),
    )
    op.create_index(op.f("ix_bundle_members_adapter_version_id"), "bundle_members", ["adapter_version_id"])
    op.create_table(
        "verifications",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("bundle_version_id", sa.Integer(), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("level IN ('integrity', 'source')", name=op.f("ck_verifications_level_known")),
        sa.CheckConstraint(
            "outcome IN ('pass', 'fail', 'inconclusive')", name=op.f("ck_verifications_outcome_known")
        ),
        sa.ForeignKeyConstraint(
            ["bundle_version_id"],
            ["bundle_versions.id"],
            name=op.f("fk_verifications_bundle_version_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verifications")),
    )
    op.create_index(op.f("ix_verifications_bundle_version_id"), "verifications", ["bundle_version_id"])


def downgrade() -> None:
    """Drop every table."""
    op.drop_table("verifications")
    op.drop_table("bundle_members")
    op.drop_table("adapter_targets")
    op.drop_table("adapter_files")
    op.drop_table("tags")
    op.drop_table("bundle_versions")
    op.drop_table("aliases")
    op.drop_table("adapter_versions")
    op.drop_table("versions")
    op.drop_table("base_spellings")
    op.drop_table("events")
    op.drop_table("entries")
    op.drop_table("base_models")
