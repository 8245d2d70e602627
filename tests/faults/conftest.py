from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.faults_calls import why_unavailable
from support.faults_scenes import SCENES, Scene, Stage, run_in_this_process

# A process that dies takes nothing with it that it had handed to the kernel, whatever the disk is made of.
MEMORY = "/dev/shm"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lift the limit for a whole test where it is hundreds of trials, each of whose waits has its own."""
    if config.getoption("--faults") == "sweep":
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope="session")
def is_sweep(request: pytest.FixtureRequest) -> bool:
    """Whether kills come at every call, and the other faults at every fourth, in place of a sample."""
    return request.config.getoption("--faults") == "sweep"


@pytest.fixture(scope="module", params=SCENES, ids=[scene.name for scene in SCENES])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Each scene in turn."""
    if reason := why_unavailable():
        pytest.skip(reason)
    scene: Scene = request.param
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        yield Stage(scene, Path(folder), run_in_this_process)
