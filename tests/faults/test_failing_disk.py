"""A disk that is full, or fails, from any call on."""

from __future__ import annotations

import errno
import re

import pytest

from support.faults import Outcome, fail_from
from support.faults_scenes import Stage

# A sample of the calls, another one in each scene; a sweep takes every fourth.
STRIDE, SWEEP_STRIDE = 48, 4

GROWING = frozenset({"write", "pwrite64", "openat", "mkdir", "ftruncate", "sendfile", "copy_file_range"})
SYNCING = frozenset({"fsync", "fdatasync"})
ONE_MESSAGE = re.compile(r"error: [^\n]+\nhint: [^\n]+\n")


def check_it_is_said(outcome: Outcome) -> None:
    """Check that there is one message of ours, with a way out."""
    assert outcome.code == 2, outcome
    assert ONE_MESSAGE.fullmatch(outcome.stderr), outcome.stderr
    assert "defect" not in outcome.stderr


@pytest.mark.parametrize(
    ("error_number", "names"), [(errno.ENOSPC, GROWING), (errno.EIO, SYNCING)], ids=["full", "failing"]
)
def test_a_disk_that_gives_out_at_any_call_is_said_and_the_command_can_be_given_again(
    stage: Stage, is_sweep: bool, error_number: int, names: frozenset[str]
) -> None:
    for number in stage.points(SWEEP_STRIDE if is_sweep else STRIDE):
        with stage.trial(number):
            outcome = stage.disturb(fail_from(number, error_number, names))
            found = stage.check_nothing_is_half_done()
            assert set(found.strays) <= set(stage.beginning.strays)
            if outcome.code == 0:
                # It was committed; copying it from the log into the database can wait.
                assert found.tables == stage.expected.tables
            elif stage.scene.name == "doctor":
                # It goes on with the next problem, and has a message for each that it could not mend.
                assert outcome.code in (1, 2), outcome
                assert "defect" not in outcome.stderr
            else:
                check_it_is_said(outcome)
            stage.check_it_can_be_finished()
