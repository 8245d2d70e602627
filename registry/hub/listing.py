"""What a repository holds at one commit, as values: files with sizes and digests, and the adapters among them.

Nothing here asks the network.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...schemas.bundle import CONFIG_FILE, MANIFEST_FILE
from ...schemas.digest import Digest
from ...schemas.names import HubSource

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it: ``sha256`` of one that LFS keeps, ``git_oid`` of git's blob.

    Both are None where the list comes from a cache that does not say.
    """

    path: str
    size_bytes: int
    sha256: Digest | None
    git_oid: str | None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


class ContentHash:
    """The two digests by which the Hub knows a file of ``size_bytes`` bytes."""

    def __init__(self, size_bytes: int) -> None:
        self._sha256 = hashlib.sha256()
        # Git names a blob so; it protects nothing here that the manifest's SHA-256 does not.
        self._git = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        self._sha256.update(data)
        self._git.update(data)

    def is_that_of(self, file: RemoteFile) -> bool:
        """Whether the bytes so far are the file's: by SHA-256 if the Hub states it, else by git's name."""
        if file.sha256 is not None:
            return self._sha256.hexdigest() == file.sha256
        return file.git_oid is None or self._git.hexdigest() == file.git_oid


def is_same_content(path: Path, file: RemoteFile) -> bool:
    """Whether a local file has the size and the digest that the Hub lists; read in chunks of 1 MiB."""
    size_bytes = path.stat().st_size
    if size_bytes != file.size_bytes:
        return False
    found = ContentHash(size_bytes)
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.is_that_of(file)


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
