"""Bundles on bases whose weights are elsewhere: offloaded after the load, or before it by `device_map`."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import load_bundle
from meteora_registry.schemas.errors import BundleRefused
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, logits_of, tiny_llama
from support.scopes import MAX_ERROR, SCOPES, loaded
from support.task_data import save_text_base

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

CPU = torch.device("cpu")
PARTS = (
    "model.embed_tokens",
    "model.rotary_emb",
    "model.norm",
    "lm_head",
    "model.layers.0",
    "model.layers.1",
)
ON_DISK = dict.fromkeys(PARTS, "cpu") | {"model.layers.1": "disk"}
PREFIXED = {f"base_model.model.{part}": device for part, device in ON_DISK.items()}
LITTLE_MEMORY = {"cpu": 30_000}  # Bytes: a quarter of the tiny Llama.


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder where PEFT may write its copy of a base's file that is read from disk."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_base(tmp_path_factory.mktemp("base"))


def on_disk(base_folder: Path, placed: Any = ON_DISK, **options: Any) -> PreTrainedModel:
    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base_folder, device_map=placed, offload_folder="offloaded", offload_buffers=True, **options
    )
    assert any(parameter.is_meta for parameter in base.parameters())
    return base.eval()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "offload",
    [lambda model: cpu_offload(model, CPU), lambda model: disk_offload(model, "elsewhere", CPU)],
    ids=["cpu", "disk"],
)
def test_model_that_is_offloaded_answers_as_in_memory(
    bundles: dict[str, Path], scope: str, offload: Callable[[nn.Module], None]
) -> None:
    expected = logits_of(loaded(bundles[scope]).eval())
    model = loaded(bundles[scope]).eval()
    offload(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert relative_error(logits_of(model), expected) <= MAX_ERROR


def test_offloaded_model_keeps_no_tensors_of_earlier_calls(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["token"]).eval()
    logits_of(model)
    kept = [weakref.ref(p) for name, p in model.named_parameters() if "meteora" in name]
    disk_offload(model, "elsewhere", CPU)
    logits_of(model)
    gc.collect()
    assert kept
    assert not any(parameter() is not None for parameter in kept)


def test_offloaded_factors_in_half_precision_compute_in_float32(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "half", adapters, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(tiny_llama(), bundle).eval()
    expected = logits_of(model)
    cpu_offload(model, CPU)
    assert relative_error(logits_of(model), expected) <= MAX_ERROR


def test_bundle_loads_on_a_base_that_was_offloaded(bundles: dict[str, Path]) -> None:
    expected = logits_of(loaded(bundles["prompt"]))
    base = tiny_llama()
    cpu_offload(base, CPU)
    assert (
        relative_error(logits_of(PeftModel.from_pretrained(base, bundles["prompt"])), expected) <= MAX_ERROR
    )


@pytest.mark.parametrize("low_memory", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bundle_loads_beside_modules_on_disk(
    adapters: dict[str, Path], base_folder: Path, tmp_path: Path, dtype: torch.dtype, low_memory: bool
) -> None:
    bundle = write_bundle(tmp_path / "bundle", adapters, dtype=dtype)
    expected = logits_of(loaded(bundle))
    model = PeftModel.from_pretrained(
        on_disk(base_folder), bundle, device_map=PREFIXED, low_cpu_mem_usage=low_memory
    )
    assert relative_error(logits_of(model), expected) <= MAX_ERROR


@pytest.mark.parametrize("scope", SCOPES)
def test_bundle_loads_on_a_base_that_memory_is_too_little_for(
    bundles: dict[str, Path], base_folder: Path, scope: str
) -> None:
    expected = logits_of(loaded(bundles[scope]))
    base = on_disk(base_folder, "auto", max_memory=LITTLE_MEMORY)
    model = PeftModel.from_pretrained(
        base, bundles[scope], device_map="auto", max_memory=LITTLE_MEMORY, offload_dir="offloaded"
    )
    assert relative_error(logits_of(model), expected) <= MAX_ERROR


def test_second_bundle_loads_beside_modules_on_disk(bundles: dict[str, Path], base_folder: Path) -> None:
    model = PeftModel.from_pretrained(on_disk(base_folder), bundles["token"], device_map=PREFIXED)
    model.load_adapter(bundles["prompt"], "second")
    for name, scope in (("second", "prompt"), ("default", "token")):
        model.set_adapter(name)
        assert relative_error(logits_of(model), logits_of(loaded(bundles[scope]))) <= MAX_ERROR


def test_load_bundle_leaves_a_base_where_it_is(bundles: dict[str, Path], base_folder: Path) -> None:
    expected = load_bundle(bundles["prompt"], base_folder).generate(["w5 w7 w9", "w3 w8"], max_new_tokens=4)
    routed = load_bundle(bundles["prompt"], on_disk(base_folder))
    assert routed.generate(["w5 w7 w9", "w3 w8"], max_new_tokens=4) == expected


def test_transformers_loads_no_bundle_beside_modules_on_disk(
    bundles: dict[str, Path], base_folder: Path
) -> None:
    with pytest.raises(BundleRefused) as caught:
        on_disk(base_folder).load_adapter(bundles["token"])
    assert str(caught.value) == (
        "7 of the 14 modules of bundle `default` are offloaded in the base, such as "
        "`model.layers.1.self_attn.q_proj`, and transformers loads no adapter there"
    )
