"""What a repository holds at one commit: files with sizes and digests, and the adapters among them.

Nothing here asks the network.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...files.digests import Hasher, read_chunks
from ...files.progress import UNCOUNTED, Step
from ...files.reading import open_regular
from ...schemas.bundle import CONFIG_FILE, MANIFEST_FILE
from ...schemas.digest import Digest
from ...schemas.errors import HubMismatch, InvalidDocument
from ...schemas.names import HubSource, check_inside

_FOREIGN = frozenset({".gitattributes", ".gitignore"})


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it: ``sha256`` of one that LFS keeps, ``git_oid`` of git's blob.

    Both are None where the list comes from a cache that does not say.

    Raises:
        HubMismatch: the path is none that git can have, such as one that leads out of the repository.
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
        """Whether the Hub lists this very content: by SHA-256 if it states it, else by git's name."""
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
        """The digests of the bytes so far."""
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
        """The file at a path, if there is one."""
        return next((file for file in self.files if file.path == path), None)

    @property
    def own_files(self) -> tuple[RemoteFile, ...]:
        """The files without those that the Hub or git puts there."""
        return tuple(file for file in self.files if file.path not in _FOREIGN)

    @property
    def is_bundle(self) -> bool:
        """Whether a bundle lies at its root."""
        return self.find(MANIFEST_FILE) is not None

    def candidates(self) -> tuple[Candidate, ...]:
        """Every folder with an adapter config, ordered by path; the root is the folder ``""``."""
        folders: dict[str, dict[str, RemoteFile]] = {}
        for file in self.files:
            parent = str(PurePosixPath(file.path).parent)
            folders.setdefault("" if parent == "." else parent, {})[file.name] = file
        return tuple(
            Candidate(self.repository, self.commit, folder, files)
            for folder, files in sorted(folders.items())
            if CONFIG_FILE in files
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One adapter in a repository: the files of its folder by name."""

    repository: str
    commit: str
    folder: str
    files: dict[str, RemoteFile]

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        return f"hf://{self.repository}@{self.commit}{folder}"

    @property
    def source(self) -> HubSource:
        """How to name exactly this adapter."""
        return HubSource(self.repository, self.commit, self.folder or None)

    @property
    def default_name(self) -> str:
        """What the catalog calls it by default, before it is made a valid name."""
        parts = (self.repository.partition("/")[2], *PurePosixPath(self.folder).parts)
        return "-".join(parts)
