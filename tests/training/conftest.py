"""A bundle of three small adapters, its base and data, and its gates in closed form: made once, read only."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from meteora_registry.bundle import Bundle
from meteora_registry.files.progress import Progress, silent
from meteora_registry.runtime.fitting import FitOptions, FittedGates, TaskData, fit_gates, read_task_data
from meteora_registry.runtime.training import TrainingOptions
from meteora_registry.runtime.training.train import TrainedGates, train_gates
from support.members import fuse, read_members
from support.models import make_adapter, tiny_llama
from support.task_data import tiny_tokenizer, write_task_data

NAMES = ("legal", "medical", "sports")


@dataclass(frozen=True)
class Workplace:
    """The parts of a training; ``base`` is another at every call, since a training puts layers into it."""

    bundle: Bundle
    data: dict[str, TaskData]
    fitted: FittedGates

    @staticmethod
    def base() -> PreTrainedModel:
        return tiny_llama()

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tiny_tokenizer()

    def train(
        self, options: TrainingOptions, *, base: PreTrainedModel | None = None, progress: Progress = silent
    ) -> TrainedGates:
        return train_gates(
            base or self.base(),
            self.tokenizer,
            self.bundle,
            self.fitted,
            self.data,
            options=options,
            progress=progress,
        )


@pytest.fixture(scope="session")
def training_workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("training")
    modules = {"legal": ["q_proj", "v_proj"], "medical": ["q_proj", "down_proj"], "sports": ["q_proj"]}
    adapters = {
        name: make_adapter(
            tiny_llama, folder / name, seed=seed, base="org/base", r=4, target_modules=modules[name]
        )
        for seed, name in enumerate(NAMES)
    }
    bundle = Bundle.open(fuse(read_members(adapters), folder / "bundles" / "bundle"))
    data = read_task_data(
        write_task_data(folder / "data", NAMES), NAMES, tokenizer=tiny_tokenizer(), context_tokens=64
    )
    fitted = fit_gates(tiny_llama(), tiny_tokenizer(), bundle.config, data, options=FitOptions(skip_tokens=4))
    return Workplace(bundle, data, fitted)
