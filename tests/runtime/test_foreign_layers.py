"""Base layers other than ``nn.Linear``: quantised ones and any other, called and added to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from meteora_registry.kernels.reference import reference_routed_lora, relative_error
from meteora_registry.runtime import MeteoraLayer, force_adapter
from support.bundles import write_bundle
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_alone,
    make_adapter,
    some_tokens,
    tiny_llama,
)

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]


class Int8Linear(nn.Module):
    """A linear of int8 weights with a scale per row; it states no features and has no ``weight``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def dequantised(self) -> Tensor:
        return self.packed.to(self.scale.dtype) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantised())


class ViewLinear(nn.Module):
    """A layer that gives its input back, as a pruned or fused one may: adding in place would spoil it."""

    in_features = out_features = 32

    def forward(self, x: Tensor) -> Tensor:
        return x


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module], names: tuple[str, ...]) -> None:
    for path, module in list(model.named_modules()):
        if path.endswith(names):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, make(module))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("foreign")
    targets = ["q_proj", "o_proj"]
    return {
        name: make_adapter(tiny_llama, folder / name, seed=rank, r=rank, target_modules=targets)
        for name, rank in [("small", 4), ("large", 12)]
    }


def int8_llama() -> nn.Module:
    model = tiny_llama()
    replace_linears(model, Int8Linear, ("q_proj", "o_proj"))
    return model


def rounded_llama() -> nn.Module:
    """Return a plain Llama of the weights that ``int8_llama`` computes with."""
    model = tiny_llama()
    with torch.no_grad():
        for path, module in int8_llama().named_modules():
            if isinstance(module, Int8Linear):
                model.get_submodule(path).weight.copy_(module.dequantised())
    return model


@pytest.mark.parametrize("low_memory", [False, True], ids=["plain", "low-memory"])
def test_quantised_base_takes_its_features_from_the_bundle(
    adapters: dict[str, Path], tmp_path: Path, low_memory: bool
) -> None:
    bundle = write_bundle(tmp_path, adapters)
    model = PeftModel.from_pretrained(int8_llama(), bundle, low_cpu_mem_usage=low_memory)
    for name, adapter in adapters.items():
        with torch.no_grad(), force_adapter(model, name):
            found = model(some_tokens()).logits
        assert relative_error(found, logits_alone(rounded_llama(), adapter, some_tokens())) <= 1e-5
    unloaded = model.unload()
    assert isinstance(unloaded.get_submodule("model.layers.0.self_attn.q_proj"), Int8Linear)


def test_quantised_base_loads_through_transformers(adapters: dict[str, Path], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, adapters)
    model = int8_llama()
    model.load_adapter(bundle)
    expected = PeftModel.from_pretrained(int8_llama(), bundle)
    with torch.no_grad():
        assert torch.equal(model(some_tokens()).logits, expected(some_tokens()).logits)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_dynamically_quantised_base_of_torch(adapters: dict[str, Path], tmp_path: Path) -> None:
    model = torch.ao.quantization.quantize_dynamic(tiny_llama(), {nn.Linear}, dtype=torch.qint8)
    # Torch's own layer breaks every partial `load_state_dict`, and so PEFT's way of loading.
    model.load_adapter(write_bundle(tmp_path, adapters, top_k=1))
    layer = model.get_submodule("model.layers.0.self_attn.o_proj")
    assert type(layer.base_layer) is torch.ao.nn.quantized.dynamic.Linear
    with torch.no_grad():
        assert torch.isfinite(model(some_tokens()).logits).all()
    assert_layer_adds_the_member(layer, torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)))


def test_layer_that_returns_its_input_is_not_written_to(adapters: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_llama()
    replace_linears(base, lambda linear: ViewLinear(), ("o_proj",))
    model = PeftModel.from_pretrained(base, write_bundle(tmp_path, adapters))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.o_proj")
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    assert_layer_adds_the_member(layer, x)
    assert torch.equal(x, before)


def test_hook_on_the_base_layer_keeps_the_output_of_the_base(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), write_bundle(tmp_path, adapters))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.o_proj")
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    with torch.no_grad():
        expected = layer.base_layer(x)
        layer.base_layer.register_forward_hook(lambda module, args, out: seen.append(out))
        assert not torch.equal(layer(x), expected)
    assert torch.equal(seen[0], expected)


def assert_layer_adds_the_member(layer: MeteoraLayer, x: Tensor) -> None:
    plan, members = layer.meteora_plans["default"], layer.meteora_routers["default"].members
    with torch.no_grad(), force_adapter(layer, "large"):
        out, selection = layer(x), torch.full((*x.shape[:-1], 1), members.index("large"))
        delta = reference_routed_lora(
            x,
            layer.meteora_A["default"],
            layer.meteora_B["default"],
            plan.layout.offsets,
            plan.layout.scalings,
            selection,
            torch.ones(selection.shape),
        )
        assert relative_error(out, layer.base_layer(x).double() + delta) <= 1e-5
