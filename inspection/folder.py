"""What lies in an adapter's folder: names, kinds and sizes, without opening or following anything."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

from ..schemas.bundle import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from ..schemas.document import load_json
from ..schemas.errors import InvalidDocument, SourceUnreadable
from .quotation import quote_name
from .safetensors_file import LFS_START

INDEX_FILE = "adapter_model.safetensors.index.json"
PICKLED_WEIGHTS = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_EXPECTED = (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, CARD_FILE, *PICKLED_WEIGHTS)
MAX_ENTRIES = 10_000
_MAX_SUBFOLDERS = 200

__all__ = ["CARD_FILE", "CONFIG_FILE", "INDEX_FILE", "WEIGHTS_FILE", "Folder", "Kind", "read_small"]


class Kind(StrEnum):
    """What a name in a folder stands for; a link is never followed to find out."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "symbolic link"
    OTHER = "pipe, socket or device"


@dataclass(frozen=True, slots=True)
class Folder:
    """An adapter's folder.

    ``entries`` are sorted by name; ``adapters`` are the subfolders that hold a config of their own;
    ``shards`` is what the index of a sharded file names; ``pointers`` are the pickles that are only
    git-lfs pointers.
    """

    entries: dict[str, Kind]
    adapters: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    pointers: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Folder:
        """List a folder.

        Raises:
            SourceUnreadable: it is missing, no folder, or cannot be read.
        """
        try:
            with os.scandir(path) as found:
                names = [entry.name for entry in islice(found, MAX_ENTRIES)]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SourceUnreadable(
                f"{quote_name(str(path))} cannot be read: {reason}", hint="expected a folder with an adapter"
            ) from error
        # In a folder of more names than are listed, those that matter are looked up.
        kinds = {name: _kind_of(path / name) for name in {*names, *_EXPECTED}}
        entries = {name: kind for name, kind in sorted(kinds.items()) if kind is not None}
        folders = [name for name, kind in entries.items() if kind is Kind.FOLDER][:_MAX_SUBFOLDERS]
        adapters = tuple(name for name in folders if (path / name / CONFIG_FILE).is_file())
        shards = _read_index(path / INDEX_FILE) if entries.get(INDEX_FILE) is Kind.FILE else ()
        pickles = [name for name in PICKLED_WEIGHTS if entries.get(name) is Kind.FILE]
        pointers = tuple(name for name in pickles if read_small(path / name, 64).startswith(LFS_START))
        return cls(entries, adapters, shards, pointers)

    def has_file(self, name: str) -> bool:
        """Whether a regular file of that name lies here."""
        return self.entries.get(name) is Kind.FILE


def _kind_of(path: Path) -> Kind | None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None
    if stat.S_ISLNK(mode):
        return Kind.LINK
    if stat.S_ISDIR(mode):
        return Kind.FOLDER
    return Kind.FILE if stat.S_ISREG(mode) else Kind.OTHER


def read_small(path: Path, max_bytes: int) -> bytes:
    """The first ``max_bytes + 1`` bytes of a regular file; a link is not followed.

    Raises:
        SourceUnreadable: it is missing, a link, no regular file, or cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SourceUnreadable(f"{quote_name(str(path))} is no regular file")
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, SourceUnreadable):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceUnreadable(f"{quote_name(str(path))} cannot be read: {reason}") from error


def _read_index(path: Path) -> tuple[str, ...]:
    max_bytes = 8 << 20
    try:
        index: Any = load_json(read_small(path, max_bytes), what=path.name, max_bytes=max_bytes)
    except InvalidDocument:
        return ()
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict):
        return ()
    return tuple(sorted({shard for shard in named.values() if isinstance(shard, str)}))
