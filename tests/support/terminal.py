"""A program on a terminal of its own, where commands ask, fold their tables and show progress."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from support.patience import PATIENCE_SECONDS
from support.warm import Popen

_LINES = 40


def run_in_terminal(
    arguments: Sequence[str | Path], *, environment: Mapping[str, str], columns: int, answer: bytes = b""
) -> tuple[int, str]:
    """Return the exit code of a program, and what it wrote to a terminal where ``answer`` was typed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
    # Where these are set, the terminal is not asked.
    environment = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")}
    process = Popen(arguments, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, answer)
    shown = b""
    # Reading a terminal whose other end is closed is an error on Linux, and the end elsewhere.
    with suppress(OSError):
        while data := os.read(ours, 1 << 16):
            shown += data
    os.close(ours)
    return process.wait(PATIENCE_SECONDS), shown.decode()
