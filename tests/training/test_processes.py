"""Training in two processes, whole and divided by FSDP, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from meteora_registry.kernels.reference import relative_error
from support import training_process
from support.program import PROGRAM
from support.task_data import make_fit_workplace

NAMES = ("rank4", "rank8", "rslora16")
OPTIONS = ("steps=8", "batch_size=4", "learning_rate=0.01", "checkpoint_steps=3")
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
        subprocess.run([PROGRAM, "--home", "home", *command], cwd=folder, check=True, capture_output=True)
    found = launch(folder, "one", processes=1)
    assert (found.returncode, found.stdout) == (0, "NO bundle@2 0\n"), found.stderr
    return folder


def launch(folder: Path, out: str, *, processes: int, **environment: str) -> subprocess.CompletedProcess[str]:
    script = [training_process.__file__, str(folder), out, *OPTIONS]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *script]
    return subprocess.run(
        command, env=os.environ | environment, cwd=folder, capture_output=True, text=True, check=False
    )


def same_gates(folder: Path, out: str) -> bool:
    one, other = (load_file(folder / each / "adapter_model.safetensors") for each in ("one", out))
    # Adam divides by the root of a mean of squares, so a rounding of a tiny gradient shows in the gate.
    return one.keys() == other.keys() and all(relative_error(other[name], one[name]) <= 1e-4 for name in one)


# `accelerate launch` loads the base once by default; where each process loads it, FSDP ends a training below.
@pytest.mark.parametrize(
    ("environment", "kind"),
    [({}, "MULTI_CPU"), (FSDP | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "FSDP")],
    ids=["whole", "fsdp-loaded-once"],
)
def test_two_processes_train_the_gates_of_one(
    workplace: Path, request: pytest.FixtureRequest, environment: dict[str, str], kind: str
) -> None:
    out = request.node.callspec.id
    found = launch(workplace, out, processes=2, **environment)
    assert found.returncode == 0, found.stderr
    first, second = found.stdout.splitlines()
    # Both processes get the version that the first one registered.
    assert first == second
    assert first.startswith(f"{kind} bundle@")
    assert same_gates(workplace, out)


def test_two_processes_go_on_from_a_checkpoint(workplace: Path) -> None:
    # Begun whole and killed at the fourth step; ended by FSDP.
    begun = subprocess.run(
        [sys.executable, "-c", KILLED, training_process.__file__, str(workplace), "both", *OPTIONS],
        capture_output=True,
        check=False,
    )
    assert begun.returncode == -9
    found = launch(workplace, "both", processes=2, **FSDP)
    assert found.returncode == 0, found.stderr
    assert {line.split()[2] for line in found.stdout.splitlines()} == {"3"}
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


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"FSDP_VERSION": "1"}, "gates are trained with FSDP of version 2, found version 1"),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            "gates are trained in float32, found FSDP with mixed precision `bf16`",
        ),
    ],
    ids=["version", "precision"],
)
def test_division_that_gates_cannot_be_trained_in_is_refused(
    workplace: Path, setting: dict[str, str], message: str
) -> None:
    found = launch(workplace, "refused", processes=2, **FSDP | setting)
    assert found.returncode != 0
    assert f"refused: {message}" in found.stderr
    assert not (workplace / "refused").exists()
