"""A file of lines that grows as work is done, and that a killed process leaves readable.

Each line is written at once and flushed, so a process that dies leaves at most one unfinished line at the
end, which the next one drops. One process at a time has the file.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..schemas.errors import SourceUnreadable, UsageError
from .writing import check_writable, confirm_name, flush_open, write_errors

# Of the whole file, whose lines are held in memory when it is opened.
MAX_LINES_BYTES = 1 << 30


class GrowingLines:
    """The open file: ``lines`` are those it had when it was opened."""

    def __init__(self, path: Path, descriptor: int, lines: tuple[bytes, ...]) -> None:
        self.path = path
        self.lines = lines
        self._descriptor = descriptor

    def append(self, line: bytes) -> None:
        """Write a line without its end, and have it on the disk.

        Raises:
            SourceUnreadable: the disk does not take it, or the file would be too large to be opened again.
        """
        rest = memoryview(line + b"\n")
        with write_errors(self.path):
            _check_size(self.path, os.fstat(self._descriptor).st_size + len(rest))
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            flush_open(self._descriptor)


@contextmanager
def growing_lines(path: Path, *, begins: bytes) -> Iterator[GrowingLines]:
    """Open a file of lines, or make an empty one, for this process alone within the block.

    Args:
        path: the file's place.
        begins: what the first line of such a file begins with; nothing else is opened, let alone cut.

    Raises:
        UsageError: another process has it, or it is another kind of file.
        SourceUnreadable: it is not a file, too large, or cannot be read or written.
    """
    check_writable(path)
    with write_errors(path):
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644
        )
    try:
        with write_errors(path):
            lines = _take(path, descriptor, begins)
            confirm_name(path)
        yield GrowingLines(path, descriptor, lines)
    finally:
        os.close(descriptor)


def _take(path: Path, descriptor: int, begins: bytes) -> tuple[bytes, ...]:
    """Lock an open file and return its lines, after its unfinished last one was dropped."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise SourceUnreadable(f"`{path}` is not a regular file", hint="name another one")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"another process is writing `{path}`", hint="wait for it, or name another file"
        ) from error
    _check_size(path, os.fstat(descriptor).st_size)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        data = file.read()
    if data[: len(begins)] != begins[: len(data)]:
        raise UsageError(
            f"`{path}` has other contents: it does not begin with `{begins.decode()}`",
            hint="name a new file, or one of an earlier run",
        )
    *lines, unfinished = data.split(b"\n")
    if unfinished:
        os.ftruncate(descriptor, len(data) - len(unfinished))
    return tuple(lines)


def _check_size(path: Path, size: int) -> None:
    if size > MAX_LINES_BYTES:
        raise SourceUnreadable(
            f"`{path}` has more than {MAX_LINES_BYTES} bytes, or would have with one line more",
            hint="name another file",
        )
