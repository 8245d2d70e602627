"""A training that is killed on the real base, and goes on from its checkpoint.

The same training is run twice into the same gates: once whole, and once killed with SIGKILL between two
checkpoints and begun again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

import meteora_registry as meteora
from benchmarks.pages import Row
from meteora_registry.runtime.training import TrainingOptions

from .fits import FORM

OPTIONS = TrainingOptions(start="zero", steps=12, batch_size=8, checkpoint_steps=4)
KILLED_AT = 7


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of a training: the fused bundle, the base, the data and the parts of its closed form."""

    fused: Path
    base: Path
    data: Path
    statistics: Path


def killed_row(folders: Folders, options: TrainingOptions, killed_at: int) -> Row:
    """Return how many steps the kill cost, and whether the gates are the same bit for bit.

    Args:
        folders: where its files are.
        options: of the training, without a checkpoint.
        killed_at: the process dies when this step is done.
    """
    with TemporaryDirectory(prefix="meteora-killed-") as scratch:
        kept = replace(options, checkpoint=Path(scratch) / "state")
        process = multiprocessing.get_context("spawn").Process(
            target=_train, args=(folders, kept, Path(scratch) / "killed", _Killer(killed_at))
        )
        process.start()
        process.join()
        steps = _Steps()
        _train(folders, kept, Path(scratch) / "resumed", steps)
        _train(folders, options, Path(scratch) / "whole", lambda *_: None)
        resumed, whole = (
            load_file(Path(scratch) / name / "adapter_model.safetensors") for name in ("resumed", "whole")
        )
    return {
        "kind": "killed",
        "exit_code": process.exitcode,
        "killed_at": killed_at,
        "resumed_at": steps.first,
        "settings": options.settings.model_dump(mode="json"),
        "checkpoint_steps": options.checkpoint_steps,
        "same_gates": resumed.keys() == whole.keys()
        and all(torch.equal(resumed[name], whole[name]) for name in whole),
    }


def _train(
    folders: Folders, options: TrainingOptions, folder: Path, progress: Callable[[str, int, int], None]
) -> None:
    with meteora.FusedBundle.open(folders.fused, base=folders.base) as bundle:
        # They spare each run the closed form, which is computed whatever the gates begin with.
        bundle.fit(
            folders.data, form=FORM, training=options, statistics=folders.statistics, progress=progress
        ).save(folder)


class _Killer:
    """A progress that kills its process with SIGKILL when a step of the training is done."""

    def __init__(self, step: int) -> None:
        self._step = step

    def __call__(self, name: str, done: int, total: int) -> None:
        if (name, done) == ("training", self._step):
            os.kill(os.getpid(), signal.SIGKILL)


class _Steps:
    """A progress that keeps how many steps were done when a training began or went on."""

    first = 0

    def __call__(self, name: str, done: int, total: int) -> None:
        if name == "training" and not self.first:
            self.first = done
