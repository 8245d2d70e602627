"""The catalog as the rest of the application sees it: values in, values out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from ...files.progress import Progress, silent
from ...schemas.digest import Digest
from ...schemas.evaluation import EvaluationSummary
from ...schemas.names import CatalogSource, HubSource
from ...schemas.signers import SignedBy
from ...schemas.verification import VerificationRecord
from ..closing import Closing
from ..home import Home
from ..store import Blob, Referenced, References
from . import (
    adapters,
    bases,
    bundles,
    chain,
    dump,
    entries,
    entry_changes,
    events,
    models,
    references,
    trash,
)
from .attempts import attempt
from .bundles import SignatureAction
from .chain import ChainCheck, Head
from .database import back_up, create, require_head
from .engine import connection_to, make_engine, parse_catalog_url, sqlite_url, transaction
from .latest import read_latest
from .query import AdapterQuery, Page
from .records import (
    TRASH_DAYS,
    AdapterSummary,
    AdapterVersion,
    Added,
    BundleVersion,
    Event,
    LatestVersions,
    MeasuredEvaluation,
    NewAdapterVersion,
    NewBundleVersion,
    Removal,
    Restored,
    TrashedVersion,
)
from .references import BundlePlace, Reference
from .revisions import HEAD_REVISION
from .search import search

Result = TypeVar("Result")
KEPT_IN_TRASH = timedelta(days=TRASH_DAYS)


class Catalog(Closing):
    """An open catalog; close it, or use it in a ``with`` statement.

    A method that returns a value is one transaction, or two or three if it first makes sure of the catalog's
    identity; each is done as a whole or not at all, and repeated after a temporary failure of PostgreSQL.
    What is yielded in pages has a transaction for each page. ``hold_references`` and ``read_document`` are
    never repeated, because their caller has acted meanwhile. Any method may raise ``CatalogUnusable`` when
    the database fails. Threads may share a catalog: each call has a connection of its own.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, home: Home) -> Self:
        """Open the catalog of a home; the default one is created if it does not exist.

        Raises:
            CatalogUnusable: it cannot be opened, is damaged, or its schema is not this version's.
            UsageError: the catalog's URL is malformed.
            MissingDependency: it is on PostgreSQL, and no driver for that is installed.
        """
        if home.catalog_url is None and not home.catalog_file.exists():
            create(home.catalog_file)
        url = parse_catalog_url(home.catalog_url) if home.catalog_url else sqlite_url(home.catalog_file)
        engine = make_engine(url)
        try:
            require_head(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def add_version(
        self,
        new: NewAdapterVersion,
        *,
        tags: Iterable[str] = (),
        confirm: Callable[[Digest], None] | None = None,
    ) -> Added:
        """Return the version with this content, new or already there.

        Tags are added in either case.

        Args:
            new: what is recorded.
            tags: words attached to the version.
            confirm: called last in the transaction, while no other writer can commit, with what
                identifies this catalog; nothing is recorded if it raises.

        Raises:
            UsageError: the name or a tag is malformed.
            AlreadyInCatalog: a bundle has the name, or the content is there with another stated base.
        """
        wanted = tuple(tags)

        def add(session: Session) -> Added:
            added = adapters.add_adapter(session, new, wanted)
            identity = references.identify(session)
            if confirm is not None and identity is not None:
                confirm(identity)
            return added

        return self._write(add)

    def find(self, source: CatalogSource) -> AdapterVersion:
        """Return an adapter version: the latest, unless ``source`` selects one.

        Raises:
            NotInCatalog: there is none.
        """
        return self._read(
            lambda session: adapters.adapter_record(
                entries.find_version(session, source, models.AdapterVersion)
            )
        )

    def find_from_hub(self, source: HubSource) -> AdapterVersion:
        """Return the latest adapter version from a repository on the Hub: at a commit, if one is named.

        Raises:
            NotInCatalog: there is none.
        """
        return self._read(
            lambda session: adapters.adapter_record(
                adapters.find_from_hub(session, source.repository, source.revision, source.subfolder)
            )
        )

    def find_content(
        self, weights_sha256: Digest, canonical_config_sha256: Digest
    ) -> tuple[CatalogSource, ...]:
        """Return every adapter version with these weights and this config, the oldest first."""
        return self._read(
            lambda session: adapters.find_content(session, weights_sha256, canonical_config_sha256)
        )

    def find_claims(self, weights_sha256: Digest, config_sha256: Digest) -> tuple[str | None, ...]:
        """Return for each version with these files which bundle it came out of, None if out of none."""
        return self._read(lambda session: adapters.find_claims(session, weights_sha256, config_sha256))

    def confirm_origin(
        self, weights_sha256: Digest, config_sha256: Digest, location: str, license_name: str | None
    ) -> None:
        """Record that these very files were fetched from the origin that a bundle claims for them.

        A claim stays where it names another licence than ``license_name``, which was found there.
        """
        self._write(
            lambda session: adapters.confirm_origin(
                session, weights_sha256, config_sha256, location, license_name
            )
        )

    def find_any(self, source: CatalogSource) -> AdapterVersion | BundleVersion:
        """Return an adapter or bundle version.

        Raises:
            NotInCatalog: there is neither.
        """

        def find(session: Session) -> AdapterVersion | BundleVersion:
            row = entries.find_version(session, source, models.Version)
            if isinstance(row, models.BundleVersion):
                return bundles.bundle_record(row)
            return adapters.adapter_record(entries.find_version(session, source, models.AdapterVersion))

        return self._read(find)

    def name_of_base(self, spelling: str) -> str | None:
        """Return what the catalog calls the base with this spelling; None if it does not know the base."""
        return self._read(lambda session: bases.name_of_base(session, spelling))

    def versions_of(self, name: str) -> tuple[int, ...]:
        """Return the numbers of an adapter's or a bundle's versions, in order; () for an unknown name."""
        return self._read(lambda session: entries.list_numbers(session, name))

    def list_names(self, beginning: str = "", *, limit: int = 1000) -> tuple[str, ...]:
        """Return the names of adapters and bundles that begin so, in order."""
        return self._read(lambda session: entries.list_names(session, beginning, limit=limit))

    def list_latest(self) -> LatestVersions:
        """Return the latest version of every adapter and of every bundle, each in one line."""

        def read(session: Session) -> LatestVersions:
            return read_latest(session.connection().exec_driver_sql, self._engine.dialect.name)

        return self._read(read)

    def list_adapters(self) -> tuple[AdapterSummary, ...]:
        """Return the latest version of every adapter, ordered by name."""
        return self.list_latest().adapters

    def search(self, query: AdapterQuery) -> Page[AdapterSummary]:
        """Return one page of the adapter versions that meet a query.

        Raises:
            UsageError: the cursor belongs to another query, or is not a cursor.
        """
        return self._read(lambda session: search(session, query))

    def change_tags(
        self, source: CatalogSource, *, add: Iterable[str] = (), remove: Iterable[str] = ()
    ) -> tuple[str, ...]:
        """Change the tags of a version, and return them.

        Raises:
            NotInCatalog: there is no such version.
            UsageError: a tag is malformed.
        """
        added, removed = tuple(add), tuple(remove)

        def change(session: Session) -> tuple[str, ...]:
            version = entries.change_tags(session, source, add=added, remove=removed)
            return tuple(sorted(tag.tag for tag in version.tags))

        return self._write(change)

    def set_alias(self, source: CatalogSource, alias: str) -> CatalogSource:
        """Point an alias at a version, and return the version.

        Raises:
            NotInCatalog: there is no such version.
            UsageError: the alias is malformed.
        """
        return self._write(lambda session: entries.source_of(entries.set_alias(session, source, alias)))

    def remove_alias(self, name: str, alias: str) -> None:
        """Delete an alias.

        Raises:
            NotInCatalog: there is none.
        """
        self._write(lambda session: entries.remove_alias(session, name, alias))

    def remove(self, source: CatalogSource, *, keep: timedelta | None = KEPT_IN_TRASH) -> Removal:
        """Remove the version that ``source`` selects, or every version of the name.

        The bytes stay. Those of what is kept are referred to by the trash, of anything else ``Store.drop``
        deletes those of the returned digests that nothing refers to.

        Args:
            source: what is removed.
            keep: how long it stays in the trash; None deletes it at once, and what is in the trash of it.

        Raises:
            NotInCatalog: there is nothing of that name.
            StillInUse: a bundle has one of them as a member.
        """
        return self._write(lambda session: trash.remove(session, source, keep=keep))

    def restore(self, source: CatalogSource, *, name: str | None = None) -> Restored:
        """Put back a removed version, or what the last removal of a name took.

        Tags, aliases and verifications come back with it, and of a bundle the members that were removed, too.

        Args:
            source: a name, or a version of it.
            name: what it is called from now on, of which it becomes the next version; by default what it was.

        Raises:
            NotInCatalog: the trash has nothing of that name.
            AlreadyInCatalog: something else has the name, or has this very content under it.
            CatalogUnusable: what the trash has of it is damaged.
            UsageError: an alias was named, or the new name is malformed.
        """
        return self._write(lambda session: trash.restore(session, source, name))

    def list_trash(self) -> tuple[TrashedVersion, ...]:
        """Return what is in the trash, the last removed first."""
        return self._read(trash.list_trash)

    def find_expired(self) -> Removal | None:
        """Return what ``purge`` would delete, with the digests that nothing would refer to then."""
        return self._read(lambda session: trash.find_expired(session, datetime.now(UTC)))

    def purge(self) -> Removal | None:
        """Delete what has been in the trash for its time; None if there is nothing."""
        return self._write(lambda session: trash.purge(session, datetime.now(UTC)))

    def rename(self, name: str, new: str) -> tuple[CatalogSource, ...]:
        """Call an adapter or a bundle by another name from now on, and return its versions.

        Raises:
            NotInCatalog: there is nothing of that name.
            AlreadyInCatalog: something has the new name, or had it.
            UsageError: the new name is malformed, or the old one is that of a member of a pulled bundle.
        """
        return self._write(lambda session: entry_changes.rename(session, name, new))

    def edit(self, name: str, *, note: str | None = None, owner: str | None = None) -> None:
        """State a note or an owner of a name; an empty text takes it away, None leaves it as it is.

        Raises:
            NotInCatalog: there is nothing of that name.
            UsageError: a text is too long.
        """
        self._write(lambda session: entry_changes.edit(session, name, note=note, owner=owner))

    def find_manifest(self, manifest_sha256: Digest) -> tuple[CatalogSource, ...]:
        """Return every bundle version with this manifest, wherever it is, the oldest first."""
        return self._read(lambda session: bundles.find_manifest(session, manifest_sha256))

    def record_evaluation(
        self, manifest_sha256: Digest, summary: EvaluationSummary
    ) -> tuple[CatalogSource, ...]:
        """Record what a bundle of this manifest scored; return the versions that have it, () for none."""
        return self._write(lambda session: bundles.record_evaluation(session, manifest_sha256, summary))

    def find_evaluations(self, manifest_sha256: Digest) -> tuple[MeasuredEvaluation, ...]:
        """Return the evaluations of bundles with this manifest, the oldest first."""
        return self._read(lambda session: bundles.find_evaluations(session, manifest_sha256))

    def referenced(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of ``digests`` that some adapter version refers to, in use or in the trash."""
        return self._read(lambda session: entries.referenced_digests(session, digests))

    def identify(self) -> Digest | None:
        """Return which catalog this is, wherever its database moves; None before anything was recorded."""
        return self._read(references.identify)

    def ensure_identity(self) -> Digest:
        """Return which catalog this is, recording an event by which it is known if there is none yet.

        A store's mark carries the identity, so it has to be committed before anything else is.
        """
        return self.identify() or self._write(
            lambda session: references.identify(session) or references.begin(session)
        )

    def record_adoption(self, others: Sequence[str]) -> Digest:
        """Record that this catalog took over its store from others; return which catalog this is."""

        def record(session: Session) -> None:
            events.record_event(session, "adopt", models.STORE, models.STORE, others=list(others))

        identity = self.ensure_identity()
        self._write(record)
        return identity

    @contextmanager
    def hold_references(self, *, action: str | None = None) -> Iterator[References]:
        """Yield what the catalog refers to; no other writer commits until the block ends.

        With an ``action``, what is noted in the block becomes an event of that action on the store.
        """
        with transaction(self._engine, writes=True) as session:

            def note(blobs: Sequence[Blob]) -> None:
                if action is not None and blobs:
                    size_bytes = sum(blob.size_bytes for blob in blobs)
                    events.record_event(
                        session, action, models.STORE, models.STORE, blobs=len(blobs), size_bytes=size_bytes
                    )

            yield References(
                catalog=references.identify(session),
                among=lambda digests: entries.referenced_digests(session, digests),
                note=note,
            )

    def list_references(self) -> Iterator[Reference]:
        """Yield every file of every adapter version, ordered by digest, read a page at a time.

        ``list_trash_references`` has those of versions in the trash.
        """
        return references.list_references(self._engine)

    def list_trash_references(self) -> Iterator[Reference]:
        """Yield every file of every adapter version in the trash, ordered by digest, a page at a time."""
        return references.list_trash_references(self._engine)

    def list_bundle_places(self) -> Iterator[BundlePlace]:
        """Yield every bundle version and its folder, the oldest first, read a page at a time."""
        return references.list_bundle_places(self._engine)

    def register_bundle(self, new: NewBundleVersion) -> BundleVersion:
        """Return the version with this manifest, new or already there, at its new path.

        Raises:
            UsageError: the name is malformed.
            AlreadyInCatalog: an adapter has the name.
            BundleRefused: its record contradicts itself.
        """
        return self._write(lambda session: bundles.register_bundle(session, new))

    def find_bundle(self, source: CatalogSource) -> BundleVersion:
        """Return a bundle version: the latest, unless ``source`` selects one.

        Raises:
            NotInCatalog: there is none.
        """
        return self._read(
            lambda session: bundles.bundle_record(entries.find_version(session, source, models.BundleVersion))
        )

    def list_bundles(self) -> tuple[BundleVersion, ...]:
        """Return the latest version of every bundle, ordered by name."""
        return self._read(bundles.list_bundles)

    def record_verification(self, record: VerificationRecord, path: Path) -> tuple[CatalogSource, ...]:
        """Add a record to the bundle versions with its manifest in ``path``, and return them.

        Raises:
            BundleRefused: the record contradicts itself.
        """
        return self._write(lambda session: bundles.record_verification(session, record, path))

    def is_verified(self, manifest_sha256: Digest) -> bool:
        """Return whether a verification that this catalog's users made passed for this manifest."""
        return self._read(lambda session: bundles.is_verified(session, manifest_sha256))

    def find_bundles_in(self, path: Path, manifest_sha256: Digest) -> tuple[CatalogSource, ...]:
        """Return the bundle versions with this manifest in ``path``, the oldest first."""
        return self._read(lambda session: bundles.find_in(session, path, manifest_sha256))

    def record_push(self, source: CatalogSource, **details: str) -> None:
        """Record that a version was published; ``details`` tell people where and as what.

        Raises:
            NotInCatalog: there is no such version.
        """
        self._write(lambda session: entries.record_push(session, source, details))

    def record_signature(self, source: CatalogSource, action: SignatureAction, signed_by: SignedBy) -> None:
        """Record that a bundle was signed, or that its signature was checked, and by whom it is.

        Raises:
            NotInCatalog: there is no such version.
        """
        self._write(lambda session: bundles.record_signature(session, source, action, signed_by))

    def list_signatures(self, source: CatalogSource) -> tuple[Event, ...]:
        """Return the events of ``record_signature`` of a bundle version, the newest first."""
        return self._read(lambda session: bundles.list_signatures(session, source))

    def write_document(self, file: BinaryIO, *, progress: Progress = silent) -> dict[str, int]:
        """Write the whole catalog, as it is at one moment, to ``file``; return the rows of each table.

        ``progress`` is called with how many of its lines are written, and how many there are.
        """
        with connection_to(self._engine) as connection:
            return dump.write_document(connection, HEAD_REVISION, file, progress)

    def read_document(
        self,
        file: BinaryIO,
        what: str,
        *,
        progress: Progress = silent,
        confirm: Callable[[Digest, Referenced], None] | None = None,
    ) -> dict[str, int]:
        """Read a catalog from ``file``, which messages call ``what``; return the rows of each table.

        ``confirm`` is called last in the transaction, with what identifies this catalog from now on and
        what it refers to; nothing is imported if it raises.

        Raises:
            AlreadyInCatalog: this catalog is not empty.
            InvalidDocument: ``write_document`` did not write the file, or it was cut off or changed.
        """
        with transaction(self._engine, writes=True) as session:
            connection = session.connection()
            counts = dump.read_document(connection, HEAD_REVISION, file, what, progress)
            events.record_event(session, "import", models.CATALOG, models.CATALOG, rows=counts)
            session.flush()
            session.expire_all()
            identity = references.identify(session)
            if confirm is not None and identity is not None:
                confirm(identity, partial(entries.referenced_digests, session))
            return counts

    def backup(self, path: Path) -> None:
        """Copy a catalog on SQLite, as it is at one moment, into the new file ``path``, and check the copy.

        Raises:
            UsageError: the catalog is on PostgreSQL.
            CatalogUnusable: the copy cannot be written, or is damaged.
        """
        back_up(self._engine, path)

    def history(self, name: str | None = None, *, limit: int = 50, after: str | None = None) -> Page[Event]:
        """Return one page of the changes to one name or to all, the newest first.

        Args:
            name: an adapter, a bundle, a base model, or ``catalog`` or ``store`` themselves; it may have
                been removed.
            limit: events on a page, 1 to 1000.
            after: the cursor of the page before.

        Raises:
            UsageError: the limit is out of range, or the cursor belongs to another name.
        """
        return self._read(lambda session: events.read_history(session, name, limit=limit, after=after))

    def history_head(self) -> Head | None:
        """Return the end of the history, to be kept elsewhere; None before anything was recorded.

        As long as the history has that digest, everything up to it is as it was.
        """
        return self._read(lambda session: chain.read_head(session.connection()))

    def check_history(self, head: Digest | None = None) -> ChainCheck:
        """Compare every event with the one before it, every version with its event, and look for ``head``."""
        with connection_to(self._engine) as connection:
            return chain.check_chain(connection, head)

    def _read(self, work: Callable[[Session], Result]) -> Result:
        return attempt(self._engine, work)

    def _write(self, work: Callable[[Session], Result]) -> Result:
        return attempt(self._engine, work, writes=True)
