"""Rules about the weights file as a file: its kind, and whether its header is consistent."""

from __future__ import annotations

from ...schemas.finding import Effect
from ...schemas.quotation import escape
from ..safetensors_file import (
    DTYPE_BITS,
    LENGTH_BYTES,
    LFS_START,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    FileStart,
    HeaderEntries,
    HeaderText,
    TensorLayout,
)
from .rule import WEIGHTS_FILE, Observation, Observations, rule

_HTML_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml")
_ZIP_START = b"PK\x03\x04"
# Every pickle protocol from 2 on begins so, with its number.
_PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_EXPORT_AGAIN = "export or download the file again and compare its size with the original's"
_DAMAGED = "loaders answer with a raw parser error, or read numbers that are not the tensor's"


def looks_like_html(first: bytes) -> bool:
    """Return whether a file begins as a web page does."""
    return first.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML_STARTS)


def _is_recognised(start: FileStart) -> bool:
    first = start.first
    named = first.startswith(LFS_START) or looks_like_html(first) or _is_pickle(first)
    return start.file_bytes == 0 or named


def _is_pickle(first: bytes) -> bool:
    # A header of 640 bytes begins with the bytes of a pickle too, but then its text follows.
    return first.startswith((_ZIP_START, *_PICKLE_STARTS)) and first[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{"


@rule(
    "MR201",
    FileStart,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="the weights themselves are not here; loaders answer `header too large`",
    remedy="run `git lfs install` and `git lfs pull` in the clone, or download the file from the Hub",
)
def weights_are_lfs_pointer(start: FileStart) -> Observations:
    """A git-lfs pointer is in place of the weights."""
    if start.first.startswith(LFS_START):
        yield Observation(f"a git-lfs pointer of {start.file_bytes} bytes", "a safetensors file")


@rule(
    "MR202",
    FileStart,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="a download that was answered with a login or error page; there are no weights in it",
    remedy="download the file again with `hf download`, logged in if the repository is private or gated",
)
def weights_are_web_page(start: FileStart) -> Observations:
    """A web page is in place of the weights."""
    if looks_like_html(start.first):
        yield Observation("an HTML page", "a safetensors file")


@rule(
    "MR203",
    FileStart,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="unpickling runs whatever code the file carries; it is never done here",
    remedy="load the adapter where you trust it and save it with `save_pretrained` (safetensors)",
)
def weights_are_pickle(start: FileStart) -> Observations:
    """A pickle or zip archive is named as safetensors."""
    if _is_pickle(start.first):
        yield Observation("the first bytes of a pickle or a zip archive", "a safetensors file")


@rule(
    "MR204",
    FileStart,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="there is nothing to load",
    remedy=_EXPORT_AGAIN,
)
def weights_are_empty(start: FileStart) -> Observations:
    """The weights file is empty."""
    if start.file_bytes == 0:
        yield Observation("0 bytes", "a safetensors file")


@rule(
    "MR205",
    FileStart,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="the length states how much to read before anything else is known of the file",
    remedy=_EXPORT_AGAIN,
)
def header_length_is_absurd(start: FileStart) -> Observations:
    """The declared length of the header cannot be right."""
    if _is_recognised(start):
        return
    if start.file_bytes < LENGTH_BYTES:
        yield Observation(f"a file of {start.file_bytes} bytes", f"at least {LENGTH_BYTES}")
    elif start.header_bytes > MAX_HEADER_BYTES:
        yield Observation(f"a header of {start.header_bytes} bytes", f"at most {MAX_HEADER_BYTES}")
    elif start.header_bytes + LENGTH_BYTES > start.file_bytes:
        yield Observation(
            f"a header of {start.header_bytes} bytes in a file of {start.file_bytes}",
            "a header that ends within the file",
        )
    elif start.header_bytes < 2:
        yield Observation(f"a header of {start.header_bytes} bytes", "at least the 2 of an empty object")


@rule("MR206", HeaderText, Effect.BROKEN, file=WEIGHTS_FILE, why=_DAMAGED, remedy=_EXPORT_AGAIN)
def header_is_no_json(header: HeaderText) -> Observations:
    """The header is not a JSON object with unique names."""
    if header.problem is not None:
        yield Observation(escape(header.problem, limit=300), "a JSON object in which each name is unique")
    elif not isinstance(header.value, dict):
        yield Observation(f"a JSON {type(header.value).__name__}", "a JSON object")
    elif not header.text.startswith(b"{"):
        yield Observation("other bytes before the opening brace", "a header that begins with `{`")


@rule(
    "MR211",
    HeaderText,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="no adapter has so many; looking at each of them would only cost time and memory",
    remedy=_EXPORT_AGAIN,
)
def tensors_are_too_many(header: HeaderText) -> Observations:
    """The header lists more tensors than any adapter has."""
    if isinstance(header.value, dict) and len(header.value) > MAX_TENSORS + 1:
        yield Observation(f"{len(header.value)} entries", f"at most {MAX_TENSORS} tensors")


@rule("MR207", HeaderEntries, Effect.BROKEN, file=WEIGHTS_FILE, why=_DAMAGED, remedy=_EXPORT_AGAIN)
def entry_is_malformed(header: HeaderEntries) -> Observations:
    """An entry of the header does not describe a tensor."""
    for name, problem in header.problems.items():
        yield Observation(problem, "dtype, shape and a pair of offsets", tensor=name)
    metadata = header.metadata
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        yield Observation("metadata that is not a map of strings", "a map of strings", field="__metadata__")


@rule("MR208", TensorLayout, Effect.BROKEN, file=WEIGHTS_FILE, why=_DAMAGED, remedy=_EXPORT_AGAIN)
def size_disagrees_with_shape(layout: TensorLayout) -> Observations:
    """A tensor's bytes do not fit its dtype and shape."""
    for tensor in layout.tensors:
        bits = tensor.elements * DTYPE_BITS[tensor.dtype]
        if bits != tensor.size_bytes * 8:
            yield Observation(
                f"{tensor.size_bytes} bytes for {tensor.dtype} {list(tensor.shape)}",
                f"{-(-bits // 8)} bytes",
                tensor=tensor.name,
            )


@rule(
    "MR209",
    TensorLayout,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="overlapping tensors share bytes and holes hide bytes: the values checked are not those loaded",
    remedy=_EXPORT_AGAIN,
)
def offsets_are_not_contiguous(layout: TensorLayout) -> Observations:
    """Tensors overlap or leave holes between them."""
    position = layout.data_start
    for tensor in layout.tensors:
        if tensor.begin != position:
            kind = "an overlap" if tensor.begin < position else "a hole"
            begin, expected = tensor.begin - layout.data_start, position - layout.data_start
            yield Observation(f"{kind}: the tensor begins at {begin}", f"byte {expected}", tensor=tensor.name)
        position = max(position, tensor.end)


@rule(
    "MR210",
    TensorLayout,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="part of the tensors is missing, or the file carries bytes that no tensor owns",
    remedy=_EXPORT_AGAIN,
)
def file_is_truncated_or_longer(layout: TensorLayout) -> Observations:
    """The file ends before its last tensor, or after it."""
    end = max((tensor.end - layout.data_start for tensor in layout.tensors), default=0)
    if end > layout.data_bytes:
        yield Observation(
            f"{layout.data_bytes} bytes of data, {end - layout.data_bytes} too few: truncated", f"{end} bytes"
        )
    elif end < layout.data_bytes:
        yield Observation(
            f"{layout.data_bytes} bytes of data, {layout.data_bytes - end} trailing", f"{end} bytes"
        )
