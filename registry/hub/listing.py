"""The contents of a repository at one commit: files with sizes and digests, and the adapters among them.

Nothing here asks the network. An entry comes from an answer of the Hub, or from its cache, and is checked
before anything relies on it.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub.hf_api import RepoFile

from ...files.digests import Hasher, read_chunks
from ...files.progress import UNCOUNTED, Step
from ...files.reading import open_regular
from ...schemas.bundle import CONFIG_FILE, MANIFEST_FILE
from ...schemas.digest import Digest
from ...schemas.errors import HubMismatch, InvalidDocument
from ...schemas.names import check_inside
from .rate import AnswerRefused

_FOREIGN = frozenset({".gitattributes", ".gitignore"})
# Far beyond what the Hub keeps, and within what a file system and an offset can hold.
_MAX_SIZE_BYTES = 1 << 50
_MAX_PATH_BYTES = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it: ``sha256`` of one that LFS keeps, ``git_oid`` of git's blob.

    Both are None where the list comes from a cache that does not record them.

    Raises:
        HubMismatch: git cannot have the path, for example because it leads out of the repository.
    """

    path: str
    size_bytes: int
    sha256: Digest | None
    git_oid: str | None

    def __post_init__(self) -> None:
        try:
            check_inside(self.path)
        except InvalidDocument as error:
            raise HubMismatch(
                f"the Hub lists a file {self.path[:200]!r}, which is not a path inside a repository"
            ) from error

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True)
class FileDigests:
    """A local file's size, and the two digests by which the Hub may know it."""

    size_bytes: int
    sha256: Digest
    git_oid: str

    def are_those_of(self, file: RemoteFile) -> bool:
        """Return whether the Hub lists the same content: by SHA-256 if it states it, else by git's name."""
        if self.size_bytes != file.size_bytes:
            return False
        if file.sha256 is not None:
            return self.sha256 == file.sha256
        return file.git_oid is None or self.git_oid == file.git_oid


class ContentHash:
    """The digests of bytes that come piece by piece; their number must be known before."""

    def __init__(self, size_bytes: int) -> None:
        self._sha256 = Hasher()
        # Git names a blob so; it is how the Hub lists what LFS does not keep.
        self._git = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        self._sha256.update(data)
        self._git.update(data)

    def result(self) -> FileDigests:
        """Return the digests of the bytes so far."""
        return FileDigests(self._sha256.size_bytes, self._sha256.digest, self._git.hexdigest())


def digest_file(path: Path, step: Step = UNCOUNTED) -> FileDigests:
    """Return the digests of a local file, read once; ``step`` counts the bytes.

    Raises:
        SourceUnreadable: it is missing, is not a regular file, or cannot be read.
    """
    with open_regular(path, follows_links=True) as file:
        found = ContentHash(os.fstat(file.fileno()).st_size)
        for chunk in read_chunks(file, step):
            found.update(chunk)
    return found.result()


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a repository at a commit."""

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]

    def find(self, path: str) -> RemoteFile | None:
        """Return the file at a path, or None."""
        return next((file for file in self.files if file.path == path), None)

    @property
    def own_files(self) -> tuple[RemoteFile, ...]:
        """The files without those that the Hub or git puts there."""
        return tuple(file for file in self.files if file.path not in _FOREIGN)

    @property
    def is_bundle(self) -> bool:
        """Whether its root is a bundle."""
        return self.find(MANIFEST_FILE) is not None

    def candidates(self) -> tuple[Candidate, ...]:
        """Return every folder with an adapter config, ordered by path; the root is the folder ``""``."""
        folders: dict[str, dict[str, RemoteFile]] = {}
        for file in self.files:
            parent = str(PurePosixPath(file.path).parent)
            folders.setdefault("" if parent == "." else parent, {})[file.name] = file
        return tuple(
            Candidate(self, folder, files)
            for folder, files in sorted(folders.items())
            if CONFIG_FILE in files
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One adapter in a repository: the files of its folder by name."""

    listing: Listing
    folder: str
    files: dict[str, RemoteFile]

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        return f"hf://{self.listing.repository}@{self.listing.commit}{folder}"

    @property
    def default_name(self) -> str:
        """What the catalog calls it by default, before it is made a valid name."""
        parts = (self.listing.repository.partition("/")[2], *PurePosixPath(self.folder).parts)
        return "-".join(parts)


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
