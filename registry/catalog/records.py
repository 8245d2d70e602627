"""The values that the catalog takes and gives: plain and immutable, never rows of an open session."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from ...schemas.errors import CatalogUnusable
from ...schemas.facts import AdapterFacts, BundleFacts, ListedFacts
from ...schemas.names import CatalogSource

if TYPE_CHECKING:
    # Annotations alone name these. `list` needs few of them, and importing the others slows it.
    from ...schemas.digest import Digest
    from ...schemas.evaluation import EvaluationSummary
    from ...schemas.finding import Finding, Verdict
    from ...schemas.inventory import Inventory, ModuleFactors
    from ...schemas.manifest import Origin
    from ...schemas.verification import Level, Outcome, VerificationRecord

Kind = Literal["adapter", "bundle"]
# How many days a removed version can be restored, unless others are asked for.
TRASH_DAYS = 30
MAX_TRASH_DAYS = 3650


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an adapter version; its bytes are the store's blob of that digest."""

    name: str
    sha256: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """The modules of one kind and shape, such as ``q_proj``, and the ranks and scalings there."""

    kind: str
    in_features: int
    out_features: int
    min_rank: int
    max_rank: int
    min_scaling: float
    max_scaling: float
    layers: int

    @classmethod
    def all_of(cls, inventory: Inventory) -> tuple[Self, ...]:
        """Return one target per kind and shape, ordered by kind."""
        modules = sorted(inventory.modules, key=_target_key)
        return tuple(cls._of(list(group)) for _, group in groupby(modules, key=_target_key))

    @classmethod
    def _of(cls, modules: list[ModuleFactors]) -> Self:
        ranks = [module.rank for module in modules]
        scalings = [module.scaling for module in modules]
        return cls(
            kind=modules[0].kind,
            in_features=modules[0].in_features,
            out_features=modules[0].out_features,
            min_rank=min(ranks),
            max_rank=max(ranks),
            min_scaling=min(scalings),
            max_scaling=max(scalings),
            layers=len(modules),
        )


def _target_key(module: ModuleFactors) -> tuple[str, int, int]:
    return module.kind, module.in_features, module.out_features


@dataclass(frozen=True, slots=True)
class NewAdapterVersion:
    """An adapter to be recorded, whose bytes are in the store.

    ``stated_base`` is the base model as the person who adds it names it; ``claimed_by`` the bundle that it
    came out of, if it came out of one: its origin and its license are then that bundle's statements.
    """

    name: str
    origin: Origin
    files: tuple[StoredFile, ...]
    stated_base: str | None
    facts: AdapterFacts
    targets: tuple[Target, ...]
    findings: tuple[Finding, ...]
    claimed_by: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterVersion(AdapterFacts):
    """One catalogued adapter version, with the facts of the adapter.

    ``base_model`` is what this catalog calls the base, whichever way the adapter spells it. ``claimed_by`` is
    the bundle that states the origin; it is None if the files themselves came from there. All
    versions of a name have one ``note`` and one ``owner``.
    """

    id: int
    name: str
    version: int
    origin: Origin
    claimed_by: str | None
    files: tuple[StoredFile, ...]
    stated_base: str | None
    base_model: str | None
    targets: tuple[Target, ...]
    verdict: Verdict
    findings: tuple[Finding, ...]
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    note: str | None
    owner: str | None
    created_at: datetime

    @property
    def source(self) -> CatalogSource:
        """Return the name of exactly this version."""
        return CatalogSource(self.name, self.version)

    @property
    def base(self) -> str | None:
        """Return the base that a person stated, else the one that the adapter declares."""
        return self.stated_base or self.declared_base

    def file(self, name: str) -> StoredFile:
        """Return the file of that name.

        Raises:
            CatalogUnusable: the catalog lacks it; every adapter has a config and weights.
        """
        found = next((file for file in self.files if file.name == name), None)
        if found is None:
            raise CatalogUnusable(
                f"the catalog has no file `{name}` of `{self.source}`",
                hint=f"remove it with `meteora-registry remove {self.source}` and add it again",
            )
        return found

    @property
    def size_bytes(self) -> int:
        """Return the size of all its files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class AdapterSummary(ListedFacts):
    """One adapter version, in one line."""

    name: str
    version: int
    base: str | None
    verdict: Verdict
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    owner: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Added:
    """An adapter version, and whether this call made it or it was there already."""

    version: AdapterVersion
    created: bool


@dataclass(frozen=True, slots=True)
class NewMember:
    """One member of a bundle to be recorded; ``adapter`` is None if it was never catalogued."""

    name: str
    adapter: AdapterVersion | None
    weights_sha256: Digest
    config_sha256: Digest


@dataclass(frozen=True, slots=True)
class NewBundleVersion:
    """A bundle to be recorded: its folder, its facts, its members in their order.

    ``claimed_by`` is where the record came from, if it was not made here.
    """

    name: str
    path: Path
    facts: BundleFacts
    members: tuple[NewMember, ...]
    verification: VerificationRecord | None = None
    claimed_by: str | None = None


@dataclass(frozen=True, slots=True)
class BundleMember:
    """One member of a catalogued bundle; ``adapter`` is None if it was never catalogued."""

    position: int
    name: str
    adapter: CatalogSource | None
    weights_sha256: Digest
    config_sha256: Digest


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of one verification of a bundle version, with its whole record.

    ``claimed_by`` is where a record came from that was not made here, and None for one that was.
    ``established`` is what it established here, in the words of docs/verification.md: nothing if it is a
    claim, or contradicts itself.
    """

    level: Level
    outcome: Outcome
    created_at: datetime
    record: VerificationRecord
    claimed_by: str | None
    established: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MeasuredEvaluation:
    """Scores of a bundle with this very manifest, in an evaluation that was made here.

    ``of_members`` is the score of its routing as a share of its members' own, and None where one of the two
    was not measured.
    """

    created_at: datetime
    items: int
    of_members: float | None
    summary: EvaluationSummary


