"""The choice of the gates that segments are decided by, on texts that the fit did not read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PretrainedConfig

from meteora_registry.runtime.fitting import (
    ChosenEvidence,
    FitOptions,
    FittedGates,
    fit_gates,
    read_task_data,
)
from meteora_registry.runtime.fitting.evidence import candidate_gates, choose_evidence
from meteora_registry.runtime.fitting.inputs import ModuleInput, run, watched
from meteora_registry.runtime.fitting.sequences import Batch
from meteora_registry.schemas.bundle import BundleConfig
from support.bundles import make_config
from support.models import tiny_llama
from support.task_data import tiny_tokenizer, write_task_data

NAMES = ("legal", "medical", "sports")
LAYERS = 8
PATHS = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(LAYERS)]


def texts() -> list[Batch]:
    """Return a text of words of two members, one after the other, and one the other way round."""
    ids = torch.tensor([[10] * 6 + [40] * 6, [40] * 6 + [10] * 6])
    return [Batch(ids, torch.ones_like(ids), (ids == 40).long())]


def gates_for(*scales: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Return a gate for each layer that chooses by the nearest mean of the two words' inputs.

    Its logits are multiplied by the layer's scale: below 0 it mistakes one word for the other.
    """
    base, (batch,) = tiny_llama(layers=LAYERS), texts()
    found = {}

    def read(path: str, x: Tensor) -> None:
        means = torch.stack([x[batch.labels == label].mean(dim=0) for label in (0, 1)])
        scale = scales[PATHS.index(path)]
        found[path] = scale * means, -scale * means.square().sum(dim=1) / 2

    with watched(base, PATHS, read):
        run(base, PATHS, batch.ids)
    return found


def choose(gates: dict[str, tuple[Tensor, Tensor]], batches: list[Batch]) -> ChosenEvidence:
    base = tiny_llama(layers=LAYERS)
    return choose_evidence(base, gates, PATHS[1:], batches, kind="linear", eps=1e-6)


def test_gates_that_decide_rightly_are_chosen_and_the_earliest_of_them() -> None:
    found = choose(gates_for(*[1.0] * LAYERS), texts())
    assert (found.modules, found.tokens) == (tuple(PATHS[1:6]), 48)
    assert found.right == found.right_by_all > 40


def test_later_gates_are_chosen_where_early_ones_are_wrong() -> None:
    found = choose(gates_for(*[-1.0] * (LAYERS - 1), 20.0), texts())
    assert found.modules is not None
    assert found.modules[-1] == PATHS[-1]
    assert found.right > 40


def test_candidate_is_the_last_input_of_a_layer_as_wide_as_its_first() -> None:
    kinds = (("attn.q", 32), ("attn.o", 32), ("mlp.up", 32), ("mlp.down", 48))
    inputs = [
        ModuleInput((f"model.layers.{layer}.{kind}",), size) for layer in range(4) for kind, size in kinds
    ]
    config = PretrainedConfig(num_hidden_layers=4)
    assert candidate_gates(inputs, config) == ["model.layers.1.mlp.up"]
    assert candidate_gates(inputs[:1], config) == ["model.layers.0.attn.q"]


def test_all_gates_are_read_where_no_choice_is_nearly_as_good() -> None:
    found = choose(gates_for(20.0, *[-1.0] * (LAYERS - 1)), texts())
    assert (found.modules, found.right) == (None, found.right_by_all)
    assert found.right > 40


def test_no_text_tells_nothing_so_all_gates_are_read() -> None:
    found = choose(gates_for(*[1.0] * LAYERS), [])
    assert (found.modules, found.tokens) == (None, 0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BundleConfig:
    return make_config(tmp_path_factory.mktemp("bundle"), NAMES, modules=["q_proj", "down_proj"])


def fit(config: BundleConfig, folder: Path, *, samples: int) -> FittedGates:
    data = read_task_data(
        write_task_data(folder, NAMES, samples=samples), NAMES, tokenizer=tiny_tokenizer(), context_tokens=64
    )
    return fit_gates(
        tiny_llama(), tiny_tokenizer(), config, data, options=FitOptions(concatenated=True, segments=True)
    )


def test_fit_for_segments_states_the_gates_in_the_config(config: BundleConfig, tmp_path: Path) -> None:
    gates = fit(config, tmp_path, samples=40)
    assert [data.samples for data in gates.fitting.data] == [32, 32, 32]
    assert gates.evidence is not None
    # Eight lines of each of three members, of ten tokens each, decided in two ways.
    assert gates.evidence.tokens == 480
    described = gates.describe("segment")
    assert described.evidence == gates.evidence.modules == ("model.layers.0.self_attn.q_proj",)
    assert gates.evidence.right >= gates.evidence.right_by_all - 2
    assert "gate-evidence" in described.features


def test_fit_on_too_few_samples_reads_all_gates(config: BundleConfig, tmp_path: Path) -> None:
    gates = fit(config, tmp_path, samples=4)
    assert gates.evidence is not None
    assert (gates.evidence.tokens, gates.describe("segment").evidence) == (0, None)


def test_statistics_of_all_samples_are_not_those_of_a_part() -> None:
    options = FitOptions(concatenated=True)
    assert not options.settings.holds_out
    assert replace(options, segments=True).settings.holds_out
