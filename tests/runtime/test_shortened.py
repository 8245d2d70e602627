"""Base models that stop after some of their layers: what is read in these is the same, and no other runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from meteora_registry.runtime.observation import evaluated
from meteora_registry.runtime.shortened import shortened
from support.models import some_tokens, tiny_gpt2, tiny_llama


def deep_llama() -> PreTrainedModel:
    return tiny_llama(layers=5, attention_dropout=0.5)


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], str, str]] = {
    "llama": (deep_llama, "model.layers", "self_attn.q_proj"),
    "gpt2": (lambda: tiny_gpt2(layers=5), "transformer.h", "mlp.c_fc"),
}


def read(run: nn.Module, owner: nn.Module, stack: str, module: str) -> tuple[Tensor, list[int]]:
    """Return the module's input while a model runs, and which of the owner's layers ran."""
    inputs: list[Tensor] = []
    ran: list[int] = []
    watched = owner.get_submodule(module)
    handles = [watched.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))]
    for place, layer in enumerate(owner.get_submodule(stack).children()):
        handles.append(layer.register_forward_hook(lambda *_, place=place: ran.append(place)))
    with torch.no_grad():
        run(input_ids=some_tokens(batch=2, length=6), use_cache=False)
    for handle in handles:
        handle.remove()
    (found,) = inputs
    return found, ran


@pytest.mark.parametrize("name", MODELS)
def test_input_is_that_of_the_whole_pass_and_later_layers_do_not_run(name: str) -> None:
    make, stack, kind = MODELS[name]
    model, path = make(), f"{stack}.2.{kind}"
    expected, everything = read(model, model, stack, path)
    found, ran = read(shortened(model, [f"{stack}.0.{kind}", path]), model, stack, path)
    assert found.equal(expected)
    assert (everything, ran) == ([0, 1, 2, 3, 4], [0, 1, 2])


def test_original_still_runs_every_layer() -> None:
    model = deep_llama()
    before = model(input_ids=some_tokens(batch=1, length=6)).logits
    shortened(model, ["model.layers.1.mlp.up_proj"])
    assert model(input_ids=some_tokens(batch=1, length=6)).logits.equal(before)


def test_model_in_training_is_shortened_without_dropout() -> None:
    model, path = deep_llama(), "model.layers.1.self_attn.q_proj"
    expected, _ = read(model, model, "model.layers", path)
    model.train()
    found, ran = [], []
    for place, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, place=place: ran.append(place))
    model.get_submodule(path).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    evaluated(shortened(model, [path]))(input_ids=some_tokens(batch=2, length=6), use_cache=False)
    assert found[0].equal(expected)
    assert ran == [0, 1]
    assert model.training


@pytest.mark.parametrize(
    "paths",
    [["model.layers.4.mlp.up_proj"], ["lm_head"], ["model.layers.1.mlp.up_proj", "lm_head"], []],
    ids=["last-layer", "no-layer", "behind-the-layers", "nothing"],
)
def test_what_has_to_run_to_its_end_is_not_shortened(paths: list[str]) -> None:
    model = deep_llama()
    assert shortened(model, paths) is model


def test_model_that_reads_its_layers_by_number_runs_them_all() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3)) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for place in range(len(self.layers)):
                x = self.layers[place](x)
            return x

    model, x = Counting(), torch.randn(2, 3)
    short = shortened(model, ["layers.1.0"])
    assert short is not model
    assert short(x).equal(model(x))


def test_model_in_evaluation_is_shortened_without_a_copy_of_its_layers() -> None:
    model = deep_llama()
    short = shortened(model, ["model.layers.1.self_attn.q_proj"])
    assert evaluated(short) is short
    layers = short.get_submodule("model.layers")
    assert [*layers.children()] == [*model.model.layers[:2]]
    assert (len(layers), layers[4]) == (5, model.model.layers[4])
