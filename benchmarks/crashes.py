"""Kill every command at every call that changes the disk, and at moments that a clock chooses.

What the suite samples, this does whole: each scene of ``tests/support/faults_scenes.py``, each of its
calls, one real kill -9 each; then as many random moments, each with a second kill while the same command
tries to finish. After each, the home is read with plain SQL, mended, and finished, and must come to what an
undisturbed run comes to. One row per scene; a failure is a row of its own, and the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .machine import description

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.faults import kill_at
from support.faults_scenes import SCENES, Stage

MEMORY = "/dev/shm"


def main(arguments: list[str]) -> None:
    """Run the trials and write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run crashes", description=__doc__)
    parser.add_argument("--out", type=Path, help="append the rows to this file; default: standard output")
    parser.add_argument("--scene", action="append", help="only this one; may be repeated")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th call")
    parser.add_argument("--offset", type=int, default=0, help="of the first call taken")
    parser.add_argument("--moments", type=int, default=200, help="random moments in all")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    options = parser.parse_args(arguments)
    scenes = [scene for scene in SCENES if not options.scene or scene.name in options.scene]
    machine = description("cpu")
    failed = False
    for position, scene in enumerate(scenes):
        moments = len(range(position, options.moments, len(scenes)))
        folder = MEMORY if os.access(MEMORY, os.W_OK) else None
        with tempfile.TemporaryDirectory(dir=folder) as place:
            stage = Stage(scene, Path(place))
            points = range(1 + options.offset, stage.calls + 1, options.stride)
            for row in (
                *sweep(stage, points),
                *strike(stage, moments, random.Random(f"{options.seed} {scene.name}")),
            ):
                failed = failed or "failure" in row
                write(row | machine, options.out)
    sys.exit(1 if failed else 0)


def sweep(stage: Stage, points: range) -> Iterator[dict[str, object]]:
    """Yield a trial at each of these calls; failures first, then the row of the scene."""
    began = time.monotonic()
    for number in points:
        try:
            with stage.trial(number):
                assert stage.disturb(kill_at(number)).code == -signal.SIGKILL
                stage.check_nothing_is_half_done()
                stage.check_it_can_be_finished(mending_first=number % 2 == 0)
        except AssertionError as error:
            yield {"subject": "crashes", "scene": stage.scene.name, "call": number, "failure": told(error)}
    yield {
        "subject": "crashes",
        "scene": stage.scene.name,
        "command": stage.scene.command,
        "fault": "kill -9 before the call",
        "calls": dict(Counter(stage.undisturbed.calls)),
        "calls_in_all": stage.calls,
        "first_call": points.start,
        "stride": points.step,
        "trials": len(points),
        "seconds": round(time.monotonic() - began, 1),
    }


def strike(stage: Stage, moments: int, chance: random.Random) -> Iterator[dict[str, object]]:
    """Yield trials in which the clock decides: the command is killed twice before it may finish."""
    stage.put_back()
    usual_seconds = stage.disturb(None).seconds
    began = time.monotonic()
    killed = 0
    for number in range(1, moments + 1):
        first, second = (chance.uniform(0.0, usual_seconds) for _ in range(2))
        try:
            with stage.trial(1):
                killed += stage.disturb_after(first).code == -signal.SIGKILL
                stage.check_nothing_is_half_done()
                killed += stage.disturb_after(second).code == -signal.SIGKILL
                stage.check_it_can_be_finished(mending_first=number % 2 == 0)
        except AssertionError as error:
            moment = {"first_seconds": first, "second_seconds": second}
            yield {"subject": "crashes", "scene": stage.scene.name, **moment, "failure": told(error)}
    yield {
        "subject": "crashes",
        "scene": stage.scene.name,
        "command": stage.scene.command,
        "fault": "kill -9 twice at random moments",
        "trials": moments,
        "kills_that_struck": killed,
        "seconds": round(time.monotonic() - began, 1),
    }


def told(error: AssertionError) -> str:
    """Return a failure in one line."""
    return " ".join([str(error), *getattr(error, "__notes__", [])])[:2000]


def write(row: dict[str, object], out: Path | None) -> None:
    """Print a row, or append it."""
    line = json.dumps(row)
    if out is None:
        print(line, flush=True)
        return
    with out.open("a") as file:
        file.write(line + "\n")
    print(f"{row['scene']}: {row.get('failure', row.get('trials'))}", file=sys.stderr)
