"""Ctrl-C before there is a command at all."""

from __future__ import annotations

import subprocess
import sys

import pytest

INTERRUPTED_WHILE_IMPORTING = """
import sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[2]:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
from meteora_registry.registry.cli.entry import main
main()
"""


@pytest.mark.parametrize("module", ["click", "sqlalchemy"], ids=["program", "command"])
def test_interrupt_during_an_import_shows_no_traceback(module: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_IMPORTING, "show", module],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    # click ends the line of a terminal that shows ^C.
    assert ended.stderr.removeprefix("\n") == "error: interrupted\n"