def find_leading(evaluations: Iterable[MeasuredEvaluation]) -> MeasuredEvaluation | None:
    """Return the evaluation that counts: the largest that compares with the members, then the last."""
    return max(
        (each for each in evaluations if each.of_members is not None),
        key=lambda each: (each.items, each.created_at),
        default=None,
    )


@dataclass(frozen=True, slots=True)
class BundleVersion(BundleFacts):
    """One catalogued bundle version, with the facts of the bundle; ``path`` is where it was last written.

    All versions of a name have one ``note`` and one ``owner``. ``evaluations`` are those of bundles with the
    same manifest as this one, the oldest first.
    """

    id: int
    name: str
    version: int
    path: Path
    members: tuple[BundleMember, ...]
    verifications: tuple[Verification, ...]
    evaluations: tuple[MeasuredEvaluation, ...]
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    note: str | None
    owner: str | None
    created_at: datetime

    @property
    def source(self) -> CatalogSource:
        """Return the name of exactly this version."""
        return CatalogSource(self.name, self.version)

    @property
    def evaluation(self) -> MeasuredEvaluation | None:
        """Return the evaluation that counts: the largest that compares with the members, then the last."""
        return find_leading(self.evaluations)


@dataclass(frozen=True, slots=True)
class BundleSummary:
    """One bundle version, in one line, with what each of its verifications came to, the oldest first.

    ``of_members`` is its score as a share of its members' own, in the evaluation that counts.
    """

    name: str
    version: int
    base: str | None
    dtype: str
    size_bytes: int
    gate_fitted: str
    verified: tuple[tuple[Level, Outcome], ...]
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    owner: str | None
    of_members: float | None


@dataclass(frozen=True, slots=True)
class LatestVersions:
    """The latest version of every adapter and of every bundle, each ordered by name."""

    adapters: tuple[AdapterSummary, ...]
    bundles: tuple[BundleSummary, ...]


@dataclass(frozen=True, slots=True)
class Removal:
    """The versions removed from the catalog, and the digests of the blobs that it referred to for them.

    ``expires_at`` is until when they can be restored; None if they cannot be.
    """

    kind: Kind
    versions: tuple[CatalogSource, ...]
    digests: frozenset[Digest]
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class TrashedVersion:
    """A removed version; ``store gc`` deletes it with its bytes in the store once it has expired."""

    kind: Kind
    name: str
    version: int
    size_bytes: int
    removed_by: str
    removed_at: datetime
    expires_at: datetime

    @property
    def source(self) -> CatalogSource:
        """Return the name of exactly this version."""
        return CatalogSource(self.name, self.version)


@dataclass(frozen=True, slots=True)
class Restored:
    """The versions that came back from the trash.

    Attributes:
        kind: whether they are adapters or bundles.
        versions: the versions that were to be restored, under their present names.
        members: the removed adapters that came back because a restored bundle has them as members.
        unlinked: the members of restored bundles that the catalog no longer has.
        aliases_elsewhere: aliases of theirs that point at another version by now, and were left so.
    """

    kind: Kind
    versions: tuple[CatalogSource, ...]
    members: tuple[CatalogSource, ...]
    unlinked: tuple[str, ...]
    aliases_elsewhere: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One change to the catalog: when, by whom, what was done to what.

    ``actor`` is who the writer claims to be, ``role`` the role that PostgreSQL knew the writer by, None on
    SQLite. ``digest`` is over this event and the one before it.
    """

    at: datetime
    actor: str
    role: str | None
    action: str
    subject: str
    name: str
    version: int | None
    details: dict[str, Any]
    digest: Digest


def join_sources(sources: Iterable[CatalogSource]) -> str:
    """Return the names for a message."""
    return ", ".join(f"`{source}`" for source in sources)
