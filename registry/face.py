"""The toolchain for Python programs: one object with a catalog and a store, and a method for each job.

The command line and these methods call the same workflows. Each method imports what it needs, so that
looking into a catalog does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack
from warnings import warn

from ..files.progress import Progress, silent
from ..files.reading import real_path
from ..schemas.bundle import Scope
from ..schemas.errors import MeteoraError, UsageError
from ..schemas.names import (
    CatalogSource,
    FolderSource,
    HubSource,
    Source,
    parse_catalog_source,
    parse_repository,
    parse_source,
)
from ..schemas.recipe import Recipe, RecipeOptions
from ..schemas.verification import Level, VerificationRecord
from .dependencies import require_torch
from .download_limits import MAX_ADAPTER_FILE_BYTES, MAX_BUNDLE_BYTES
from .fused import StrPath, level_of
from .home import Home

if TYPE_CHECKING:
    from types import TracebackType

    from ..runtime.evaluation import EvaluationOptions
    from ..schemas.evaluation import Evaluation
    from .catalog.catalog import Catalog
    from .catalog.query import AdapterQuery, Page
    from .catalog.records import AdapterSummary, AdapterVersion, BundleVersion
    from .store import Store
    from .workflows.add import Addition
    from .workflows.doctor import Examination
    from .workflows.fuse import Fusion
    from .workflows.gate_fit import GateFit
    from .workflows.pull import Pulled
    from .workflows.push import Pushed


class Registry:
    """A catalog of adapters and bundles with its content store.

    Use it in a ``with`` block, or call ``close``. The catalog is opened when it is first needed; the default
    one is created when it is not there yet. Wherever a bundle is expected, its folder or its catalogued name
    (``name``, ``name@2``, ``name@alias``) can be given.

    Args:
        home: the folder of catalog and store; by default METEORA_HOME, else the user's data folder.
        catalog: the URL of a catalog elsewhere, such as ``postgresql://user@host/name``; by default
            METEORA_CATALOG, else ``catalog.db`` in the home.
        store: the URL of a content store elsewhere, such as ``s3://bucket/adapters``; by default
            METEORA_STORE, else a folder in the home.
    """

    def __init__(
        self, home: StrPath | None = None, catalog: str | None = None, store: str | None = None
    ) -> None:
        self.home = Home.locate(None if home is None else Path(home), catalog, store)

    @cached_property
    def catalog(self) -> Catalog:
        """The open catalog.

        Raises:
            CatalogUnusable: it cannot be opened, is damaged, or has the schema of another version.
        """
        from .catalog.catalog import Catalog

        return Catalog.open(self.home)

    @cached_property
    def store(self) -> Store:
        """The content store.

        Raises:
            UsageError: its URL is malformed.
        """
        return self.home.store

    def close(self) -> None:
        """Close the catalog; the next use opens it again."""
        catalog = self.__dict__.pop("catalog", None)
        if catalog is not None:
            catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add(
        self,
        source: StrPath,
        *,
        name: str | None = None,
        base: str | None = None,
        tags: Iterable[str] = (),
        subfolder: str | None = None,
        max_bytes: int = MAX_ADAPTER_FILE_BYTES,
    ) -> Addition:
        """Check an adapter and record it as a version.

        Args:
            source: a folder, or a repository on the Hub: ``org/name`` or ``org/name@revision``.
            name: what the catalog calls the adapter; by default made from the folder or the repository.
            base: the base model, where the adapter names none or the wrong one.
            tags: words attached to the version.
            subfolder: the adapter's folder in a repository that has several.
            max_bytes: larger files of a repository are refused before they are downloaded.

        Raises:
            AdapterRefused: it is broken; ``findings`` lists the reasons, and nothing is recorded.
            AlreadyInCatalog: a bundle has the name.
            SourceUnreadable, HubRefused, HubUnavailable, HubMismatch: its files cannot be had.
        """
        from .workflows.add import add_folder

        parsed = _parse(source)
        if not isinstance(parsed, HubSource):
            if subfolder is not None:
                raise UsageError("`subfolder` goes with a repository such as `org/name`")
            return add_folder(self.catalog, self.store, Path(source), name=name, base=base, tags=tags)
        from .hub.client import Hub
        from .workflows.add_hub import add_from_hub, find_adapters

        hub = Hub()
        if subfolder is not None:
            parsed = HubSource(parsed.repository, parsed.revision, subfolder.strip("/"))
        listing, (candidate,) = find_adapters(hub, parsed)
        return add_from_hub(
            self.catalog,
            self.store,
            hub,
            listing,
            candidate,
            name=name,
            base=base,
            tags=tags,
            max_bytes=max_bytes,
        )

    def find(self, name: str) -> AdapterVersion | BundleVersion:
        """Return an adapter or a bundle version: the latest of a ``name``, ``name@2``, or ``name@alias``.

        Raises:
            NotInCatalog: there is none.
        """
        return self.catalog.find_any(parse_catalog_source(name))

    def search(self, query: AdapterQuery | str | None = None) -> Page[AdapterSummary]:
        """Return the first page of adapters that meet a query; without one, of all adapters.

        Args:
            query: words, each of which begins a word of the name, the tags, the origin, the base, the license
                or the task; or an ``AdapterQuery`` with more conditions. Its ``after`` asks for a later page.

        Raises:
            UsageError: the words or the cursor cannot be read.
        """
        from .catalog.query import AdapterQuery

        wanted = query if isinstance(query, AdapterQuery) else AdapterQuery(text=query)
        return self.catalog.search(wanted)

    def fuse(
        self,
        adapters: Iterable[str] | Recipe,
        out: StrPath,
        *,
        name: str | None = None,
        base: StrPath | None = None,
        progress: Progress = silent,
        **options: Unpack[RecipeOptions],
    ) -> Fusion:
        """Fuse catalogued adapters into one verified bundle and record it.

        Args:
            adapters: names such as ``legal``, ``legal@3`` or ``legal@champion``; or a recipe, which has the
                options in it.
            out: the new folder.
            name: what the catalog calls the bundle; by default made from the folder's name.
            base: the base model, where the adapters disagree or name none. In a folder, every module is
                looked up.
            progress: called with a step's name, how much of it is done, and how much there is.
            options: the other fields of a ``Recipe``: base_revision, top_k, temperature, dtype, gate, seed,
                with_experts.

        Raises:
            NotInCatalog: an adapter is not catalogued.
            FuseRefused: the adapters cannot become one bundle; ``conflicts`` lists the reasons.
            UsageError: an option is out of range, or the folder is not empty.
        """
        require_torch("fusing")
        from .workflows.fuse import fuse
        from .workflows.prepare import prepare_fuse

        recipe = _recipe_of(adapters, base, options)
        prepared = prepare_fuse(self.catalog, self.store, recipe)
        return fuse(self.catalog, prepared, Path(out), name=name, progress=progress)

    def verify(
        self,
        bundle: StrPath,
        *,
        level: Level | str = Level.INTEGRITY,
        base: StrPath | None = None,
        keep_record: bool = False,
        progress: Progress = silent,
    ) -> VerificationRecord:
        """Verify a bundle and return the record, whose ``outcome`` is pass, fail or inconclusive.

        Args:
            bundle: its folder, its catalogued name, or a repository on the Hub, which is fetched, verified,
                and not kept.
            level: `integrity` checks the bundle alone; `source` also compares it with the members' own files.
            base: the base model's folder, asked where the bundle says that the base renamed modules.
            keep_record: write the record into the bundle.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            NotInCatalog: no bundle of that name is catalogued.
            SourceUnreadable: the bundle cannot be read.
        """
        require_torch("verifying")
        from .workflows.verify import verify

        with self._folder_of(bundle, progress) as (folder, is_here):
            if keep_record and not is_here:
                raise UsageError("`keep_record` goes with a bundle on this machine", hint="pull it first")
            wanted = level_of(level)
            record = verify(
                self.store if wanted is Level.SOURCE else None,
                folder,
                level=wanted,
                base=None if base is None else Path(base),
                keep_record=keep_record,
                progress=progress,
            )
        if is_here:
            self._note(lambda: self.catalog.record_verification(record, real_path(folder)))
        return record

    def fit(
        self,
        bundle: StrPath,
        *,
        base: StrPath,
        data: StrPath,
        out: StrPath,
        name: str | None = None,
        scope: Scope = "prompt",
        statistics: StrPath | None = None,
        progress: Progress = silent,
    ) -> GateFit:
        """Fit the gates of a bundle on texts of each member, and record the result as a new version.

        Args:
            bundle: its folder or its catalogued name.
            base: the base model's folder, or its name on the Hub.
            data: a folder with a file ``MEMBER.jsonl`` for each member.
            out: the new folder.
            name: what the catalog calls the result; by default what it calls the bundle.
            scope: what one decision of the gates serves.
            statistics: a file that keeps what was computed; members in it need no data again.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            DataRefused: the data cannot be used.
            BundleRefused: the bundle is damaged, or its modules are not those of the base.
        """
        require_torch("fitting gates")
        from .workflows.find_bundle import find_bundle_folder
        from .workflows.gate_fit import FitRequest, fit_bundle

        folder = find_bundle_folder(self._open_catalog, bundle)
        kept = None if statistics is None else Path(statistics)
        request = FitRequest(os.fspath(base), Path(data), scope=scope, statistics=kept)
        return fit_bundle(
            self.catalog,
            self.store,
            folder,
            Path(out),
            request,
            name=name or _catalogued_name(bundle),
            progress=progress,
        )

    def evaluate(
        self,
        bundle: StrPath,
        *,
        base: StrPath,
        data: StrPath,
        options: EvaluationOptions | None = None,
        out: StrPath | None = None,
        plots: StrPath | None = None,
        progress: Progress = silent,
    ) -> Evaluation:
        """Score a bundle on its members' tasks: the base, each member alone, and routed.

        Args:
            bundle: its folder or its catalogued name.
            base: the base model's folder, or its name on the Hub.
            data: a folder with a file ``MEMBER.jsonl`` for each member.
            options: modes, metrics, and how many items are asked.
            out: a file for the evaluation as JSON.
            plots: a folder for figures.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            DataRefused: the data cannot be used.
            MissingDependency: a library of a metric, of the intervals or of the figures is not installed.
        """
        require_torch("evaluating")
        from ..runtime.evaluation import EvaluationOptions
        from .workflows.evaluate import evaluate
        from .workflows.find_bundle import find_bundle_folder

        return evaluate(
            find_bundle_folder(self._open_catalog, bundle),
            os.fspath(base),
            Path(data),
            options or EvaluationOptions(),
            out=None if out is None else Path(out),
            plots=None if plots is None else Path(plots),
            progress=progress,
        )

    def push(
        self,
        source: StrPath,
        repository: str,
        *,
        private: bool = False,
        as_pull_request: bool = False,
        tag: str | None = None,
        dry_run: bool = False,
        progress: Progress = silent,
    ) -> Pushed:
        """Publish a bundle that is verified at level `source`, or a catalogued adapter, in one commit.

        Args:
            source: a bundle's folder, or a catalogued bundle or adapter.
            repository: ``org/name`` on the Hub.
            private: make a new repository private; a public one is refused.
            as_pull_request: open a pull request in place of a commit on the main branch.
            tag: the tag to set; by default made from the content's digest.
            dry_run: return what would be pushed and change nothing.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            BundleRefused: the bundle was not verified at level `source`, or was changed since.
            HubRefused, HubConflict, HubUnavailable, HubMismatch: the Hub did not take it.
        """
        from ..files.scratch import Purpose, temporary_folder
        from ..schemas.names import check_repository
        from .hub.client import Hub
        from .workflows.push import PushOptions, note_push, push
        from .workflows.push_content import open_upload

        check_repository(repository)
        options = PushOptions(private, as_pull_request, dry_run, tag)
        with temporary_folder(Purpose.PUSH) as scratch:
            noted, upload = open_upload(
                self._open_catalog, lambda: self.store, source, scratch, progress=progress
            )
            pushed = push(Hub(), upload, repository, options)
        if not dry_run:
            self._note(lambda: note_push(self.catalog, noted, pushed))
        return pushed

    def pull(
        self,
        repository: str,
        out: StrPath | None = None,
        *,
        name: str | None = None,
        max_bytes: int = MAX_BUNDLE_BYTES,
        progress: Progress = silent,
    ) -> Pulled:
        """Fetch a bundle from the Hub, verify it, and record it with its members.

        Args:
            repository: ``org/name`` or ``org/name@revision``.
            out: the new folder; by default named after the repository, in the current folder.
            name: what the catalog calls the bundle; by default made from the repository's name.
            max_bytes: a larger bundle is refused before its weights are downloaded.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            HubRefused, HubUnavailable: it cannot be had.
            HubMismatch, BundleRefused, InvalidDocument: it is not what its manifest says, or fails to verify.
        """
        require_torch("pulling")
        from .hub.client import Hub
        from .workflows.pull import pull

        source = parse_repository(repository)
        folder = Path(source.repository.partition("/")[2] if out is None else out)
        return pull(
            self.catalog, self.store, Hub(), source, folder, name=name, max_bytes=max_bytes, progress=progress
        )

    def doctor(self, *, beside: Iterable[StrPath] = (), jobs: int = 1) -> Examination:
        """Find what a crash left in catalog, store and bundle folders; nothing is changed.

        Each problem with a ``mending`` can be repaired by ``problem.mending.act()``.

        Args:
            beside: further folders in which bundles may have been begun.
            jobs: how many files of the store are read at once.
        """
        from .workflows.doctor import examine

        return examine(self.home, beside=[Path(each) for each in beside], jobs=jobs)

    def _open_catalog(self) -> AbstractContextManager[Catalog]:
        """Return the open catalog for a ``with`` block that must not close it."""
        return nullcontext(self.catalog)

    def _folder_of(self, bundle: StrPath, progress: Progress) -> AbstractContextManager[tuple[Path, bool]]:
        """Yield a bundle's folder, and whether it stays on this machine after the block."""
        from .workflows.find_bundle import find_bundle_folder

        parsed = _parse(bundle)
        if isinstance(parsed, HubSource):
            return _fetched(parsed, progress)
        return nullcontext((find_bundle_folder(self._open_catalog, bundle), True))

    def _note(self, note: Callable[[], object]) -> None:
        """Record what is already done; a failure is a warning, because the result must not be lost."""
        try:
            note()
        except (MeteoraError, OSError) as error:
            warn(f"not noted in the catalog: {error}", RuntimeWarning, stacklevel=3)


@contextmanager
def _fetched(source: HubSource, progress: Progress) -> Iterator[tuple[Path, bool]]:
    from .hub.client import Hub
    from .workflows.pull import fetched_bundle

    with fetched_bundle(Hub(), source, progress=progress) as folder:
        yield folder, False


def _parse(source: StrPath) -> Source:
    return parse_source(source) if isinstance(source, str) else FolderSource(Path(source))


def _catalogued_name(bundle: StrPath) -> str | None:
    parsed = _parse(bundle)
    return parsed.name if isinstance(parsed, CatalogSource) else None


def _recipe_of(adapters: Iterable[str] | Recipe, base: StrPath | None, options: RecipeOptions) -> Recipe:
    stated = {**options, "base": None if base is None else os.fspath(base)}
    if not isinstance(adapters, Recipe):
        if isinstance(adapters, str):
            raise UsageError(f"`{adapters}` is one adapter, expected a list of names")
        return Recipe.state(({"adapter": text} for text in adapters), stated)
    given = [key for key, value in stated.items() if value is not None]
    if given:
        raise UsageError(
            f"a recipe has its options in it, found also {', '.join(f'`{key}`' for key in given)}"
        )
    return adapters
