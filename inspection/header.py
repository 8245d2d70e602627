"""The header of a safetensors file, read without trusting one byte of it.

``read_header`` reads the first bytes and the header, never the data. Everything the format promises
is checked: a file that passes can be sliced by the offsets given here without looking back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

from ..files.reading import open_regular, read_errors
from ..schemas.document import load_json
from ..schemas.errors import AdapterRefused, InvalidDocument
from ..schemas.finding import Finding
from ..schemas.quotation import quote_name
from .rules import header as _rules  # noqa: F401 - registers the rules that `examine` runs
from .rules.rule import examine
from .safetensors_file import (
    DTYPE_BITS,
    LENGTH_BYTES,
    METADATA,
    START_BYTES,
    FileStart,
    HeaderEntries,
    HeaderText,
    TensorEntry,
    TensorLayout,
)

MAX_DIMENSIONS = 16
_MAX_SIZE = 1 << 53
_ENTRY_KEYS = frozenset({"dtype", "shape", "data_offsets"})

__all__ = ["Header", "TensorEntry", "parse_header", "read_header", "read_header_of"]


@dataclass(frozen=True, slots=True)
class Header:
    """The content of a safetensors file: ``tensors`` in the order of their bytes, offsets of the file.

    ``text`` is the header's JSON word for word, with the spaces it is padded with; ``data_start`` is
    where the data begins.
    """

    tensors: tuple[TensorEntry, ...]
    metadata: dict[str, str]
    text: str
    data_start: int
    file_bytes: int
    _by_name: dict[str, TensorEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {entry.name: entry for entry in self.tensors})

    def __getitem__(self, name: str) -> TensorEntry:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name


def read_header(path: Path) -> Header:
    """Return the header of the file at ``path``; only its first bytes and its header are read.

    Raises:
        SourceUnreadable: it is missing, not a regular file, or cannot be read.
        AdapterRefused: it is not a safetensors file, or is damaged; with all findings.
    """
    with open_regular(path, follows_links=True) as file:
        return read_header_of(file, path.name)


def read_header_of(file: BinaryIO, name: str) -> Header:
    """Return the header of an open file, of which no more is read; messages call the file ``name``.

    Raises:
        SourceUnreadable: it cannot be read.
        AdapterRefused: it is not a safetensors file, or is damaged; with all findings.
    """
    with read_errors(name):
        file_bytes = os.fstat(file.fileno()).st_size
        start = FileStart(file.read(START_BYTES), file_bytes)
        _refuse(name, examine(start))
        file.seek(LENGTH_BYTES)
        text = file.read(start.header_bytes)
    return _build(name, text, file_bytes)


def parse_header(data: bytes, file_bytes: int) -> Header:
    """Return the header of a file of ``file_bytes`` bytes that begins with ``data``.

    Raises:
        AdapterRefused: it is not a safetensors file, is damaged, or ``data`` ends within the header.
    """
    start = FileStart(data[:START_BYTES], file_bytes)
    _refuse(None, examine(start))
    text = data[LENGTH_BYTES : LENGTH_BYTES + start.header_bytes]
    if len(text) < start.header_bytes:
        raise AdapterRefused(
            f"the header has {start.header_bytes} bytes, {len(text)} of them were given",
            hint=f"give the first {LENGTH_BYTES + start.header_bytes} bytes of the file",
        )
    return _build(None, text, file_bytes)


def _refuse(file_name: str | None, findings: tuple[Finding, ...]) -> None:
    if findings:
        name = "the weights file" if file_name is None else quote_name(file_name)
        first = findings[0]
        raise AdapterRefused(
            f"{name} is refused: {first.title}: found {first.found}, expected {first.expected}",
            findings=findings,
            hint=first.remedy,
        )


def _build(name: str | None, text: bytes, file_bytes: int) -> Header:
    parsed = _parse_text(text)
    _refuse(name, examine(parsed))
    data_start = LENGTH_BYTES + len(text)
    entries = _read_entries(parsed.value, file_bytes - data_start)
    _refuse(name, examine(entries))
    tensors = sorted(
        (_entry(tensor, value, data_start) for tensor, value in entries.declared.items()),
        key=attrgetter("begin", "end", "name"),
    )
    _refuse(name, examine(TensorLayout(tuple(tensors), data_start, entries.data_bytes)))
    return Header(tuple(tensors), entries.metadata or {}, text.decode("utf-8"), data_start, file_bytes)


def _parse_text(text: bytes) -> HeaderText:
    try:
        return HeaderText(text, value=load_json(text, what="header", max_bytes=len(text)))
    except InvalidDocument as error:
        return HeaderText(text, problem=error.message)


def _read_entries(value: dict[str, Any], data_bytes: int) -> HeaderEntries:
    declared = {name: entry for name, entry in value.items() if name != METADATA}
    problems = {}
    for name, entry in declared.items():
        if problem := _describe_problem(entry):
            problems[name] = problem
    return HeaderEntries(declared, value.get(METADATA), data_bytes, problems)


def _describe_problem(entry: Any) -> str | None:
    """Return what is wrong with an entry; None if nothing is."""
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        return "an entry without exactly `dtype`, `shape` and `data_offsets`"
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPE_BITS:
        return "an unknown dtype"
    if not _are_sizes(entry["shape"]) or len(entry["shape"]) > MAX_DIMENSIONS:
        return "a shape that is not a list of sizes"
    if not _are_sizes(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
        return "offsets that are not a pair of positions"
    return None


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_size, value))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE


def _entry(name: str, value: dict[str, Any], data_start: int) -> TensorEntry:
    begin, end = value["data_offsets"]
    return TensorEntry(name, value["dtype"], tuple(value["shape"]), begin + data_start, end + data_start)
