"""A base as one GGUF file in a folder: found, bounded, and read by transformers, which dequantises it.

GGUF is the format of llama.cpp: metadata with config and tokenizer, then tensors, which may be quantised. It
holds no code. A folder with a ``config.json`` is read by that, whatever else is in it.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..files.reading import open_regular, read_errors, read_start
from ..schemas.errors import MissingDependency, SourceUnreadable
from .config_limits import limit_of

_CONFIG_FILE = "config.json"
_SUFFIX = ".gguf"
# Magic, version, number of tensors, number of entries of the metadata.
_HEADER = struct.Struct("<4sIQQ")
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_TENSORS = 200_000
_MAX_ENTRIES = 10_000
# Three times what the largest vocabularies take; for each of them the reader makes an array of its own.
_MAX_ELEMENTS = 4_000_000
# The bytes of a value by the number of its kind, as the format has them; the other two kinds are longer.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_HINT = "expected one GGUF file, and no `config.json` beside it"


def gguf_file_in(folder: Path) -> str | None:
    """Return the name of the GGUF file that is the base in a folder; None if a config there describes it.

    Raises:
        SourceUnreadable: there are several such files, or it is malformed or asks for more than any model.
        MissingDependency: `gguf` is not installed.
    """
    if not folder.is_dir() or (folder / _CONFIG_FILE).exists():
        return None
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(_SUFFIX))
    if not names:
        return None
    if len(names) > 1:
        listed = ", ".join(f"`{name}`" for name in names[:5])
        raise SourceUnreadable(f"`{folder}` has {len(names)} GGUF files: {listed}", hint=_HINT)
    path = folder / names[0]
    _check_header(path)
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependency(
            f"the base `{path}` is a GGUF file, which needs `gguf`, which is not installed", extra="gguf"
        )
    state = path.stat()
    _check_numbers(path, state.st_size, state.st_mtime_ns)
    return names[0]


def _check_header(path: Path) -> None:
    data = read_start(path, _HEADER.size - 1, follows_links=True)
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise SourceUnreadable(f"`{path}` is not a GGUF file: it does not begin with `GGUF`", hint=_HINT)
    _, version, tensors, entries = _HEADER.unpack(data)
    if version not in _VERSIONS:
        raise SourceUnreadable(f"`{path}` has version {version} of GGUF, expected 2 or 3", hint=_HINT)
    for what, found, most in (("tensors", tensors, _MAX_TENSORS), ("entries", entries, _MAX_ENTRIES)):
        if found > most:
            raise SourceUnreadable(f"`{path}` has {found} {what}, expected at most {most}", hint=_HINT)


@lru_cache(maxsize=4)
def _check_numbers(path: Path, size: int, changed: int) -> None:
    """Refuse metadata that ask for more than any model has; once for a file, whose vocabulary is long."""
    from gguf import GGUFReader

    _check_lengths(path)
    try:
        fields: Any = GGUFReader(path).fields
    # The reader checks little, and its parts may be anything.
    except Exception as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise SourceUnreadable(
            f"`{path}` is not a GGUF file that can be read: {words}", hint=_HINT
        ) from error
    for name, field in fields.items():
        value = field.contents() if len(field.types) == 1 else None
        limit = limit_of(name.rpartition(".")[2])
        if isinstance(value, int | float) and limit is not None and value > limit:
            raise SourceUnreadable(
                f"`{path}` is not a base model: its `{name}` is {value:.3g}, expected at most {limit}",
                hint=_HINT,
            )


def _check_lengths(path: Path) -> None:
    """Refuse lists that are longer than the file, or than any model's: the reader fills memory for them."""
    with (
        read_errors(path),
        open_regular(path, follows_links=True) as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        try:
            _Metadata(data).skip_all()
        except ValueError as error:
            raise SourceUnreadable(
                f"`{path}` is not a GGUF file that can be read: {error}", hint=_HINT
            ) from error


class _Metadata:
    """A walk over the metadata of a file, which builds nothing."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._place = _HEADER.size
        self._elements = 0

    def skip_all(self) -> None:
        """Skip all entries.

        Raises:
            ValueError: they end behind the file, or have more elements than any model, an array of arrays, or
                values of an unknown kind.
        """
        entries = _HEADER.unpack_from(self._data)[3]
        for _ in range(entries):
            self._skip_string()
            self._skip_value(self._number("<I"))
        self._check_end(self._place)

    def _skip_value(self, kind: int) -> None:
        if kind != _ARRAY:
            self._skip(kind, 1)
            return
        kind, length = self._number("<I"), self._number("<Q")
        self._elements += length
        if self._elements > _MAX_ELEMENTS:
            raise ValueError(f"its lists have more than {_MAX_ELEMENTS} elements")
        self._skip(kind, length)

    def _skip(self, kind: int, count: int) -> None:
        if kind == _STRING:
            for _ in range(count):
                self._skip_string()
        elif kind in _SIZES:
            self._place += _SIZES[kind] * count
        else:
            raise ValueError(f"an entry has values of the kind {kind}")

    def _skip_string(self) -> None:
        # Reading the number moves the place, too.
        length = self._number("<Q")
        self._place += length

    def _number(self, form: str) -> int:
        start, self._place = self._place, self._place + struct.calcsize(form)
        self._check_end(self._place)
        return int(struct.unpack_from(form, self._data, start)[0])

    def _check_end(self, place: int) -> None:
        if place > len(self._data):
            raise ValueError("its metadata end within an entry")
