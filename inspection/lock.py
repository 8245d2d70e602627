"""An adapter beside what a lock has of it: the subject of the rules about reviewed bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files.digests import hash_file
from ..files.reading import real_path
from ..schemas.digest import Digest
from ..schemas.errors import SourceUnreadable
from ..schemas.lock import MAX_LOCKED_FILES, LockedAdapter
from .folder import file_of_link


@dataclass(frozen=True, slots=True)
class LockCase:
    """An adapter's files by their digests, and the lock's entry of it; None if the lock has none."""

    name: str
    files: Mapping[str, Digest]
    locked: LockedAdapter | None


def digest_files(
    folder: Path,
    *,
    known: Mapping[str, Digest],
    without: frozenset[Path] = frozenset(),
    follow_links: bool = False,
) -> dict[str, Digest]:
    """Return the digest of every file in an adapter's folder and below it, by its path there.

    Hidden files are left out: no loader opens one, and tools keep their records there.

    Args:
        folder: the adapter's folder.
        known: digests that need not be worked out again.
        without: files that are not the adapter's, by their real paths.
        follow_links: whether links to any file are read.

    Raises:
        SourceUnreadable: a file cannot be read, is a link that is not followed, or there are too many.
    """
    found: dict[str, Digest] = {}
    for place, folders, names in os.walk(folder):
        # What is behind a link would be part of the adapter, and its bytes are unknown.
        names += [name for name in folders if Path(place, name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place, name)
            if real_path(path.parent) / name in without:
                continue
            relative = path.relative_to(folder).as_posix()
            if len(found) == MAX_LOCKED_FILES:
                raise SourceUnreadable(f"`{folder}` has more than {MAX_LOCKED_FILES} files")
            found[relative] = known.get(relative) or _digest(path, follow_links=follow_links)
    return found


def _digest(path: Path, *, follow_links: bool) -> Digest:
    place = file_of_link(path, follow_links=follow_links)
    if place.is_symlink():
        raise SourceUnreadable(
            f"`{path}` is a symbolic link, so a lock cannot have its bytes",
            hint="put the file in its place, or allow it with `--follow-links`",
        )
    return hash_file(place)
