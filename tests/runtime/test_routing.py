"""The output of a loaded bundle: each member forced against PEFT, the routing against float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from meteora_registry.kernels.gate_kinds import GATE_KINDS
from meteora_registry.kernels.reference import TOLERANCES, reference_routed_lora, relative_error
from meteora_registry.runtime import MeteoraLayer, force_adapter
from support.bundles import write_bundle
from support.gate_definitions import defined_logits
from support.models import (
    CORPUS,
    LLAMA_MEMBERS,
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_alone,
    logits_of,
    make_adapter,
    needs_corpus,
    some_tokens,
    tiny_gpt2,
    tiny_llama,
)

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

CORPUS_MEMBERS = {
    name: CORPUS / "weights" / f"parikshit-06__domain-skeleton-gpt2__adapters-{name}"
    for name in ("legal", "medical", "sports")
}


def assert_forced_members_are_the_adapters(
    model: nn.Module, make_base: Callable[[], nn.Module], members: dict[str, Path]
) -> None:
    base_model = make_base()
    base = logits_of(base_model)
    for name, adapter in members.items():
        alone = logits_alone(base_model, adapter, some_tokens())
        assert relative_error(base, alone) > 1e-3, "the adapter does nothing, so the test shows nothing"
        with force_adapter(model, name):
            assert relative_error(logits_of(model), alone) <= 1e-5, name


def test_forced_member_gives_the_logits_of_the_adapter_alone(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), write_bundle(tmp_path, adapters))
    assert_forced_members_are_the_adapters(model, tiny_llama, adapters)


def test_forced_member_gives_the_logits_of_the_adapter_alone_on_conv1d(tmp_path: Path) -> None:
    members = {
        name: make_adapter(
            tiny_gpt2, tmp_path / name, seed=rank, r=rank, target_modules=targets, fan_in_fan_out=True
        )
        for name, rank, targets in [("a", 4, ["c_attn", "c_proj", "c_fc"]), ("b", 8, ["c_attn"])]
    }
    model = PeftModel.from_pretrained(tiny_gpt2(), write_bundle(tmp_path / "bundle", members))
    assert_forced_members_are_the_adapters(model, tiny_gpt2, members)


@pytest.mark.corpus
@needs_corpus
def test_forced_member_gives_the_logits_of_the_real_adapter_alone(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, CORPUS_MEMBERS)
    base = tiny_gpt2(width=768, layers=12)
    model = PeftModel.from_pretrained(copy.deepcopy(base), bundle)
    assert len(model.peft_config["default"].bundle.target_modules) == 36
    assert_forced_members_are_the_adapters(model, lambda: base, CORPUS_MEMBERS)


@dataclass
class Capture:
    """The input and output of one layer in a real forward pass."""

    layer: MeteoraLayer
    x: Tensor
    out: Tensor


def capture_layers(model: nn.Module) -> Iterator[Capture]:
    captures: list[Capture] = []
    layers = [module for module in model.modules() if isinstance(module, MeteoraLayer)]
    handles = [
        layer.register_forward_hook(lambda layer, args, out: captures.append(Capture(layer, args[0], out)))
        for layer in layers
    ]
    logits_of(model)
    for handle in handles:
        handle.remove()
    assert len(captures) == len(layers) > 0
    yield from captures


def reference_output(capture: Capture) -> Tensor:
    """Return the layer's output with routing and experts in float64, from the definition."""
    layer, x = capture.layer, capture.x.double()
    plan, rule = layer.meteora_plans["default"], layer.meteora_routers["default"].rule
    bias = layer.meteora_gate_bias["default"] if plan.gate_bias else None
    logits = defined_logits(x, layer.meteora_gate["default"], bias, plan.gate_kind, plan.gate_eps)
    kept, selection = logits.sort(dim=-1, descending=True, stable=True)
    weights = torch.softmax(kept[..., : rule.top_k] / rule.temperature, dim=-1)
    A, Bt = layer.meteora_A["default"], layer.meteora_B["default"]
    delta = reference_routed_lora(
        capture.x.to(A.dtype),
        A,
        Bt,
        plan.layout.offsets,
        plan.layout.scalings,
        selection[..., : rule.top_k],
        weights,
    )
    return layer.base_layer(capture.x).double() + delta


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "autograd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("top_k", [1, 2])
def test_routed_output_equals_the_float64_reference(
    adapters: dict[str, Path], tmp_path: Path, top_k: int, dtype: torch.dtype, grad: bool
) -> None:
    bundle = write_bundle(tmp_path, adapters, top_k=top_k, temperature=0.7, dtype=dtype)
    model = PeftModel.from_pretrained(tiny_llama(dtype), bundle)
    for capture in capture_layers(model):
        with torch.set_grad_enabled(grad):
            out = capture.layer(capture.x)
        assert out.dtype == dtype
        assert torch.equal(out, capture.out) or grad
        assert relative_error(out, reference_output(capture)) <= TOLERANCES[dtype]


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("kind", GATE_KINDS)
def test_every_gate_kind_routes_as_the_float64_reference(
    adapters: dict[str, Path], tmp_path: Path, kind: str, bias: bool
) -> None:
    bundle = write_bundle(tmp_path, adapters, gate_kind=kind, gate_bias=bias)
    model = PeftModel.from_pretrained(tiny_llama(), bundle)
    for capture in capture_layers(model):
        assert relative_error(capture.out, reference_output(capture)) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bundle_of_float32_on_a_half_base_is_rounded_once(
    adapters: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    model = PeftModel.from_pretrained(tiny_llama(dtype), write_bundle(tmp_path, adapters))
    for capture in capture_layers(model):
        expected = reference_output(capture)
        ulp = torch.finfo(dtype).eps * expected.abs().clamp(min=torch.finfo(dtype).tiny)
        # Half an ulp of the sum, and a little for the fp32 product before it.
        assert bool(((capture.out.double() - expected).abs() <= 0.52 * ulp + 1e-6).all())


def test_member_that_does_not_touch_a_module_takes_part_with_rank_zero(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    members = list(LLAMA_MEMBERS)
    model = PeftModel.from_pretrained(tiny_llama(), write_bundle(tmp_path, adapters, top_k=1))
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    assert layer.meteora_plans["default"].layout.ranks == (0, 8, 0, 0, 0)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    gate = layer.meteora_gate["default"]
    with torch.no_grad():
        gate.zero_()
        gate[members.index("rslora16")] = x[0] * 100
        out = layer(x)
    routing = layer.gate_of("default", layer.meteora_routers["default"].rule).route(x)
    assert routing.selection[0].item() == members.index("rslora16")
    assert torch.equal(out[0], layer.base_layer(x)[0])


def test_mixed_batch_gives_each_sequence_what_it_gets_alone(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), write_bundle(tmp_path, adapters))
    tokens = some_tokens(batch=4)
    with torch.no_grad():
        together = model(tokens).logits
        alone = torch.cat([model(row[None]).logits for row in tokens])
    assert relative_error(together, alone) <= 1e-5


@pytest.mark.parametrize("top_k", [1, 2])
def test_generate_with_a_cache_is_generate_without(
    adapters: dict[str, Path], tmp_path: Path, top_k: int
) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), write_bundle(tmp_path, adapters, top_k=top_k))
    prompt = some_tokens(batch=2, length=5)
    options = {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
    }
    cached = model.generate(**options, use_cache=True)
    assert cached.shape == (2, 13)
    assert torch.equal(cached, model.generate(**options, use_cache=False))
    with model.disable_adapter():
        assert not torch.equal(cached, model.generate(**options))
