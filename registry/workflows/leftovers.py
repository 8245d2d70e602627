"""Files that a killed process left: known by their name, its contents, and its lock or its age.

The names come from ``files.scratch``, where the code that makes them has them from.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from ...bundle.files import OLD_PARTIAL_RECORD
from ...files.locks import is_abandoned
from ...files.scratch import is_idle, is_scratch, is_staged, is_unfinished, scratch_root
from ...schemas.bundle import (
    CARD_FILE,
    CONFIG_FILE,
    EXPERTS_FOLDER,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    WEIGHTS_FILE,
)
from .problem import Code, Mending, Problem, join_some

# Without a lock that shows whether its process still runs, it must not have changed for so long.
_IDLE_SECONDS = 24 * 3600.0
_OURS = frozenset({CARD_FILE, CONFIG_FILE, EXPERTS_FOLDER, MANIFEST_FILE, VERIFICATION_FILE, WEIGHTS_FILE})


def examine_temporary_folder() -> Iterator[Problem]:
    """Yield what interrupted commands left in the system's folder for temporary files."""
    folder = scratch_root()
    left = [path for path in _children(folder) if _is_old_scratch(path)] if folder else []
    if left:
        yield _problem(Code.TEMPORARY_LEFTOVER, left)


def examine_unfinished(folders: Iterable[Path], bundles: Iterable[Path]) -> Iterator[Problem]:
    """Yield files that interrupted commands left beside those that they were to write, or in bundles."""
    places = sorted({*folders, *bundles})
    left = [path for folder in places for path in _children(folder) if _is_old_unfinished(path)]
    if left:
        yield _problem(Code.FILE_LEFTOVER, left)


def examine_neighbours(folders: Iterable[Path]) -> Iterator[Problem]:
    """Yield what an interrupted fuse, pull or extract left in these folders, which have bundles."""
    for folder in sorted(set(folders)):
        left = [path for path in _children(folder) if _is_staging(path)]
        if left:
            yield _problem(Code.BUNDLE_LEFTOVER, left)


def _is_staging(path: Path) -> bool:
    if not is_staged(path) or path.is_symlink() or not path.is_dir():
        return False
    return {each.name for each in _children(path)} <= _OURS and is_abandoned(path)


def _problem(code: Code, left: list[Path]) -> Problem:
    size_bytes = sum(
        each.lstat().st_size for path in left for each in (path, *path.rglob("*")) if each.is_file()
    )
    return Problem(
        code,
        join_some([str(path) for path in left]),
        f"left by a process that died, {size_bytes} bytes",
        "delete it",
        Mending("delete it", partial(_delete, left)),
    )


def _delete(left: list[Path]) -> None:
    for path in left:
        # Another process may have taken it over since.
        if _is_staging(path) or _is_old_scratch(path) or _is_old_unfinished(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_old_scratch(path: Path) -> bool:
    return is_scratch(path) and path.is_dir() and is_idle(path, time.time(), _IDLE_SECONDS)


def _is_old_unfinished(path: Path) -> bool:
    return (path.name == OLD_PARTIAL_RECORD or is_unfinished(path)) and is_idle(
        path, time.time(), _IDLE_SECONDS
    )


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        # Not there, no folder, or not to be read: nothing of ours can be found in it.
        return []
