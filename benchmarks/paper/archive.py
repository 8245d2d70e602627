"""BIG-bench's items, read out of its source package on PyPI, which is held to its digest.

The package is 358 MB and has thousands of files. Only the ``task.json`` of the paper's tasks are copied, into
files of our own naming in the cache; nothing is unpacked by the paths of the archive, and nothing of it is
run. Items carry a canary that keeps them out of training sets: they are never committed.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gates.rows import digest_of
from meteora_registry.files.digests import hash_file
from meteora_registry.files.staging import staged_folder
from meteora_registry.files.writing import whole_file

from .tasks import FOREIGN, TASKS

PROJECT = "bigbench"
SDIST = "bigbench-1.0.0.tar.gz"
SDIST_SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
SDIST_BYTES = 358_249_635
INSIDE = "bigbench-1.0.0/bigbench/benchmark_tasks"
ITEMS_FILE = "task.json"
MAX_FILE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20


def prepare_items(cache: Path) -> Path:
    """Return the folder of the tasks' ``task.json`` files, made on the first call.

    It is named by a digest of their names, so that a task that is added has its items. The source package is
    in the cache until they are copied, so that a run that was killed need not fetch it again; one that was
    put there is taken.

    Raises:
        ValueError: the package cannot be fetched, or is not the one that this measurement is made with.
    """
    folders = [*(each for task in TASKS for each in task.folders), *FOREIGN]
    wanted = {f"{INSIDE}/{each}/{ITEMS_FILE}": Path(each, ITEMS_FILE) for each in folders}
    folder = cache / f"bigbench-{digest_of(sorted(wanted))[:12]}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    sdist = cache / SDIST
    if not sdist.exists():
        with whole_file(sdist) as file:
            fetch_sdist(file)
    check_digest(sdist, SDIST_SHA256)
    with staged_folder(folder) as staging:
        copy_members(sdist, wanted, staging)
    sdist.unlink()
    return folder


def fetch_sdist(file: Path) -> None:
    """Download the source package into a new file.

    pip cannot do it: it asks a source package for its dependencies, and refuses this one because one of them
    is a path.

    Raises:
        ValueError: the client of package indexes is not installed, or the index has another package.
    """
    try:
        from pypi_simple import PyPISimple
    except ModuleNotFoundError as error:
        raise ValueError(
            f"fetching `{SDIST}` needs `pypi-simple`, which is not installed: `pip install --group paper` "
            f"installs it; or put the file into the cache yourself"
        ) from error
    with PyPISimple() as client:
        found = [each for each in client.get_project_page(PROJECT).packages if each.filename == SDIST]
        if [(each.size, each.digests.get("sha256")) for each in found] != [(SDIST_BYTES, SDIST_SHA256)]:
            raise ValueError(f"the package index has another `{SDIST}`, expected sha256 `{SDIST_SHA256}`")
        client.download_package(found[0], file, verify=True)


def check_digest(path: Path, expected: str) -> None:
    """Pass if a file has a digest.

    Raises:
        ValueError: it has another one.
    """
    found = str(hash_file(path))
    if found != expected:
        raise ValueError(f"`{path.name}` has sha256 `{found}`, expected `{expected}`")


def copy_members(archive: Path, wanted: Mapping[str, Path], folder: Path) -> None:
    """Copy some regular files of a compressed archive, in one pass over it.

    Args:
        archive: a ``.tar.gz``.
        wanted: the place in ``folder`` for each name in the archive.
        folder: exists.

    Raises:
        ValueError: a file is missing, is not a regular file, or has more than ``MAX_FILE_BYTES`` bytes.
    """
    missing = dict(wanted)
    with tarfile.open(archive, "r|gz") as tar:
        for entry in tar:
            place = missing.pop(entry.name, None)
            if place is None:
                continue
            source = tar.extractfile(entry) if entry.isreg() else None
            if source is None or entry.size > MAX_FILE_BYTES:
                raise ValueError(
                    f"`{entry.name}` in `{archive.name}` has {entry.size} bytes, expected a regular file of "
                    f"at most {MAX_FILE_BYTES}"
                )
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
            if not missing:
                return
    if missing:
        raise ValueError(f"`{archive.name}` lacks {', '.join(f'`{name}`' for name in sorted(missing))}")
