"""Ctrl-C at any call that changes the disk, and before there is a command at all."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support.faults import interrupt_at
from support.faults_scenes import Stage

# A sample of the calls, another one in each scene; a sweep takes every fourth.
STRIDE, SWEEP_STRIDE = 48, 4

# An interrupt may come while these are being deleted; the next command, or `doctor`, deletes them.
LEFT = ("home/blobs/incoming/", ".team.partial/")


def without_remarks(stderr: str) -> str:
    """Return the messages without what `doctor` announces and what is reported before the catalog closes."""
    remarks = re.compile(r"will: |note: |[\d.]+ (bytes|kB) set free\n")
    return "".join(line for line in stderr.splitlines(keepends=True) if not remarks.match(line))


def test_a_command_interrupted_at_any_call_says_so_and_can_be_given_again(
    stage: Stage, is_sweep: bool
) -> None:
    for number in stage.points(SWEEP_STRIDE if is_sweep else STRIDE):
        with stage.trial(number):
            outcome = stage.disturb(interrupt_at(number))
            assert (outcome.code, without_remarks(outcome.stderr)) == (130, "\nerror: interrupted\n")
            found = stage.check_nothing_is_half_done()
            new = set(found.strays).difference(stage.beginning.strays)
            assert all(stray.startswith(LEFT) for stray in new), new
            stage.check_it_can_be_finished()


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
