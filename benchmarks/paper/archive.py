"""BIG-bench's items, read out of its source package on PyPI, which pip fetches by its digest.

The package is 358 MB and has thousands of files. Only the ``task.json`` of the paper's tasks are copied, into
files of our own naming in the cache; nothing is unpacked by the paths of the archive, and nothing of it is
run by this module. Items carry a canary that keeps them out of training sets: they are never committed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from meteora_registry.files.digests import hash_file
from meteora_registry.files.staging import staged_folder

from .tasks import TASKS

REQUIREMENT = "bigbench==1.0.0"
SDIST = "bigbench-1.0.0.tar.gz"
SDIST_SHA256 = "0000000000000000000000000000000000000000000000000000000000000000"
INSIDE = "bigbench-1.0.0/bigbench/benchmark_tasks"
ITEMS_FILE = "task.json"
MAX_FILE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20


def prepare_items(cache: Path) -> Path:
    """Return the folder of the tasks' ``task.json`` files, made on the first call.

    A source package that is in the cache already is not fetched again.

    Raises:
        ValueError: the package is not the one that this measurement is made with.
    """
    folder = cache / "bigbench"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / SDIST
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        sdist = kept if kept.exists() else fetch_sdist(Path(scratch))
        check_digest(sdist, SDIST_SHA256)
        wanted = {
            f"{INSIDE}/{each}/{ITEMS_FILE}": Path(each, ITEMS_FILE) for task in TASKS for each in task.folders
        }
        with staged_folder(folder) as staging:
            copy_members(sdist, wanted, staging)
    return folder


def fetch_sdist(folder: Path) -> Path:
    """Return the source package, downloaded by pip into ``folder``.

    pip compares the digest before it opens the archive; it then asks the package's own build for its
    dependencies, which is the only code of it that runs.
    """
    required = folder / "requirement.txt"
    required.write_text(f"{REQUIREMENT} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "bigbench"]
    command += ["--require-hashes", "--requirement", str(required), "--dest", str(folder)]
    subprocess.run(command, check=True)
    return folder / SDIST


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
