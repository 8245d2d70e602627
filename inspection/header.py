"""The header of a safetensors file, read without trusting one byte of it.

``read_header`` reads the first bytes and the header, never the data. Everything the format promises
is checked: a file that passes can be sliced by the offsets given here without looking back.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..schemas.document import load_json
from ..schemas.errors import AdapterRefused, InvalidDocument, SourceUnreadable
from ..schemas.finding import Finding
from .quotation import quote_name
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

__all__ = ["Header", "TensorEntry", "open_regular", "parse_header", "read_header"]


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds: ``tensors`` in the order of their bytes, offsets of the file.

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
    """The header of the file at ``path``; only its first bytes and its header are read.

    Raises:
        SourceUnreadable: it is missing, no regular file, or cannot be read.
        AdapterRefused: it is no safetensors file, or a damaged one; with all findings.
    """
    try:
        with open_regular(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            start = FileStart(file.read(START_BYTES), file_bytes)
            _refuse(path, examine(start))
            file.seek(LENGTH_BYTES)
            text = file.read(start.header_bytes)
    except OSError as error:
        if isinstance(error, SourceUnreadable):
            raise
        raise SourceUnreadable(f"{quote_name(str(path))} cannot be read: {error.strerror}") from error
    return _build(path, text, file_bytes)


def parse_header(data: bytes, file_bytes: int) -> Header:
    """The header of a file of ``file_bytes`` bytes that begins with ``data``.

    Raises:
        AdapterRefused: it is no safetensors file, a damaged one, or ``data`` ends within the header.
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


def open_regular(path: Path) -> BinaryIO:
    """A regular file opened for reading; a pipe or a device, which might block for ever, is not.

    Raises:
        SourceUnreadable: it is missing, something else than a file, or cannot be read.
    """
    try:
        # A pipe without a writer would block here but for O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceUnreadable(f"{quote_name(str(path))} cannot be read: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceUnreadable(f"{quote_name(str(path))} is no regular file")
    return os.fdopen(descriptor, "rb")


def _refuse(path: Path | None, findings: tuple[Finding, ...]) -> None:
    if findings:
        name = "the weights file" if path is None else quote_name(path.name)
        first = findings[0]
        raise AdapterRefused(
            f"{name} is refused: {first.title}: found {first.found}, expected {first.expected}",
            findings=findings,
            hint=first.remedy,
        )


def _build(path: Path | None, text: bytes, file_bytes: int) -> Header:
    parsed = _parse_text(text)
    _refuse(path, examine(parsed))
    data_start = LENGTH_BYTES + len(text)
    entries = _read_entries(parsed.value, file_bytes - data_start)
    _refuse(path, examine(entries))
    tensors = sorted(
        (_entry(name, value) for name, value in entries.declared.items()),
        key=lambda entry: (entry.begin, entry.end, entry.name),
    )
    _refuse(path, examine(TensorLayout(tuple(tensors), entries.data_bytes)))
    placed = tuple(
        TensorEntry(entry.name, entry.dtype, entry.shape, entry.begin + data_start, entry.end + data_start)
        for entry in tensors
    )
    return Header(placed, entries.metadata or {}, text.decode("utf-8"), data_start, file_bytes)


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
    """What keeps an entry from being one, or nothing."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "an entry without exactly `dtype`, `shape` and `data_offsets`"
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPE_BITS:
        return "an unknown dtype"
    if not _are_sizes(entry["shape"]) or len(entry["shape"]) > MAX_DIMENSIONS:
        return "a shape that is no list of sizes"
    if not _are_sizes(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
        return "offsets that are no pair of positions"
    return None


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_SIZE for item in value)


def _entry(name: str, value: dict[str, Any]) -> TensorEntry:
    begin, end = value["data_offsets"]
    return TensorEntry(name, value["dtype"], tuple(value["shape"]), begin, end)
