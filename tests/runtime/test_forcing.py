"""``force_adapter``: one member for every token, and everything as before afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from meteora_registry.runtime import force_adapter, routing
from meteora_registry.schemas.errors import UsageError
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, logits_of, make_adapter, tiny_llama

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forcing")
    members = {
        name: make_adapter(tiny_llama, folder / name, seed=seed, r=4, target_modules=["q_proj", "v_proj"])
        for seed, name in enumerate(("one", "two", "three"))
    }
    return write_bundle(folder / "bundle", members)


def in_peft(bundle: Path) -> nn.Module:
    return PeftModel.from_pretrained(tiny_llama(), bundle)


def in_transformers(bundle: Path) -> nn.Module:
    model = tiny_llama()
    model.load_adapter(bundle)
    return model


every_model = pytest.mark.parametrize(
    "load", [in_peft, in_transformers], ids=["PeftModel", "transformers-model"]
)
Load = Callable[[Path], nn.Module]


def forced_logits(model: nn.Module, name: str) -> Tensor:
    with force_adapter(model, name):
        return logits_of(model)


@every_model
def test_force_ends_with_its_block(bundle: Path, load: Load) -> None:
    model = load(bundle)
    routed = logits_of(model)
    assert not torch.equal(forced_logits(model, "one"), forced_logits(model, "two"))
    assert torch.equal(logits_of(model), routed)


@every_model
def test_nested_force_brings_back_the_outer_one(bundle: Path, load: Load) -> None:
    model = load(bundle)
    one, two = forced_logits(model, "one"), forced_logits(model, "two")
    with force_adapter(model, "one"):
        with force_adapter(model, "two"):
            assert torch.equal(logits_of(model), two)
        assert torch.equal(logits_of(model), one)


@every_model
def test_exception_in_the_block_ends_the_force(bundle: Path, load: Load) -> None:
    model = load(bundle)
    routed = logits_of(model)
    with pytest.raises(KeyError), force_adapter(model, "one"):
        raise KeyError
    assert torch.equal(logits_of(model), routed)


@every_model
def test_unknown_member_is_refused_and_changes_nothing(bundle: Path, load: Load) -> None:
    model = load(bundle)
    routed = logits_of(model)
    with pytest.raises(UsageError) as caught, force_adapter(model, "four"):
        pass
    assert str(caught.value) == "bundle `default` has no member `four`, it has `one`, `two`, `three`"
    assert torch.equal(logits_of(model), routed)


def test_model_without_a_bundle_is_refused() -> None:
    with pytest.raises(UsageError) as caught, force_adapter(tiny_llama(), "one"):
        pass
    assert str(caught.value) == "the model has no active bundle"


def test_forced_member_serves_every_token_of_every_module(bundle: Path) -> None:
    model = in_peft(bundle)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    x = torch.zeros(2, 3, 32)
    with force_adapter(model, "three"), routing(model) as record:
        layer(x)
    found = record.modules["model.layers.0.self_attn.q_proj"]
    assert torch.equal(found.selection, torch.full((1, 6, 1), 2))
    assert torch.equal(found.weights, torch.ones(1, 6, 1))


def test_force_does_nothing_while_adapters_are_disabled(bundle: Path) -> None:
    model = in_peft(bundle)
    with force_adapter(model, "one"), model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(tiny_llama()))


@every_model
def test_model_with_hooks_is_not_walked_for_its_bundles(
    load: Load, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(bundle)
    # A part of the model has no hooks, so its layers are looked for.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with force_adapter(base.get_submodule("model"), "two"):
        expected = logits_of(model)

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("every module of the model was looked at")

    monkeypatch.setattr(nn.Module, "modules", refuse)
    assert forced_logits(model, "two").equal(expected)
