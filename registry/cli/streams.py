"""The three standard streams, made safe to use before anything else runs.

A stream that the caller closed is opened again on ``/dev/null``: otherwise the next file that is opened, a
blob of the store for instance, would get its number, and whatever a library prints would go into that file.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

from ..secrets import hide_secrets

_STDIN, _STDOUT, _STDERR = 0, 1, 2


def prepare_streams() -> None:
    """Replace the standard streams of this process by ones that every command can rely on.

    A failed write to stdout is an ``OSError`` that names it, once; stderr never fails, and holds no secret.
    """
    # A reader of closed stdin meets its end, a writer to closed stdout an error, and stderr is lost.
    for descriptor, flags in ((_STDIN, os.O_RDONLY), (_STDOUT, os.O_RDONLY), (_STDERR, os.O_WRONLY)):
        _open_if_closed(descriptor, flags)
    if sys.stdin is None:
        sys.stdin = open(_STDIN, closefd=False)  # noqa: SIM115 - a descriptor, which stays open
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(_STDOUT, "stdout")),
        encoding=_encoding_of(sys.stdout),
        errors="backslashreplace",
        line_buffering=os.isatty(_STDOUT),
    )
    sys.stderr = _Messages(
        io.BufferedWriter(_Output(_STDERR, None)),
        encoding=_encoding_of(sys.stderr),
        errors="backslashreplace",
        line_buffering=True,
    )


class _Output(io.FileIO):
    """A descriptor that fails at most once, so that nothing is raised while the process ends.

    Args:
        descriptor: is written to, and never closed.
        name: how a failure is reported; None if it is not to be reported at all.
    """

    def __init__(self, descriptor: int, name: str | None) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._name = name
        self._failed = False

    def write(self, data: Any, /) -> int:
        """Write some of ``data``, or drop all of it after a failure."""
        if self._failed:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self._failed = True
            if self._name is None:
                return len(data)
            error.filename = self._name
            raise


class _Messages(io.TextIOWrapper):
    """Text for people, also that of libraries: warnings, logs, tracebacks."""

    def write(self, text: str, /) -> int:
        """Write ``text`` without what must not be shown."""
        return super().write(hide_secrets(text))


def _open_if_closed(descriptor: int, flags: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        opened = os.open(os.devnull, flags)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


def _encoding_of(stream: TextIO | None) -> str:
    return getattr(stream, "encoding", None) or "utf-8"
