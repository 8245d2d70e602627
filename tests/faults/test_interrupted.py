"""Ctrl-C at any call that changes the disk."""

from __future__ import annotations

from support.faults import interrupt_at
from support.faults_scenes import Stage

# An interrupt may come while these are being deleted; the next command, or `doctor`, deletes them.
LEFT = ("home/blobs/incoming/", ".team.partial/")


def test_a_command_interrupted_at_any_call_says_so_and_can_be_given_again(stage: Stage) -> None:
    for number in stage.points():
        with stage.trial(number):
            outcome = stage.disturb(interrupt_at(number))
            assert (outcome.code, outcome.stderr) == (130, "\nerror: interrupted\n")
            found = stage.check_nothing_is_half_done()
            assert all(stray.startswith(LEFT) for stray in found.strays), found.strays
            stage.check_it_can_be_finished()
