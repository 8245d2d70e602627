"""The tables, as SQLAlchemy classes, with a column for each fact; nothing outside this package sees them.

An entry is a name, of an adapter or of a bundle, and the number of its latest version. Adapters and bundles
share one space of names, so ``show NAME`` is never ambiguous. A version's own facts are in
``adapter_versions`` or ``bundle_versions``; tags and aliases, the only things about a version that change,
are in tables of their own. An entry stays when its versions are removed, and its counter goes on, so that a
removed ``name@3`` never comes to mean other bytes.

A removed version is in no table but the trash: ``trash`` has a row for it, and ``trash_rows`` its rows of the
other tables as JSON values. So no statement over versions ever meets one.

What the code guarantees is also a constraint of the database, because other programs may write to it.

``search_adapters`` and ``search_words`` follow from the other tables: they are the search's index, one row
per adapter version with everything that filters and orders need, and the words of its texts. ``search_index``
updates them in the transaction of every change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedColumn, composite, mapped_column, relationship
from sqlalchemy.schema import SchemaItem

from ...schemas.digest import Digest
from ...schemas.facts import AdapterFacts, BundleFacts, ByteCount, Foreign, Word
from .column_types import DigestText, DtypesText, ForeignText, UtcDateTime, ordered_text
from .query import MAX_WORD_CHARACTERS

ADAPTER: Final = "adapter"
BUNDLE: Final = "bundle"
CATALOG: Final = "catalog"
STORE: Final = "store"
MAX_NAME_CHARACTERS = 96

_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def _now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """The metadata that the migrations are compared with."""

    metadata = MetaData(naming_convention=_NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        Digest: DigestText(),
        dict[str, Any]: JSON(),
        list[dict[str, Any]]: JSON(),
        float: Double(),
        # Those of the facts.
        int: Integer(),
        str: Text(),
        Foreign: ForeignText(),
        Word: String(16),
        ByteCount: BigInteger(),
    }


def _columns_of(facts: type, **own: MappedColumn[Any]) -> list[MappedColumn[Any]]:
    """Return a column for each field of a class of facts; types follow from the fields where not given."""
    return [own.get(field.name) or mapped_column(field.name) for field in dataclasses.fields(facts)]


class Entry(Base):
    """A name, the number of the latest version it ever had, and what people state about all its versions."""

    __tablename__ = "entries"
    __table_args__ = (
        CheckConstraint("kind IN ('adapter', 'bundle')", name="kind_known"),
        CheckConstraint("name = lower(name) AND length(name) BETWEEN 1 AND 96", name="name_valid"),
        CheckConstraint("latest_version >= 0", name="latest_version_counts"),
        UniqueConstraint("name"),
        UniqueConstraint("id", "kind"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(MAX_NAME_CHARACTERS))
    latest_version: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime] = mapped_column(default=_now)
    note: Mapped[str | None] = mapped_column(ForeignText())
    owner: Mapped[str | None] = mapped_column(ForeignText())

    versions: Mapped[list[Version]] = relationship(
        back_populates="entry", order_by="Version.number", passive_deletes=True
    )
    aliases: Mapped[list[Alias]] = relationship(
        back_populates="entry", order_by="Alias.alias", passive_deletes=True, overlaps="version"
    )


class Version(Base):
    """One version of an entry; immutable but for its tags and aliases."""

    __tablename__ = "versions"
    __table_args__: tuple[SchemaItem, ...] = (
        ForeignKeyConstraint(["entry_id", "kind"], ["entries.id", "entries.kind"]),
        CheckConstraint("number >= 1", name="number_counts"),
        UniqueConstraint("entry_id", "number"),
    )
    __mapper_args__: Mapping[str, Any] = {"polymorphic_on": "kind"}

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    entry_id: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(16))
    number: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(default=_now)

    entry: Mapped[Entry] = relationship(back_populates="versions")
    tags: Mapped[list[Tag]] = relationship(
        order_by="Tag.tag", cascade="all, delete-orphan", passive_deletes=True
    )
    aliases: Mapped[list[Alias]] = relationship(
        back_populates="version", order_by="Alias.alias", passive_deletes=True, overlaps="aliases"
    )


class Tag(Base):
    """A word attached to a version."""

    __tablename__ = "tags"
    __table_args__ = (
        CheckConstraint("tag = lower(tag) AND length(tag) BETWEEN 1 AND 96", name="tag_valid"),
        Index(None, "tag", "version_id"),
    )

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(String(MAX_NAME_CHARACTERS), primary_key=True)


class Alias(Base):
    """A movable name for one version of an entry."""

    __tablename__ = "aliases"
    __table_args__ = (
        ForeignKeyConstraint(
            ["entry_id", "number"], ["versions.entry_id", "versions.number"], ondelete="CASCADE"
        ),
        CheckConstraint("alias = lower(alias) AND length(alias) BETWEEN 1 AND 96", name="alias_valid"),
    )

    entry_id: Mapped[int] = mapped_column(ForeignKey("entries.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(MAX_NAME_CHARACTERS), primary_key=True)
    number: Mapped[int] = mapped_column(Integer)

    entry: Mapped[Entry] = relationship(back_populates="aliases", overlaps="version,aliases")
    version: Mapped[Version] = relationship(back_populates="aliases", overlaps="entry,aliases")


class BaseModel(Base):
    """A base model, under the name that this catalog calls it by."""

    __tablename__ = "base_models"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(ForeignText())
    created_at: Mapped[datetime] = mapped_column(default=_now)

    spellings: Mapped[list[BaseSpelling]] = relationship(back_populates="base_model")


class BaseSpelling(Base):
    """One way in which adapters write a base's name; ``spelling_key`` disregards the case."""

    __tablename__ = "base_spellings"
    __table_args__ = (UniqueConstraint("spelling_key"), Index(None, "base_model_id"))

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    base_model_id: Mapped[int] = mapped_column(ForeignKey("base_models.id"))
    spelling: Mapped[str] = mapped_column(ForeignText())
    spelling_key: Mapped[str] = mapped_column(ForeignText())

    base_model: Mapped[BaseModel] = relationship(back_populates="spellings")


