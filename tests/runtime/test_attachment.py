"""A bundle on its base without weights: what loading would refuse is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from peft import AutoPeftModel, AutoPeftModelForCausalLM, PeftModel

from meteora_registry import runtime
from meteora_registry.registry import fused as registry
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


def two_adapters(folder: Path, **options: Any) -> list[Path]:
    values = {"base": "org/base", **TARGETS, **options}
    return [
        make_adapter(tiny_llama, folder / name, seed=seed, **values)
        for seed, name in enumerate(("one", "two"), start=1)
    ]


def test_record_of_a_fuse_states_whether_the_bundle_was_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    adapters = two_adapters(tmp_path)
    with registry.fuse(adapters) as fused:
        assert "not attached to its base" in fused.record.notes[-1]
    with registry.fuse(adapters, base_folder=save_base(tiny_llama(), tmp_path / "base")) as fused:
        assert fused.record.notes[-1] == "attached to its base, a `LlamaForCausalLM` without weights"


def test_base_in_the_hubs_cache_is_attached_to_and_leaves_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--org--base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("3f1c9ab0" * 5)
    save_base(tiny_llama(), repository / "snapshots" / ("3f1c9ab0" * 5))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with registry.fuse(two_adapters(tmp_path)) as fused:
        assert fused.record.notes[-1] == "attached to its base, a `LlamaForCausalLM` without weights"
        written = [(fused.folder / name).read_text() for name in ("adapter_config.json", "README.md")]
    assert all("org/base" in text for text in written)
    assert not any(str(tmp_path) in text for text in written)


@pytest.mark.filterwarnings("ignore::meteora_registry.runtime.GateNotFittedWarning")
@pytest.mark.parametrize("load", [AutoPeftModel, AutoPeftModelForCausalLM], ids=lambda each: each.__name__)
def test_bundle_of_members_without_a_task_loads_by_every_class_of_peft(tmp_path: Path, load: Any) -> None:
    runtime.register()
    base = str(save_base(tiny_llama(), tmp_path / "base"))
    with registry.fuse(two_adapters(tmp_path, base=base, task_type=None), base=base) as fused:
        model = load.from_pretrained(fused.folder)
    assert type(model.get_base_model()).__name__ == "LlamaForCausalLM"


@pytest.mark.filterwarnings("ignore::meteora_registry.runtime.GateNotFittedWarning")
@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("org/other", True),
        ("/hub/models--org--other/snapshots/" + "0a" * 20, True),
        ("ORG/bundle-base", False),
        ("/hub/models--org--bundle-base/snapshots/" + "0a" * 20, False),
        ("/models/anything", False),
        ("", False),
    ],
    ids=["another", "another in a cache", "another case", "in a cache", "path", "none"],
)
def test_load_on_a_base_of_another_name_warns(tmp_path: Path, name: str, warned: bool) -> None:
    base = tiny_llama()
    base.name_or_path = name
    with (
        registry.fuse(two_adapters(tmp_path, base="org/bundle-base")) as fused,
        warnings.catch_warnings(record=True) as seen,
    ):
        warnings.simplefilter("always")
        PeftModel.from_pretrained(base, fused.folder)
    expected = f"the base is `{name}`, and the bundle was fused for `org/bundle-base`"
    assert (expected in [str(each.message) for each in seen]) is warned
