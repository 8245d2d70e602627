"""A bundle on its base without weights: what loading would refuse is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from meteora_registry.runtime.attachment import attach
from meteora_registry.runtime.base_modules import read_base
from meteora_registry.schemas.errors import BundleRefused
from meteora_registry.schemas.trained_on import TrainedOn
from support.members import fuse, read_member
from support.models import make_adapter, save_base, tiny_gpt2, tiny_llama, wide_llama

TARGETS = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attached")
    members = [
        read_member(make_adapter(tiny_llama, folder / name, seed=seed, **TARGETS))
        for seed, name in enumerate(("one", "two"), start=1)
    ]
    fuse(members, folder / "bundle")
    return folder / "bundle"


def test_bundle_is_attached_to_its_own_base(bundle: Path, tmp_path: Path) -> None:
    attach(bundle, read_base(save_base(tiny_llama(), tmp_path / "base")))


@pytest.mark.parametrize(
    ("make_base", "message"),
    [(wide_llama, "of the base is 64 -> 64"), (tiny_gpt2, "has no module `model.layers.0")],
    ids=["other shapes", "other modules"],
)
def test_bundle_of_another_base_is_refused(bundle: Path, make_base: object, message: str) -> None:
    with pytest.raises(BundleRefused, match=message):
        attach(bundle, read_base(make_base().config))  # type: ignore[operator]


def test_base_is_of_the_class_that_adapters_were_trained_on() -> None:
    config = tiny_llama().config
    assert type(read_base(config)).__name__ == "LlamaForCausalLM"
    assert type(read_base(config, TrainedOn(task_type="FEATURE_EXTRACTION"))).__name__ == "LlamaModel"
    assert type(read_base(config, TrainedOn("LlamaModel"))).__name__ == "LlamaModel"
    assert type(read_base(config, TrainedOn("OwnModel"))).__name__ == "LlamaModel"
    assert type(read_base(config, TrainedOn("GPT2LMHeadModel"))).__name__ == "LlamaForCausalLM"
