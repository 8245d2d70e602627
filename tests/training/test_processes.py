"""Training in two processes, whole and divided by FSDP, against one process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from safetensors.torch import load_file

from meteora_registry.kernels.reference import relative_error
from support import training_process, warm
from support.patience import PATIENCE_SECONDS
from support.program import PROGRAM
from support.task_data import make_fit_workplace

NAMES = ("rank4", "rank8", "rslora16")
SCRIPT = training_process.__file__
OPTIONS = ("steps=8", "batch_size=12", "learning_rate=0.01", "checkpoint_steps=3")
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and ``one``, whose gates one process trained."""
    folder = make_fit_workplace(tmp_path_factory.mktemp("workplace"), NAMES)
    for command in (
        ["add", *(f"adapters/{name}" for name in NAMES)],
        ["fuse", *NAMES, "--out", "bundle"],
    ):
        warm.run([PROGRAM, "--home", "home", *command], cwd=folder, check=True, capture_output=True)
    (printed,) = train(folder, "one", {})
    assert printed == "NO bundle@2 0\n"
    return folder


def train(folder: Path, out: str, *environments: dict[str, str]) -> list[str]:
    """Train in a process for each environment, which has everything imported; return what each printed."""
    command = [sys.executable, "-P", SCRIPT, str(folder), out, *OPTIONS]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with ExitStack() as stack:
        started = [
            stack.enter_context(warm.RuntimePopen(command, cwd=folder, env=os.environ | each, **streams))
            for each in environments
        ]
        # One whose partner ended waits for it, for as long as loading a base may take: a day.
        stack.callback(lambda: [process.kill() for process in started])
        found = [process.communicate(timeout=PATIENCE_SECONDS) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), found
    return [out for out, _ in found]


def divided(**environment: str) -> list[dict[str, str]]:
    """Return the environments that a launcher gives two processes, with FSDP."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"} for rank in ("0", "1")]
    return [FSDP | place | rank | environment for rank in ranks]


def same_gates(folder: Path, out: str) -> bool:
    one, other = (load_file(folder / each / "adapter_model.safetensors") for each in ("one", out))
    # Adam divides by the root of a mean of squares, so a rounding of a tiny gradient shows in the gate.
    return one.keys() == other.keys() and all(relative_error(other[name], one[name]) <= 1e-4 for name in one)


def test_two_processes_of_a_launcher_train_the_gates_of_one(workplace: Path) -> None:
    launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, SCRIPT, str(workplace), "whole", *OPTIONS]
    found = warm.run(command, cwd=workplace, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    check_two(workplace, "whole", "MULTI_CPU", found.stdout.splitlines())


# `accelerate launch` loads the base once by default; where each process loads it, FSDP ends a training below.
def test_two_processes_divide_a_base_that_is_loaded_once(workplace: Path) -> None:
    found = train(workplace, "divided", *divided(FSDP_CPU_RAM_EFFICIENT_LOADING="true"))
    check_two(workplace, "divided", "FSDP", [each.rstrip("\n") for each in found])


def check_two(folder: Path, out: str, kind: str, printed: list[str]) -> None:
    first, second = printed
    # Both processes get the version that the first one registered.
    assert first == second
    assert first.startswith(f"{kind} bundle@")
    assert same_gates(folder, out)


def test_two_processes_go_on_from_a_checkpoint(workplace: Path) -> None:
    # Begun whole and killed at the fourth step; ended by FSDP.
    command = [sys.executable, "-c", KILLED, SCRIPT, str(workplace), "both", *OPTIONS]
    with warm.RuntimePopen(command, cwd=workplace) as begun:
        assert begun.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    assert {line.split()[2] for line in train(workplace, "both", *divided())} == {"3"}
    assert same_gates(workplace, "both")


# The training's own steps are counted by transformers: the callback that keeps states kills the process.
KILLED = """
import os, runpy, signal, sys
from meteora_registry.runtime.training import trainer

class Killing(trainer._Keeper):
    def on_step_end(self, arguments, state, *rest, **named):
        super().on_step_end(arguments, state, *rest, **named)
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

trainer._Keeper = Killing
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
