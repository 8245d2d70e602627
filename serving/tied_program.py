"""A script that becomes another program, which the system ends when the process that started it ends.

    python tied_program.py PARENT PROGRAM ARGUMENT...

However a server ends, an engine that it started must not go on: it holds the memory of a whole model.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: str, program: str, *arguments: str) -> None:
    """Replace this process by the program, unless its parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == int(parent):
        os.execv(program, [program, *arguments])  # noqa: S606  # no shell is what is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
