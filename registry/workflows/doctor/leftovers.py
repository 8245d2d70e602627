"""Folders that a process left when it was killed: known by their names, their contents and their locks."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from ....schemas.bundle import (
    CARD_FILE,
    CONFIG_FILE,
    EXPERTS_FOLDER,
    MANIFEST_FILE,
    VERIFICATION_FILE,
    WEIGHTS_FILE,
)
from ...store.intake import is_abandoned
from .problem import Code, Mending, Problem, join_some

# Where no lock says whether its maker lives, it has to have stood still for so long.
_IDLE_SECONDS = 24 * 3600.0
_TEMPORARY = tuple(
    f"meteora-{word}-" for word in ("add", "outline", "import", "pull", "verify", "member", "push")
)
_OURS = frozenset({CARD_FILE, CONFIG_FILE, EXPERTS_FOLDER, MANIFEST_FILE, VERIFICATION_FILE, WEIGHTS_FILE})


def examine_temporary_folder() -> Iterator[Problem]:
    """What interrupted commands left in the system's folder for temporary files."""
    folder = Path(tempfile.gettempdir())
    left = [path for path in _children(folder) if path.name.startswith(_TEMPORARY) and _is_old(path)]
    if left:
        yield _problem(Code.TEMPORARY_LEFTOVER, left)


def examine_neighbours(folders: Iterable[Path]) -> Iterator[Problem]:
    """What an interrupted fuse, pull or extract left in these folders, where bundles lie."""
    for folder in sorted(set(folders)):
        left = [path for path in _children(folder) if _is_staging(path)]
        if left:
            yield _problem(Code.BUNDLE_LEFTOVER, left)


def _is_staging(path: Path) -> bool:
    if not (path.name.startswith(".") and path.name.endswith(".partial")):
        return False
    return {each.name for each in _children(path)} <= _OURS and is_abandoned(path)


def _problem(code: Code, left: list[Path]) -> Problem:
    size_bytes = sum(each.lstat().st_size for path in left for each in path.rglob("*") if each.is_file())
    return Problem(
        code,
        join_some([str(path) for path in left]),
        f"left by a process that died, {size_bytes} bytes",
        "delete it",
        Mending("delete it", partial(_delete, left)),
    )


def _delete(folders: list[Path]) -> None:
    for folder in folders:
        # Somebody may have taken it over since.
        if _is_staging(folder) or (folder.name.startswith(_TEMPORARY) and _is_old(folder)):
            shutil.rmtree(folder)


def _is_old(folder: Path) -> bool:
    """Whether it is this user's, and nothing in it changed for a day."""
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.geteuid():
        return False
    newest = max((path.lstat().st_mtime for path in (folder, *folder.rglob("*"))), default=0.0)
    return time.time() - newest > _IDLE_SECONDS


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        # Not there, no folder, or not to be read: nothing of ours can be found in it.
        return []
