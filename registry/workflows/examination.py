"""``doctor``: what a crash or a manual change left in home, catalog, store and bundle folders.

Each part yields problems. A problem names what was found and what a person can do; where it can be repaired
without a person's judgement, it also has the repair, which looks again before it acts. Nothing that the
catalog refers to is ever deleted: damaged bytes are put aside. What depends on something damaged is not
judged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...files.digests import hash_file
from ...files.progress import Progress, silent
from ...files.reading import read_bounded, real_path
from ...schemas.bundle import MANIFEST_FILE
from ...schemas.errors import (
    CatalogUnusable,
    MeteoraError,
    MissingDependency,
    StillInUse,
    StoreUnavailable,
    UsageError,
)
from ...schemas.manifest import MAX_MANIFEST_BYTES, Manifest
from ...schemas.names import below
from ..catalog import database
from ..catalog.engine import describe_url, engine_for, parse_catalog_url, sqlite_url
from ..catalog.references import BundlePlace
from ..catalog.revisions import HEAD_REVISION
from ..home import Home
from ..workspace import Workspace
from .leftovers import examine_neighbours, examine_temporary_folder, examine_unfinished
from .problem import Code, Mending, Problem, join_some
from .served_adapters import ENGINE_FOLDER
from .store_examination import examine_garbage, examine_permissions, examine_store

_UNSOUND = frozenset({Code.CATALOG_DAMAGED, Code.CATALOG_MISSING, Code.CATALOG_UNUSABLE})
_REST = "the store and the bundles"
_BACKUP = "put a backup in its place"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Examination:
    """The problems found, and the parts that could not be judged, with the reason."""

    problems: tuple[Problem, ...]
    not_examined: tuple[str, ...]


def examine(
    workspace: Workspace, *, beside: Iterable[Path] = (), jobs: int = 1, progress: Progress = silent
) -> Examination:
    """Look at everything, and change nothing.

    Every byte of the store is read; of one elsewhere, every byte there.

    Args:
        workspace: what is examined, with its home.
        beside: further folders in which bundles may have been begun, besides those of catalogued bundles.
        jobs: how many blobs are read at once.
        progress: called with a step's name, how much of it is done, and how much there is.
    """
    home = workspace.home
    problems = [*_examine_home(home), *examine_temporary_folder(), *_examine_place(workspace)]
    is_store_there = all(problem.code != Code.STORE_UNAVAILABLE for problem in problems)
    not_examined = [] if is_store_there else ["the rest of the store: it cannot be reached"]
    problems += examine_catalog(home, look_for_blobs=is_store_there)
    parents = {real_path(folder) for folder in beside}
    places: tuple[BundlePlace, ...] = ()
    try:
        if any(problem.code in _UNSOUND for problem in problems):
            not_examined.append(f"{_REST}: what belongs there is in the catalog")
        elif home.catalog_url is not None or home.catalog_file.exists():
            catalog = workspace.catalog
            if is_store_there:
                problems += _examine_store(workspace, not_examined, jobs=jobs, progress=progress)
            places = tuple(catalog.list_bundle_places())
            problems += examine_bundles(places)
            parents |= {place.path.parent for place in places}
    except CatalogUnusable as error:
        not_examined.append(f"{_REST}: {error}")
    problems += examine_neighbours({*parents, workspace.home.folder / ENGINE_FOLDER})
    problems += examine_unfinished(parents, [place.path for place in places])
    return Examination(tuple(problems), tuple(not_examined))


def _examine_place(workspace: Workspace) -> Iterator[Problem]:
    """Yield that the store is not there, whether or not a catalog refers to anything in it."""
    try:
        workspace.store.require_there()
    except (StoreUnavailable, UsageError, MissingDependency) as error:
        yield _unavailable(workspace.home, error)
        # Of a malformed URL there is not even a cache to look at.
        with suppress(UsageError):
            yield from examine_permissions(workspace)


def _examine_store(
    workspace: Workspace, not_examined: list[str], *, jobs: int, progress: Progress
) -> Iterator[Problem]:
    try:
        yield from examine_store(workspace, jobs=jobs, progress=progress)
        yield from examine_garbage(workspace)
    except StillInUse as error:
        not_examined.append(f"what of the store may be deleted: {error}; {error.hint}")
    except StoreUnavailable as error:
        not_examined.append("the rest of the store: it cannot be reached")
        yield _unavailable(workspace.home, error)


def _unavailable(home: Home, error: MeteoraError) -> Problem:
    return Problem(
        Code.STORE_UNAVAILABLE,
        f"`{home.store_place}`",
        error.message,
        error.hint or "see that it can be reached, and run this again",
    )


def _examine_home(home: Home) -> Iterator[Problem]:
    folder = home.folder
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)):
        yield Problem(
            Code.HOME_PERMISSIONS,
            f"`{folder}`",
            "it is not a folder that this user may read and write",
            f"`chmod u+rwx {folder}` as its owner, or name another with `--home`",
        )


def examine_bundles(places: Iterable[BundlePlace]) -> Iterator[Problem]:
    """Yield what is wrong with the registered bundles, which are expected in these places.

    Of a bundle's files the manifest is read, and of the others the sizes; ``verify`` reads them whole.
    """
    for place in places:
        problem = _examine(place)
        if problem is not None:
            yield problem


def _examine(place: BundlePlace) -> Problem | None:
    manifest = place.path / MANIFEST_FILE
    again = f"fuse or pull it again, or forget it with `meteora-registry remove {place.version}`"
    if not manifest.is_file():
        what = "is no longer a bundle" if place.path.is_dir() else "is not there"
        found = f"`{place.path}` {what}"
        return Problem(Code.BUNDLE_GONE, f"`{place.version}`", found, f"put it back; {again}")
    if manifest.stat().st_size > MAX_MANIFEST_BYTES or hash_file(manifest) != place.manifest_sha256:
        found = f"`{manifest}` is not the one that was registered, `{place.manifest_sha256.short}`"
        return Problem(Code.BUNDLE_CHANGED, f"`{place.version}`", found, again)
    changed = _changed_files(place)
    if changed:
        found = f"in `{place.path}` these are missing or have another size: {join_some(changed)}"
        return Problem(Code.BUNDLE_CHANGED, f"`{place.version}`", found, again)
    return None


def _changed_files(place: BundlePlace) -> list[str]:
    try:
        data = read_bounded(place.path / MANIFEST_FILE, MAX_MANIFEST_BYTES)
        files = Manifest.read(data).files
    except MeteoraError:
        return [MANIFEST_FILE]
    paths = {name: (below(place.path, name), record.size_bytes) for name, record in files.items()}
    return [name for name, (path, size) in paths.items() if not path.is_file() or path.stat().st_size != size]


def examine_catalog(home: Home, *, look_for_blobs: bool = True) -> Iterator[Problem]:
    """Yield what is wrong with the catalog; it is not created where there is none.

    Without ``look_for_blobs`` the store is not asked whether a catalog should be there.
    """
    if home.catalog_url is None:
        yield from _examine_leftovers(home.catalog_file)
        if not home.catalog_file.exists():
            if look_for_blobs:
                yield from _examine_absence(home)
            return
    url = parse_catalog_url(home.catalog_url) if home.catalog_url else sqlite_url(home.catalog_file)
    subject = f"`{describe_url(url)}`"
    try:
        with engine_for(url) as engine:
            found = database.find_revision(engine)
            problems = database.find_problems(engine) if found == HEAD_REVISION else []
    except CatalogUnusable as error:
        yield Problem(Code.CATALOG_UNUSABLE, subject, error.message, error.hint or _BACKUP)
        return
    if found != HEAD_REVISION:
        yield Problem(
            Code.CATALOG_SCHEMA,
            subject,
            f"its schema is `{found or 'none'}`, this version needs `{HEAD_REVISION}`",
            "`meteora-registry db upgrade`; for a newer schema, upgrade meteora-registry",
        )
    # Tables, columns and indexes are the schema's; the rest is the file's or the rows'.
    for code, some in (
        (Code.CATALOG_SCHEMA, [each for each in problems if each.startswith("the schema")]),
        (Code.CATALOG_DAMAGED, [each for each in problems if not each.startswith("the schema")]),
    ):
        if some:
            yield Problem(code, subject, "; ".join(some[:_SHOWN]), _BACKUP)


def _examine_absence(home: Home) -> Iterator[Problem]:
    if home.store_url is None and any(True for _ in home.store.list_blobs()):
        yield Problem(
            Code.CATALOG_MISSING,
            f"`{home.catalog_file}`",
            "there is no catalog, and the store has blobs",
            f"{_BACKUP}, or name the catalog with `--catalog`",
        )


def _examine_leftovers(catalog: Path) -> Iterator[Problem]:
    left = database.clear_unfinished(catalog, dry_run=True)
    if left:
        yield Problem(
            Code.CATALOG_LEFTOVER,
            join_some([str(path) for path in left]),
            "left by a process that died while it made the catalog",
            "delete it",
            Mending("delete it", partial(database.clear_unfinished, catalog)),
        )
