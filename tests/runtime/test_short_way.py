"""The short way of few tokens and fixed routings: the same results as the general way, and nothing kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel
from torch import Tensor, nn

from meteora_registry.runtime import MeteoraLayer, force_adapter, route_as, routing, uniform
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_adapter, tiny_llama

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

MODES: dict[str, Callable[[nn.Module], AbstractContextManager[Any]]] = {
    "forced": lambda model: force_adapter(model, "two"),
    "uniform": uniform,
    **{
        scope: lambda model, scope=scope: route_as(model, scope=scope, top_k=2)
        for scope in ("token", "layer", "prompt", "prompt+token", "segment")
    },
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    members = {
        name: make_adapter(tiny_llama, folder / name, seed=seed, r=4, target_modules=["q_proj", "down_proj"])
        for seed, name in enumerate(("one", "two", "three"))
    }
    return write_bundle(folder / "bundle", members)


@pytest.fixture
def model(bundle: Path) -> PeftModel:
    return PeftModel.from_pretrained(tiny_llama(), bundle).eval()


def layers(model: nn.Module) -> list[MeteoraLayer]:
    return [layer for layer in model.modules() if isinstance(layer, MeteoraLayer)]


@contextmanager
def the_general_way(model: nn.Module) -> Iterator[None]:
    """Let hooks be on the base layers: they may keep an output, so nothing is added to it in place."""
    handles = [layer.base_layer.register_forward_hook(lambda *_: None) for layer in layers(model)]
    yield
    for handle in handles:
        handle.remove()


def answer(model: Any, batch: int) -> Tensor:
    ids = torch.arange(3, 3 + 6 * batch).view(batch, 6)
    with torch.no_grad():
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return torch.stack(found.logits)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_answers_are_those_of_the_general_way(
    bundle: Path, dtype: torch.dtype, mode: Callable[[nn.Module], AbstractContextManager[Any]], batch: int
) -> None:
    # Where members share alike, or decisions differ between the sequences, the way is the general one.
    model = PeftModel.from_pretrained(tiny_llama().to(dtype), bundle).eval()
    with mode(model):
        short = answer(model, batch)
        is_short = any(layer.meteora_bindings for layer in layers(model))
        assert is_short or mode is uniform or batch > 1
        with the_general_way(model):
            general = answer(model, batch)
    torch.testing.assert_close(short, general, rtol=1e-4, atol=1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_record_is_that_of_the_general_way(
    model: PeftModel, mode: Callable[[nn.Module], AbstractContextManager[Any]]
) -> None:
    records = []
    for way in (lambda _: mode(model), the_general_way):
        with mode(model), way(model), routing(model) as record:
            answer(model, 1)
        records.append(record)
    short, general = (record.modules for record in records)
    assert short.keys() == general.keys()
    for path, expected in general.items():
        assert torch.equal(short[path].selection, expected.selection), path
        torch.testing.assert_close(short[path].weights, expected.weights)


def test_gate_is_bound_once_for_equal_rules_and_again_for_others(model: PeftModel) -> None:
    layer = layers(model)[0]
    bound = []
    for top_k, temperature in ((2, 1.0), (2, 1.0), (1, 1.0), (1, 0.5)):
        with route_as(model, scope="token", top_k=top_k, temperature=temperature):
            answer(model, 1)
        bound.append(layer.meteora_bound_gates["default"])
    assert bound[0] is bound[1]
    assert [(gate.top_k, gate.temperature) for gate in bound[1:]] == [(2, 1.0), (1, 1.0), (1, 0.5)]


def test_gate_whose_bias_was_replaced_is_bound_again(bundle: Path, tmp_path: Path) -> None:
    members = {name: bundle.parent / name for name in ("one", "two", "three")}
    biased = write_bundle(tmp_path / "bundle", members, gate_bias=True, top_k=1)
    model = PeftModel.from_pretrained(tiny_llama(), biased).eval()
    answer(model, 1)
    for layer in layers(model):
        bias = layer.meteora_gate_bias["default"]
        layer.meteora_gate_bias["default"] = nn.Parameter(bias.new_tensor([-1e4, 1e4, -1e4]))
    with routing(model) as record:
        answer(model, 1)
    assert all((found.selection == 1).all() for found in record.modules.values())


def test_output_of_a_float64_base_is_not_rounded(bundle: Path) -> None:
    model = PeftModel.from_pretrained(tiny_llama().double(), bundle).eval()
    layer = layers(model)[0]
    x = torch.randn(1, layer.in_features or 0, dtype=torch.float64)
    with torch.no_grad(), force_adapter(model, "one"):
        for factor in (layer.meteora_A, layer.meteora_B):
            factor["default"].zero_()
        assert torch.equal(layer(x), layer.base_layer(x))


def test_moved_model_keeps_no_old_tensors(model: PeftModel) -> None:
    with force_adapter(model, "one"):
        answer(model, 1)
        model.to("cpu")
        assert not any(layer.meteora_bindings or layer.meteora_bound_gates for layer in layers(model))


def test_removed_bundle_is_not_kept(model: PeftModel, bundle: Path) -> None:
    model.load_adapter(bundle, "other")
    model.set_adapter("other")
    answer(model, 1)
    model.set_adapter("default")
    model.delete_adapter("other")
    assert all("other" not in layer.meteora_bindings for layer in layers(model))
    assert all("other" not in layer.meteora_bound_gates for layer in layers(model))


def test_offloaded_tensors_are_not_kept(bundle: Path) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundle).eval()
    expected = answer(model, 1)
    offloaded = PeftModel.from_pretrained(tiny_llama(), bundle).eval()
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    torch.testing.assert_close(answer(offloaded, 1), expected)
    assert not any(layer.meteora_bindings or layer.meteora_bound_gates for layer in layers(offloaded))


def test_trained_factors_are_seen_at_once(model: PeftModel) -> None:
    with force_adapter(model, "one"):
        before = answer(model, 1)
        for layer in layers(model):
            layer.meteora_A["default"].data.mul_(2)
        after = answer(model, 1)
        with the_general_way(model):
            torch.testing.assert_close(after, answer(model, 1), rtol=1e-4, atol=1e-5)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("batch", [1, 3])
def test_head_gets_rows_of_its_own(model: PeftModel, batch: int) -> None:
    strides = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: strides.append((args[0].shape, args[0].stride())))
    answer(model, batch)
    handle.remove()
    assert len(strides) == 4
    assert all(stride == (tokens * hidden, hidden, 1) for (_, tokens, hidden), stride in strides)
