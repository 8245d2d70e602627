"""Training in every scope: recomputed layers, and decisions without dropout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import routing
from support.bundles import write_bundle
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_of,
    make_adapter,
    some_tokens,
    tiny_gpt2,
    tiny_llama,
)
from support.scopes import MAX_ERROR, SCOPES

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]


@pytest.mark.parametrize("scope", SCOPES)
def test_gradient_checkpointing_gives_the_same_gradients_in_every_scope(
    bundles: dict[str, Path], scope: str
) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundles[scope], is_trainable=True).train()
    plain = gradients(model)
    model.base_model.model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    checkpointed = gradients(model)
    assert plain.keys() == checkpointed.keys()
    assert all(relative_error(checkpointed[name], plain[name]) <= MAX_ERROR for name in plain)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "meteora_gate" in name or "meteora_B" in name
    model.zero_grad()
    tokens = some_tokens()
    labels = tokens.clone()
    labels[:, :4] = -100
    model(input_ids=tokens, labels=labels).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert any(bool(gradient.any()) for gradient in found.values())
    return found


def test_decision_of_a_request_in_training_is_without_dropout(tmp_path: Path) -> None:
    members = {
        name: make_adapter(
            tiny_gpt2, tmp_path / name, seed=rank, r=rank, fan_in_fan_out=True, target_modules=["c_attn"]
        )
        for name, rank in [("a", 4), ("b", 8)]
    }
    model = PeftModel.from_pretrained(
        tiny_gpt2(), write_bundle(tmp_path / "bundle", members, scope="prompt"), is_trainable=True
    )
    with routing(model) as record:
        logits_of(model.eval(), some_tokens())
        expected = record.decisions
        parts = [part.training for part in model.train().modules()]
        assert not torch.equal(logits_of(model, some_tokens()), logits_of(model, some_tokens()))
        assert record.decisions == expected
    assert [part.training for part in model.modules()] == parts
