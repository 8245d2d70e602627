"""The operations of PEFT and transformers on a model that has a bundle."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import MeteoraLayer, force_adapter
from support.bundles import write_bundle
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_of,
    make_llama_adapters,
    some_tokens,
    tiny_llama,
)

pytestmark = [
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    # PEFT's remarks on a second bundle and on the removal of the active one.
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:Adapter first was active which is now deleted:UserWarning"),
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two bundles of different members, targets, k and gate kinds."""
    folder = tmp_path_factory.mktemp("lifecycle")
    adapters = make_llama_adapters(folder)
    names = list(adapters)
    return {
        "first": write_bundle(folder / "first", {name: adapters[name] for name in names[:3]}),
        "second": write_bundle(
            folder / "second",
            {name: adapters[name] for name in names[2:]},
            top_k=1,
            gate_kind="absolute",
            gate_bias=True,
            seed=1,
        ),
    }


def alone(bundle: Path) -> Tensor:
    return logits_of(PeftModel.from_pretrained(tiny_llama(), bundle))


def with_both(bundles: dict[str, Path]) -> PeftModel:
    model = PeftModel.from_pretrained(tiny_llama(), bundles["first"], adapter_name="first")
    model.load_adapter(bundles["second"], adapter_name="second")
    return model


def test_two_bundles_on_one_model_do_not_disturb_each_other(bundles: dict[str, Path]) -> None:
    model = with_both(bundles)
    assert torch.equal(logits_of(model), alone(bundles["first"]))
    model.set_adapter("second")
    assert torch.equal(logits_of(model), alone(bundles["second"]))
    with force_adapter(model, "last-layer"):
        assert not torch.equal(logits_of(model), alone(bundles["second"]))
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(tiny_llama()))
    model.delete_adapter("first")
    assert torch.equal(logits_of(model), alone(bundles["second"]))
    assert not [name for name in model.state_dict() if "first" in name]


def test_two_bundles_on_a_transformers_model(bundles: dict[str, Path]) -> None:
    model = tiny_llama()
    for name, bundle in bundles.items():
        model.load_adapter(bundle, adapter_name=name)
        # To the last bits: transformers places tensors where another product sums in another order.
        assert relative_error(logits_of(model), alone(bundle)) <= 1e-6
    model.set_adapter("first")
    assert relative_error(logits_of(model), alone(bundles["first"])) <= 1e-6
    model.disable_adapters()
    assert torch.equal(logits_of(model), logits_of(tiny_llama()))
    model.enable_adapters()
    model.delete_adapter("first")
    assert relative_error(logits_of(model), alone(bundles["second"])) <= 1e-6


def test_each_of_two_bundles_is_saved_by_itself(bundles: dict[str, Path], tmp_path: Path) -> None:
    with_both(bundles).save_pretrained(tmp_path)
    for name, bundle in bundles.items():
        saved = load_file(tmp_path / name / "adapter_model.safetensors")
        original = load_file(bundle / "adapter_model.safetensors")
        assert saved.keys() == original.keys()
        assert all(torch.equal(saved[key], original[key]) for key in original)


def test_unload_gives_the_base_back(bundles: dict[str, Path]) -> None:
    base = with_both(bundles).unload()
    assert not [module for module in base.modules() if isinstance(module, MeteoraLayer)]
    assert base.state_dict().keys() == tiny_llama().state_dict().keys()
    assert torch.equal(logits_of(base), logits_of(tiny_llama()))


def pickled(model: nn.Module) -> nn.Module:
    twin: nn.Module = pickle.loads(pickle.dumps(model))
    return twin


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copy_is_a_model_of_its_own(
    bundles: dict[str, Path], duplicate: Callable[[nn.Module], nn.Module]
) -> None:
    model = tiny_llama()
    model.load_adapter(bundles["first"])
    twin = duplicate(model)
    before = logits_of(model)
    assert torch.equal(logits_of(twin), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(logits_of(model), before)


def gate_gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    tokens = some_tokens()
    model(input_ids=tokens, labels=tokens).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trainable(bundle: Path) -> PreTrainedModel:
    return PeftModel.from_pretrained(tiny_llama(), bundle, is_trainable=True).train()


def test_backward_reaches_every_gate_and_nothing_else(bundles: dict[str, Path]) -> None:
    model = trainable(bundles["first"])
    gradients = gate_gradients(model)
    assert gradients.keys() == {name for name, _ in model.named_parameters() if "meteora_gate." in name}
    assert all(bool(gradient.any()) for gradient in gradients.values())


def test_gate_gradient_is_the_slope_of_the_loss(bundles: dict[str, Path]) -> None:
    model = trainable(bundles["first"])
    name, gradient = next(iter(gate_gradients(model).items()))
    gate = dict(model.named_parameters())[name]
    direction = gradient / gradient.norm()
    tokens, step = some_tokens(), 1e-2
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            gate += sign * step * direction
            losses.append(model(input_ids=tokens, labels=tokens).loss)
            gate -= sign * step * direction
    assert float((losses[0] - losses[1]) / (2 * step)) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_gradient_checkpointing_gives_the_same_gradients(bundles: dict[str, Path]) -> None:
    model = trainable(bundles["first"])
    plain = gate_gradients(model)
    model.base_model.model.activation_checkpointing_enable()
    # The base is frozen, so that without this no gradient would reach a checkpointed layer.
    model.enable_input_require_grads()
    checkpointed = gate_gradients(model)
    assert plain.keys() == checkpointed.keys()
    assert all(relative_error(checkpointed[name], plain[name]) <= 1e-5 for name in plain)


def test_experts_train_when_they_are_told_to(bundles: dict[str, Path]) -> None:
    model = trainable(bundles["first"])
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer.meteora_B["default"].requires_grad_(True)
    assert any("meteora_B" in name for name in gate_gradients(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_near_the_full_precision(bundles: dict[str, Path], dtype: torch.dtype) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundles["first"])
    with torch.autocast("cpu", dtype=dtype), force_adapter(model, "rank4"):
        low = logits_of(model)
    with force_adapter(model, "rank4"):
        assert relative_error(low, logits_of(model)) < 0.1