class AdapterVersion(Version):
    """The facts of one adapter version; null where the adapter does not state one or carries no LoRA.

    ``claimed_by`` names the bundle that states the origin, and is null where the files were had from there.
    """

    __tablename__ = "adapter_versions"
    __table_args__ = (
        CheckConstraint("origin_kind IN ('hub', 'folder')", name="origin_kind_known"),
        CheckConstraint("length(weights_sha256) = 64", name="weights_sha256_length"),
        CheckConstraint("length(config_sha256) = 64", name="config_sha256_length"),
        CheckConstraint("length(canonical_config_sha256) = 64", name="canonical_config_sha256_length"),
        CheckConstraint("length(shape_signature) = 64", name="shape_signature_length"),
        CheckConstraint("weights_bytes >= 0", name="weights_bytes_counts"),
        CheckConstraint("max_rank >= 1", name="max_rank_counts"),
        Index(None, "weights_sha256", "canonical_config_sha256"),
        Index(None, "shape_signature"),
        Index(None, "base_model_id"),
    )
    __mapper_args__: Mapping[str, Any] = {"polymorphic_identity": ADAPTER}

    id: Mapped[int] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    origin_kind: Mapped[str] = mapped_column(String(16))
    origin_location: Mapped[str] = mapped_column(ForeignText())
    origin_commit: Mapped[str | None] = mapped_column(String(64))
    claimed_by: Mapped[str | None] = mapped_column(ForeignText())
    facts: Mapped[AdapterFacts] = composite(
        # No factors and no element types are the same to a reader; the column has always held null for them.
        *_columns_of(AdapterFacts, dtypes=mapped_column("dtypes", DtypesText(), nullable=True))
    )
    stated_base: Mapped[str | None] = mapped_column(ForeignText())
    base_model_id: Mapped[int | None] = mapped_column(ForeignKey("base_models.id"))
    sound: Mapped[bool] = mapped_column(Boolean(create_constraint=True, name="sound_boolean"))
    fusable: Mapped[bool] = mapped_column(Boolean(create_constraint=True, name="fusable_boolean"))
    findings: Mapped[list[dict[str, Any]]]

    base_model: Mapped[BaseModel | None] = relationship()
    files: Mapped[list[StoredFile]] = relationship(order_by="StoredFile.name", passive_deletes=True)
    targets: Mapped[list[Target]] = relationship(order_by="Target.id", passive_deletes=True)


