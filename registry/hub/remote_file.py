"""One file of a listing, read with suspicion: from an answer of the Hub, or from its cache."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from ...schemas.digest import Digest
from .listing import RemoteFile
from .rate import AnswerRefused

# Far beyond what the Hub keeps, and within what a file system and an offset can hold.
_MAX_SIZE_BYTES = 1 << 50
_MAX_PATH_BYTES = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")
_SHOWN = 80


def read_entry(entry: RepoFile) -> RemoteFile:
    """Return an entry of the Hub's list of files.

    Raises:
        AnswerRefused: its path is not one that git can hold, or a size or a digest is malformed.
    """
    path, size = _check_path(entry.path), _check_size(entry.size, entry.path)
    sha256 = None
    if entry.lfs is not None:
        sha256 = Digest(_check_id(entry.lfs.sha256, _SHA256, path))
        if entry.lfs.size != size:
            raise AnswerRefused(f"it lists `{path}` with two sizes, {size} and `{entry.lfs.size}`")
    return RemoteFile(path, size, sha256, _check_id(entry.blob_id, _GIT_OID, path))


def read_cached_file(snapshot: Path, path: Path) -> RemoteFile:
    """Return a file of a snapshot in the cache, which names a blob by its ETag.

    That is the SHA-256 of what LFS keeps and git's name of all else; a mirror may have others.
    """
    name = path.readlink().name if path.is_symlink() else ""
    return RemoteFile(
        path.relative_to(snapshot).as_posix(),
        path.stat().st_size,
        Digest(name) if _SHA256.fullmatch(name) else None,
        name if _GIT_OID.fullmatch(name) else None,
    )


def _check_path(path: object) -> str:
    if not isinstance(path, str) or not _is_inside(path):
        raise AnswerRefused(f"it lists `{str(path)[:_SHOWN]}`, expected a path within the repository")
    return path


def _is_inside(path: str) -> bool:
    try:
        count = len(path.encode())
    except UnicodeEncodeError:
        return False
    return count <= _MAX_PATH_BYTES and "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def _check_size(size: object, path: str) -> int:
    # `True` is an int, too.
    if type(size) is not int or not 0 <= size <= _MAX_SIZE_BYTES:
        raise AnswerRefused(
            f"it lists `{path}` with the size `{_describe(size)}`, expected a number of bytes"
        )
    return size


def _check_id(value: object, pattern: re.Pattern[str], path: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise AnswerRefused(f"it lists `{path}` with the digest `{_describe(value)}`")
    return value


def _describe(value: object) -> str:
    return str(value)[:_SHOWN] if isinstance(value, (str, int, float)) else type(value).__name__
