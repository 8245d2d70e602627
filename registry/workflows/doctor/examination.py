"""The whole examination, from the home inwards: what rests on something unsound is not judged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ....files.progress import Progress, silent
from ....files.reading import real_path
from ....schemas.errors import (
    CatalogUnusable,
    MeteoraError,
    MissingDependency,
    StillInUse,
    StoreUnavailable,
    UsageError,
)
from ...catalog.catalog import Catalog
from ...catalog.references import BundlePlace
from ...home import Home
from .bundles import examine_bundles
from .catalog import examine_catalog
from .leftovers import examine_neighbours, examine_temporary_folder, examine_unfinished
from .problem import Code, Problem
from .store import examine_garbage, examine_permissions, examine_store

_UNSOUND = frozenset({Code.CATALOG_DAMAGED, Code.CATALOG_MISSING, Code.CATALOG_UNUSABLE})
_REST = "the store and the bundles"


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, and what could not be judged, with the reason."""

    problems: tuple[Problem, ...]
    not_examined: tuple[str, ...]


def examine(
    home: Home, *, beside: Iterable[Path] = (), jobs: int = 1, progress: Progress = silent
) -> Examination:
    """Look at everything, and change nothing.

    Every byte of the store is read; of one elsewhere, every byte there.

    Args:
        home: what is examined.
        beside: folders in which bundles may have been begun, beyond those where catalogued ones lie.
        jobs: how many blobs are read at once.
        progress: called with a step's name, how much of it is done, and how much there is.
    """
    problems = [*_examine_home(home), *examine_temporary_folder(), *_examine_place(home)]
    is_store_there = all(problem.code != Code.STORE_UNAVAILABLE for problem in problems)
    not_examined = [] if is_store_there else ["the rest of the store: it cannot be reached"]
    if not is_store_there:
        problems += examine_permissions(home)
    problems += examine_catalog(home, look_for_blobs=is_store_there)
    parents = {real_path(folder) for folder in beside}
    places: tuple[BundlePlace, ...] = ()
    try:
        if any(problem.code in _UNSOUND for problem in problems):
            not_examined.append(f"{_REST}: what belongs there is in the catalog")
        elif home.catalog_url is not None or home.catalog_file.exists():
            with Catalog.open(home) as catalog:
                if is_store_there:
                    problems += _examine_store(home, catalog, not_examined, jobs=jobs, progress=progress)
                places = tuple(catalog.list_bundle_places())
                problems += examine_bundles(places)
                parents |= {place.path.parent for place in places}
    except CatalogUnusable as error:
        not_examined.append(f"{_REST}: {error}")
    problems += examine_neighbours(parents)
    problems += examine_unfinished(parents, [place.path for place in places])
    return Examination(tuple(problems), tuple(not_examined))


def _examine_place(home: Home) -> Iterator[Problem]:
    """Yield that the store is not there, whether or not a catalog refers to anything in it."""
    try:
        home.store.require_there()
    except (StoreUnavailable, UsageError, MissingDependency) as error:
        yield _unavailable(home, error)


def _examine_store(
    home: Home, catalog: Catalog, not_examined: list[str], *, jobs: int, progress: Progress
) -> Iterator[Problem]:
    try:
        yield from examine_store(home, catalog, jobs=jobs, progress=progress)
        yield from examine_garbage(home, catalog)
    except StillInUse as error:
        not_examined.append(f"what of the store may be deleted: {error}; {error.hint}")
    except StoreUnavailable as error:
        not_examined.append("the rest of the store: it cannot be reached")
        yield _unavailable(home, error)


def _unavailable(home: Home, error: MeteoraError) -> Problem:
    return Problem(
        Code.STORE_UNAVAILABLE,
        f"`{home.store}`",
        error.message,
        error.hint or "see that it can be reached, and run this again",
    )


def _examine_home(home: Home) -> Iterator[Problem]:
    folder = home.folder
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)):
        yield Problem(
            Code.HOME_PERMISSIONS,
            f"`{folder}`",
            "it is no folder that this user may read and write",
            f"`chmod u+rwx {folder}` as its owner, or name another with `--home`",
        )
