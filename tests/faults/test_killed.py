"""kill -9 between any two calls that change the disk."""

from __future__ import annotations

import signal

from support.faults import kill_at
from support.faults_scenes import Stage

# A sample of the calls, another one in each scene.
STRIDE = 24


def test_a_command_killed_at_any_call_leaves_nothing_half_done_and_can_be_given_again(
    stage: Stage, is_sweep: bool
) -> None:
    for number in stage.points(1 if is_sweep else STRIDE):
        with stage.trial(number):
            assert stage.disturb(kill_at(number)).code == -signal.SIGKILL
            stage.check_nothing_is_half_done()
            stage.check_it_can_be_finished(mending_first=number % 2 == 0)