class StoredFile(Base):
    """One file of an adapter version, in the content store."""

    __tablename__ = "adapter_files"
    __table_args__ = (
        CheckConstraint("length(sha256) = 64", name="sha256_length"),
        CheckConstraint("size_bytes >= 0", name="size_bytes_counts"),
        Index(None, "sha256"),
    )

    version_id: Mapped[int] = mapped_column(
        ForeignKey("adapter_versions.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    sha256: Mapped[Digest]
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class Target(Base):
    """The modules of one kind and shape that an adapter version touches, and the ranks it has there."""

    __tablename__ = "adapter_targets"
    __table_args__ = (
        CheckConstraint("in_features >= 1 AND out_features >= 1", name="features_count"),
        CheckConstraint("1 <= min_rank AND min_rank <= max_rank", name="ranks_ordered"),
        CheckConstraint("min_scaling <= max_scaling", name="scalings_ordered"),
        CheckConstraint("layers >= 1", name="layers_count"),
        UniqueConstraint("version_id", "kind", "in_features", "out_features"),
        Index(None, "kind", "version_id"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("adapter_versions.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(ForeignText())
    in_features: Mapped[int] = mapped_column(Integer)
    out_features: Mapped[int] = mapped_column(Integer)
    min_rank: Mapped[int] = mapped_column(Integer)
    max_rank: Mapped[int] = mapped_column(Integer)
    min_scaling: Mapped[float]
    max_scaling: Mapped[float]
    layers: Mapped[int] = mapped_column(Integer)


class SearchRow(Base):
    """An adapter version as it is searched; ``max_rank`` is 0 for one without LoRA factors."""

    __tablename__ = "search_adapters"
    __table_args__ = (
        Index(None, "name", "number", unique=True),
        Index(None, "added_at", "version_id"),
        Index(None, "weights_bytes", "version_id"),
        Index(None, "max_rank", "version_id"),
        Index(None, "base_model_id", "is_latest", "max_rank", "version_id"),
        Index(None, "license", "version_id"),
    )

    version_id: Mapped[int] = mapped_column(
        ForeignKey("adapter_versions.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    name: Mapped[str] = mapped_column(ordered_text(MAX_NAME_CHARACTERS))
    number: Mapped[int] = mapped_column(Integer)
    is_latest: Mapped[bool] = mapped_column(Boolean(create_constraint=True, name="is_latest_boolean"))
    base_model_id: Mapped[int | None] = mapped_column(ForeignKey("base_models.id"))
    max_rank: Mapped[int] = mapped_column(Integer)
    weights_bytes: Mapped[int] = mapped_column(BigInteger)
    license: Mapped[str | None] = mapped_column(ForeignText())
    sound: Mapped[bool] = mapped_column(Boolean(create_constraint=True, name="sound_boolean"))
    fusable: Mapped[bool] = mapped_column(Boolean(create_constraint=True, name="fusable_boolean"))
    added_at: Mapped[datetime]


class SearchWord(Base):
    """One word by which an adapter version is found."""

    __tablename__ = "search_words"
    __table_args__ = (Index(None, "word", "version_id"), {"sqlite_with_rowid": False})

    version_id: Mapped[int] = mapped_column(
        ForeignKey("search_adapters.version_id", ondelete="CASCADE"), primary_key=True
    )
    word: Mapped[str] = mapped_column(ordered_text(MAX_WORD_CHARACTERS), primary_key=True)


class BundleVersion(Version):
    """The facts of one bundle version; ``path`` is where it was last written, as it was given."""

    __tablename__ = "bundle_versions"
    __table_args__ = (
        CheckConstraint("length(manifest_sha256) = 64", name="manifest_sha256_length"),
        CheckConstraint("top_k >= 1", name="top_k_counts"),
        CheckConstraint("temperature > 0", name="temperature_positive"),
        Index(None, "manifest_sha256"),
    )
    __mapper_args__: Mapping[str, Any] = {"polymorphic_identity": BUNDLE}

    id: Mapped[int] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    facts: Mapped[BundleFacts] = composite(*_columns_of(BundleFacts))
    path: Mapped[str] = mapped_column(Text)

    members: Mapped[list[BundleMember]] = relationship(order_by="BundleMember.position", passive_deletes=True)
    verifications: Mapped[list[Verification]] = relationship(order_by="Verification.id", passive_deletes=True)
    # Of the manifest, whichever version it was measured of.
    evaluations: Mapped[list[Evaluation]] = relationship(
        primaryjoin="foreign(evaluations.c.manifest_sha256) == bundle_versions.c.manifest_sha256",
        order_by="Evaluation.id",
        viewonly=True,
    )


class BundleMember(Base):
    """One member in its place; ``adapter_version_id`` is null for a member that was never catalogued."""

    __tablename__ = "bundle_members"
    __table_args__ = (
        CheckConstraint("position >= 0", name="position_counts"),
        UniqueConstraint("bundle_version_id", "name"),
        Index(None, "adapter_version_id"),
    )

    bundle_version_id: Mapped[int] = mapped_column(
        ForeignKey("bundle_versions.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(MAX_NAME_CHARACTERS))
    adapter_version_id: Mapped[int | None] = mapped_column(
        ForeignKey("adapter_versions.id", ondelete="RESTRICT")
    )
    weights_sha256: Mapped[Digest]
    config_sha256: Mapped[Digest]

    adapter_version: Mapped[AdapterVersion | None] = relationship()


class Verification(Base):
    """One verification record of a bundle version, word for word.

    ``claimed_by`` names where a record came from that was not made here.
    """

    __tablename__ = "verifications"
    __table_args__ = (
        CheckConstraint("level IN ('integrity', 'source')", name="level_known"),
        CheckConstraint("outcome IN ('pass', 'fail', 'inconclusive')", name="outcome_known"),
        Index(None, "bundle_version_id"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    bundle_version_id: Mapped[int] = mapped_column(ForeignKey("bundle_versions.id", ondelete="CASCADE"))
    level: Mapped[str] = mapped_column(String(16))
    outcome: Mapped[str] = mapped_column(String(16))
    record: Mapped[str] = mapped_column(Text)
    claimed_by: Mapped[str | None] = mapped_column(ForeignText())
    created_at: Mapped[datetime] = mapped_column(default=_now)


class Evaluation(Base):
    """Scores of a bundle of one manifest, in an evaluation that was made here.

    ``of_members`` is the score of its routing as a share of that of its members, each on its own task; null
    where one of the two was not measured.
    """

    __tablename__ = "evaluations"
    __table_args__ = (
        CheckConstraint("length(manifest_sha256) = 64", name="manifest_sha256_length"),
        CheckConstraint("items >= 1", name="items_count"),
        CheckConstraint("of_members >= 0", name="of_members_counts"),
        Index(None, "manifest_sha256"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    manifest_sha256: Mapped[Digest]
    items: Mapped[int] = mapped_column(Integer)
    of_members: Mapped[float | None]
    summary: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=_now)


class Trashed(Base):
    """A removed version; it can be restored until it expires, and then ``store gc`` deletes it."""

    __tablename__ = "trash"
    __table_args__ = (
        CheckConstraint("kind IN ('adapter', 'bundle')", name="kind_known"),
        CheckConstraint("name = lower(name) AND length(name) BETWEEN 1 AND 96", name="name_valid"),
        CheckConstraint("number >= 1", name="number_counts"),
        Index(None, "name", "number"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(MAX_NAME_CHARACTERS))
    number: Mapped[int] = mapped_column(Integer)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    removed_by: Mapped[str] = mapped_column(ForeignText())
    removed_at: Mapped[datetime]
    expires_at: Mapped[datetime]

    rows: Mapped[list[TrashedRow]] = relationship(order_by="TrashedRow.position", passive_deletes=True)


class TrashedRow(Base):
    """A row of a removed version as an export writes it; ``sha256`` is a file's in the content store."""

    __tablename__ = "trash_rows"
    __table_args__ = (
        CheckConstraint("position >= 0", name="position_counts"),
        CheckConstraint("length(sha256) = 64", name="sha256_length"),
        Index(None, "sha256"),
    )

    trash_id: Mapped[int] = mapped_column(ForeignKey("trash.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    of_table: Mapped[str] = mapped_column(String(32))
    content: Mapped[dict[str, Any]]
    sha256: Mapped[Digest | None]


class Event(Base):
    """One change to the catalog; rows are only ever added, and refer to names, which outlive rows.

    ``digest`` is over the row and the digest of the row before it. ``role`` is the role that PostgreSQL knows
    the writer by, and null on SQLite; the database fills it in, because a role may not be stated by itself.
    """

    __tablename__ = "events"
    __table_args__ = (
        CheckConstraint("subject IN ('adapter', 'bundle', 'base', 'catalog', 'store')", name="subject_known"),
        CheckConstraint("length(digest) = 64", name="digest_length"),
        Index(None, "name", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(default=_now)
    actor: Mapped[str] = mapped_column(ForeignText())
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(ForeignText())
    version: Mapped[int | None] = mapped_column(Integer)
    details: Mapped[dict[str, Any]]
    role: Mapped[str | None] = mapped_column(ForeignText(), server_default=FetchedValue())
    digest: Mapped[Digest]


# For statements over many rows: reading these as objects of the classes above costs ten times as much.
_tables = Base.metadata.tables
entries = _tables["entries"]
versions = _tables["versions"]
adapter_versions = _tables["adapter_versions"]
adapter_files = _tables["adapter_files"]
bundle_versions = _tables["bundle_versions"]
bundle_members = _tables["bundle_members"]
aliases = _tables["aliases"]
tags = _tables["tags"]
events = _tables["events"]
evaluations = _tables["evaluations"]
trash = _tables["trash"]
trash_rows = _tables["trash_rows"]
base_models = _tables["base_models"]
search_adapters = _tables["search_adapters"]
search_words = _tables["search_words"]
# Adapter versions with their numbers and names.
named_adapters = adapter_versions.join(versions, versions.c.id == adapter_versions.c.id).join(
    entries, entries.c.id == versions.c.entry_id
)
