"""Training in every scope: recomputed layers, and decisions without dropout."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import GateNotFittedWarning, force_adapter, route_as, routing
from meteora_registry.schemas.errors import UsageError
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
from support.scopes import MAX_ERROR, SCOPES, loaded

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


def trained(bundle: Path) -> PeftModel:
    return PeftModel.from_pretrained(tiny_llama(), bundle, is_trainable=True).train()


def labelled(prompt_tokens: int) -> dict[str, Tensor]:
    labels = some_tokens().clone()
    labels[:, :prompt_tokens] = -100
    return {"input_ids": some_tokens(), "labels": labels}


@pytest.mark.parametrize("scope", SCOPES)
def test_arguments_that_a_trainer_adds_do_not_reach_the_plain_base(
    bundles: dict[str, Path], scope: str
) -> None:
    model = trained(bundles[scope])
    base = model.base_model.model
    plain, seen = base.forward, []

    def with_a_loss_of_its_own(*args: object, fused_loss: bool, **kwargs: object) -> object:
        seen.append(fused_loss)
        return plain(*args, **kwargs)

    expected = logits_of(model.eval(), some_tokens())
    base.forward = with_a_loss_of_its_own
    assert torch.equal(logits_of(model, some_tokens(), fused_loss=True), expected)
    assert seen == [True]


@pytest.mark.parametrize("scope", ["prompt", "segment"])
def test_plain_base_is_read_without_its_head(bundles: dict[str, Path], scope: str) -> None:
    model, calls = loaded(bundles[scope]), []
    head = model.base_model.model.lm_head
    head.register_forward_pre_hook(lambda *_: calls.append("head"))
    logits_of(model, some_tokens())
    assert calls == ["head"]


@pytest.mark.parametrize("scope", ["prompt", "prompt+token", "segment"])
def test_training_that_no_gate_takes_part_in_is_refused(bundles: dict[str, Path], scope: str) -> None:
    model = trained(bundles[scope])
    with pytest.raises(UsageError) as caught:
        model(input_ids=some_tokens())
    assert str(caught.value) == (
        f"the gates of bundle `default` cannot be trained here: the scope `{scope}` decides ahead, and that "
        "passes no gradient"
    )
    with force_adapter(model, "rank8"), pytest.raises(UsageError, match="here: a member is forced, and that"):
        model(input_ids=some_tokens())
    # Without gradients, and in evaluation, nothing is trained.
    logits_of(model, some_tokens())
    model.eval()(input_ids=some_tokens())


def test_gates_of_an_answer_are_trained_where_the_prompt_decides(bundles: dict[str, Path]) -> None:
    model = trained(bundles["prompt+token"])
    model(**labelled(4)).loss.backward()
    gates = [p for name, p in model.named_parameters() if "meteora_gate" in name]
    assert any(bool(gate.grad.any()) for gate in gates)


def test_gates_of_one_slot_are_warned_of(bundles: dict[str, Path]) -> None:
    model = trained(bundles["token"])
    with route_as(model, top_k=1), pytest.warns(UserWarning, match="the gates are trained with `top_k` 1"):
        model(**labelled(4)).loss.backward()
    gates = [p for name, p in model.named_parameters() if "meteora_gate" in name]
    assert gates
    assert not any(bool(gate.grad.any()) for gate in gates)


def test_gates_of_one_member_are_warned_of(adapters: dict[str, Path], tmp_path: Path) -> None:
    only = {"rank8": adapters["rank8"]}
    model = trained(write_bundle(tmp_path / "bundle", only, top_k=1))
    with pytest.warns(UserWarning, match="the gates of a bundle of one member are trained"):
        model(**labelled(4))


def fitted_in(folder: Path) -> object:
    return json.loads((folder / "adapter_config.json").read_text())["gate"]["fitted"]


def train_a_step(model: nn.Module) -> None:
    model(**labelled(4)).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()


def test_gates_are_saved_as_trained_only_after_a_step(bundles: dict[str, Path], tmp_path: Path) -> None:
    model = trained(bundles["token"])
    model(**labelled(4)).loss.backward()
    model.save_pretrained(tmp_path / "before", save_embedding_layers=False)
    assert fitted_in(tmp_path / "before") == fitted_in(bundles["token"])
    # A model in evaluation is trained as well by some loops.
    train_a_step(model.eval())
    model.save_pretrained(tmp_path / "after", save_embedding_layers=False)
    assert fitted_in(tmp_path / "after") == {"method": "trained", "data": []}
    config = json.loads((tmp_path / "after" / "adapter_config.json").read_text())
    assert config["required_features"] == ["gate-trained"]
    # Trained gates load without the warning of those that are not fitted.
    with warnings.catch_warnings():
        warnings.simplefilter("error", GateNotFittedWarning)
        again = loaded(tmp_path / "after")
    assert relative_error(logits_of(again), logits_of(model)) <= MAX_ERROR


def test_gates_of_a_checkpoint_that_training_goes_on_from_are_saved_as_trained(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    earlier = trained(bundles["token"])
    train_a_step(earlier)
    earlier.save_pretrained(tmp_path / "checkpoint", save_embedding_layers=False)
    model = trained(bundles["token"])
    model.load_adapter(tmp_path / "checkpoint", "default", is_trainable=True)
    model.save_pretrained(tmp_path / "resumed", save_embedding_layers=False)
    assert fitted_in(tmp_path / "resumed") == {"method": "trained", "data": []}
    # Training that was undone.
    model.load_adapter(bundles["token"], "default", is_trainable=True)
    model.save_pretrained(tmp_path / "undone", save_embedding_layers=False)
    assert fitted_in(tmp_path / "undone") == fitted_in(bundles["token"])


def test_gates_loaded_by_transformers_are_saved_as_trained_after_a_step(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_llama()
    model.load_adapter(bundles["token"], is_trainable=True)
    model.save_pretrained(tmp_path / "before")
    train_a_step(model.train())
    model.save_pretrained(tmp_path / "after")
    assert fitted_in(tmp_path / "before") == fitted_in(bundles["token"])
    assert fitted_in(tmp_path / "after") == {"method": "trained", "data": []}


def loaded_by_peft(folder: Path) -> nn.Module:
    return trained(folder)


def loaded_by_transformers(folder: Path) -> nn.Module:
    model = tiny_llama()
    model.load_adapter(folder, is_trainable=True)
    return model.train()


@pytest.mark.parametrize("load", [loaded_by_peft, loaded_by_transformers])
def test_trained_gates_name_the_bundle_by_its_manifest(
    bundles: dict[str, Path], tmp_path: Path, load: Callable[[Path], nn.Module]
) -> None:
    shutil.copytree(bundles["token"], tmp_path / "bundle")
    (tmp_path / "bundle" / "meteora_manifest.json").write_bytes(b"any")
    source = {"bundle": None, "manifest_sha256": hashlib.sha256(b"any").hexdigest()}
    # The second training goes on from what the first one saved, which has no manifest.
    for before, after in (("bundle", "first"), ("first", "second")):
        model = load(tmp_path / before)
        train_a_step(model)
        model.save_pretrained(tmp_path / after)
        expected = {"method": "trained", "data": [], "trained_from": source}
        assert fitted_in(tmp_path / after) == expected
