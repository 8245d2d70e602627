"""An adapter's folder: names and kinds of its entries, without opening or following any.

The links in a snapshot of a Hub cache count as the files of the repository that they stand for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

from ..files.reading import cached_blob, read_start, real_path
from ..schemas.bundle import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from ..schemas.document import load_json
from ..schemas.errors import InvalidDocument, SourceUnreadable
from .safetensors_file import LFS_START

INDEX_FILE = "adapter_model.safetensors.index.json"
PICKLED_WEIGHTS = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_EXPECTED = (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, CARD_FILE, *PICKLED_WEIGHTS)
MAX_ENTRIES = 10_000
_MAX_SUBFOLDERS = 200

__all__ = ["CARD_FILE", "CONFIG_FILE", "INDEX_FILE", "WEIGHTS_FILE", "Folder", "Kind"]


class Kind(StrEnum):
    """The kind of an entry of a folder, determined without following a link."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "symbolic link"
    OTHER = "pipe, socket or device"


# In a Hub cache the config of an adapter in a subfolder is a link.
_FILES = (Kind.FILE, Kind.LINK)


@dataclass(frozen=True, slots=True)
class Folder:
    """An adapter's folder.

    ``entries`` are sorted by name; ``adapters`` are the subfolders that hold a config of their own;
    ``shards`` is what the index of a sharded file names; ``pointers`` are the pickles that are only
    git-lfs pointers; ``linked`` has the files that links stand for which may be followed.
    """

    entries: dict[str, Kind]
    adapters: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    pointers: tuple[str, ...] = ()
    linked: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: int, path: Path, *, follow_links: bool = False) -> Folder:
        """List the folder of an open descriptor, which was opened at ``path``.

        Raises:
            SourceUnreadable: it, or a file in it, cannot be read.
        """
        try:
            with os.scandir(folder) as found:
                names = [entry.name for entry in islice(found, MAX_ENTRIES)]
        except OSError as error:
            raise SourceUnreadable(f"the folder cannot be read: {error.strerror}") from error
        # In a folder of more names than are listed, the names that matter are looked up one by one.
        kinds = {name: _kind_of(name, folder) for name in {*names, *_EXPECTED}}
        entries = {name: kind for name, kind in sorted(kinds.items()) if kind is not None}
        links = (name for name in _EXPECTED if entries.get(name) is Kind.LINK)
        linked = {
            name: file_of_link(path / name, follow_links=follow_links and name in (CONFIG_FILE, WEIGHTS_FILE))
            for name in links
        }
        linked = {name: target for name, target in linked.items() if target != path / name}
        entries |= dict.fromkeys(linked, Kind.FILE)
        folders = [name for name, kind in entries.items() if kind is Kind.FOLDER][:_MAX_SUBFOLDERS]
        adapters = tuple(name for name in folders if _kind_of(f"{name}/{CONFIG_FILE}", folder) in _FILES)
        has_index = entries.get(INDEX_FILE) is Kind.FILE
        shards = _read_index(linked.get(INDEX_FILE, INDEX_FILE), folder) if has_index else ()
        pickles = [name for name in PICKLED_WEIGHTS if entries.get(name) is Kind.FILE]
        starts = {name: read_start(linked.get(name, name), len(LFS_START), folder=folder) for name in pickles}
        pointers = tuple(name for name in pickles if starts[name].startswith(LFS_START))
        return cls(entries, adapters, shards, pointers, linked)

    def has_file(self, name: str) -> bool:
        """Return whether the folder has a regular file of that name."""
        return self.entries.get(name) is Kind.FILE

    def place(self, name: str) -> Path | str:
        """Return where a file is read: its name in the folder, or the file that a link stands for."""
        return self.linked.get(name, name)


def file_of_link(path: Path, *, follow_links: bool = False) -> Path:
    """Return the file that a link stands for, if it may be followed; any other path as it is.

    A link in a snapshot of a Hub cache is followed to the file of its repository, and any link that leads to
    a file with ``follow_links``.
    """
    if follow_links and path.is_file():
        return real_path(path)
    return cached_blob(path) or path


def _kind_of(name: str, folder: int) -> Kind | None:
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except OSError:
        return None
    if stat.S_ISLNK(mode):
        return Kind.LINK
    if stat.S_ISDIR(mode):
        return Kind.FOLDER
    return Kind.FILE if stat.S_ISREG(mode) else Kind.OTHER


def _read_index(place: Path | str, folder: int) -> tuple[str, ...]:
    max_bytes = 4 << 20
    try:
        index: Any = load_json(
            read_start(place, max_bytes, folder=folder), what=INDEX_FILE, max_bytes=max_bytes
        )
    except InvalidDocument:
        return ()
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict):
        return ()
    return tuple(sorted({shard for shard in named.values() if isinstance(shard, str)}))
