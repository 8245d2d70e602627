"""A command that ends at any call that changes the disk: killed, interrupted, or by a disk that gives out."""

from __future__ import annotations

import errno
import re
import signal

import pytest

from support.faults import Outcome, fail_from, interrupt_at, kill_at
from support.faults_scenes import Stage

# A sample of the calls, another one in each scene; a sweep kills at each, the rest is at every fourth.
KILL_STRIDE, STRIDE, SWEEP_STRIDE = 48, 96, 4

# An interrupt may come while these are being deleted; the next command, or `doctor`, deletes them.
LEFT = ("home/blobs/incoming/", ".team.partial/")

GROWING = frozenset({"write", "pwrite64", "openat", "mkdir", "ftruncate", "sendfile", "copy_file_range"})
SYNCING = frozenset({"fsync", "fdatasync"})
ONE_MESSAGE = re.compile(r"error: [^\n]+\nhint: [^\n]+\n")


def without_remarks(stderr: str) -> str:
    """Return the messages without what `doctor` announces and what is reported before the catalog closes."""
    remarks = re.compile(r"will: |note: |[\d.]+ (bytes|kB) set free\n")
    return "".join(line for line in stderr.splitlines(keepends=True) if not remarks.match(line))


def check_it_is_said(outcome: Outcome) -> None:
    """Check that there is one message of ours, with a way out."""
    assert outcome.code == 2, outcome
    assert ONE_MESSAGE.fullmatch(outcome.stderr), outcome.stderr
    assert "defect" not in outcome.stderr


def test_a_command_killed_at_any_call_leaves_nothing_half_done_and_can_be_given_again(
    stage: Stage, is_sweep: bool
) -> None:
    for number in stage.points(1 if is_sweep else KILL_STRIDE):
        with stage.trial(number):
            assert stage.disturb(kill_at(number)).code == -signal.SIGKILL
            stage.check_nothing_is_half_done()
            stage.check_it_can_be_finished(mending_first=number % 2 == 0)


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
