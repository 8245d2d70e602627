"""Modules that take the routing of another: as if each had a copy of its gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import routing
from meteora_registry.schemas.errors import BundleRefused, UsageError
from support.bundles import write_bundle
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_of,
    some_tokens,
    tiny_llama,
)

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

PREFIX = "base_model.model."
SOURCES = {
    f"model.layers.{layer}.{path}": f"model.layers.{layer}.{source}"
    for layer in (0, 1)
    for path, source in {
        "self_attn.k_proj": "self_attn.q_proj",
        "self_attn.v_proj": "self_attn.q_proj",
        "mlp.up_proj": "mlp.gate_proj",
    }.items()
}


@pytest.fixture(scope="module")
def shared(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    return write_bundle(folder, adapters, gate_bias=True, sources=SOURCES)


@pytest.fixture(scope="module")
def copied(shared: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with every gate written out."""
    folder = write_bundle(tmp_path_factory.mktemp("copied"), adapters, gate_bias=True)
    tensors = load_file(shared / "adapter_model.safetensors")
    for path, source in SOURCES.items():
        for tensor in ("meteora_gate", "meteora_gate_bias"):
            tensors[f"{PREFIX}{path}.{tensor}"] = tensors[f"{PREFIX}{source}.{tensor}"].clone()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"meteora_format": "1"})
    return folder


def loaded(bundle: Path, *, is_trainable: bool = False) -> PeftModel:
    return PeftModel.from_pretrained(tiny_llama(), bundle, is_trainable=is_trainable)


def test_module_with_a_source_routes_as_with_a_copy_of_its_gate(shared: Path, copied: Path) -> None:
    model, twin = loaded(shared), loaded(copied)
    assert not [name for name in model.state_dict() if "k_proj.meteora_gate" in name]
    assert torch.equal(logits_of(model), logits_of(twin))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    prompt = some_tokens(length=4)
    assert torch.equal(
        model.generate(input_ids=prompt, **options), twin.generate(input_ids=prompt, **options)
    )
    with torch.enable_grad():
        assert relative_error(model(some_tokens()).logits, twin(some_tokens()).logits) <= 1e-6


def test_record_names_the_modules_that_take_a_routing(shared: Path) -> None:
    model = loaded(shared)
    with routing(model) as record:
        logits_of(model)
    for path, source in SOURCES.items():
        assert torch.equal(record.modules[path].selection, record.modules[source].selection)
        assert torch.equal(record.modules[path].weights, record.modules[source].weights)


def gate_gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    tokens = some_tokens()
    model(input_ids=tokens, labels=tokens).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_of_a_shared_gate_is_the_sum_over_its_modules(shared: Path, copied: Path) -> None:
    found = gate_gradients(loaded(shared, is_trainable=True).train())
    apart = gate_gradients(loaded(copied, is_trainable=True).train())
    for layer in (0, 1):
        path = f"{PREFIX}model.layers.{layer}.self_attn"
        parts = [apart[f"{path}.{name}.meteora_gate.default"] for name in ("q_proj", "k_proj", "v_proj")]
        assert relative_error(found[f"{path}.q_proj.meteora_gate.default"], sum(parts)) <= 1e-5


def test_gradient_checkpointing_hands_the_recomputed_routing_on(shared: Path) -> None:
    model = loaded(shared, is_trainable=True).train()
    plain = gate_gradients(model)
    model.base_model.model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    checkpointed = gate_gradients(model)
    assert plain.keys() == checkpointed.keys()
    assert all(relative_error(checkpointed[name], plain[name]) <= 1e-5 for name in plain)


def test_routing_of_an_earlier_pass_is_never_taken(shared: Path) -> None:
    model = loaded(shared)
    logits_of(model)
    attention = "base_model.model.model.layers.0.self_attn"
    with pytest.raises(UsageError) as caught:
        model.get_submodule(f"{attention}.k_proj")(torch.zeros(1, 3, 32))
    assert str(caught.value) == (
        "`model.layers.0.self_attn.k_proj` takes its routing from `model.layers.0.self_attn.q_proj`, "
        "which decided nothing for it in this pass"
    )
    model.get_submodule(f"{attention}.q_proj")(torch.zeros(1, 4, 32))
    with pytest.raises(UsageError) as caught:
        model.get_submodule(f"{attention}.k_proj")(torch.zeros(1, 3, 32))
    assert str(caught.value) == (
        "`model.layers.0.self_attn.k_proj` was given tokens [1, 3], but its source "
        "`model.layers.0.self_attn.q_proj` decided for [1, 4]"
    )
    # What a broken pass left behind is gone with the next one.
    logits_of(model)
    with pytest.raises(UsageError, match="decided nothing for it in this pass"):
        model.get_submodule(f"{attention}.v_proj")(torch.zeros(1, 4, 32))


def test_gate_of_a_module_with_a_source_is_refused(shared: Path, tmp_path: Path) -> None:
    tensors = load_file(shared / "adapter_model.safetensors")
    name = f"{PREFIX}model.layers.0.self_attn.k_proj.meteora_gate"
    save_file(tensors | {name: torch.zeros(5, 32)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((shared / "adapter_config.json").read_bytes())
    with pytest.raises(BundleRefused, match=r"`model.layers.0.self_attn.k_proj.meteora_gate` is unexpected"):
        loaded(tmp_path)


def test_saved_bundle_keeps_its_sources(shared: Path, tmp_path: Path) -> None:
    model = loaded(shared)
    model.save_pretrained(tmp_path)
    saved, original = (json.loads((path / "adapter_config.json").read_text()) for path in (tmp_path, shared))
    assert saved["gate"] == original["gate"]
    assert saved["required_features"] == ["gate-sources"]
    assert torch.equal(logits_of(loaded(tmp_path)), logits_of(model))
