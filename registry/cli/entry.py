"""The first thing that runs: Ctrl-C while the rest is being imported ends the program as it does later."""

from __future__ import annotations

import sys
from typing import NoReturn

_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    try:
        from .streams import prepare_streams

        prepare_streams()
        from .main import run

        code = run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        code = _INTERRUPTED
    sys.exit(code)
