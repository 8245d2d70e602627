"""Good adapters, made by PEFT: none is refused, and what we read is what PEFT computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    EvaConfig,
    LoraConfig,
    PeftModel,
    VeloraConfig,
    get_peft_model,
    initialize_lora_eva_weights,
)
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from meteora_registry.inspection.adapter import Inspection, inspect_adapter
from meteora_registry.schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from support.adapters import AdapterFiles, codes_of, inspect_written
from support.models import LLAMA_MEMBERS, make_adapter, some_tokens, tiny_gpt2, tiny_llama

BASE = "org/base"
VARIANTS: dict[str, dict[str, Any]] = {
    **LLAMA_MEMBERS,
    "regex": {"r": 4, "lora_alpha": 8, "target_modules": r".*layers\.\d+\.self_attn\.(q|k)_proj"},
    "layers": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "layers_to_transform": 1},
    "exclude": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "exclude_modules": ["layers.0.self_attn.q_proj"],
    },
    "gaussian": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "orthogonal": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "mica": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": "mica"},
    "random": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": False},
    "velora": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "velora_config": VeloraConfig(num_groups=4),
    },
    "dropout": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1},
    "fraction": {"r": 3, "lora_alpha": 0.5, "target_modules": ["q_proj"]},
    "regex-patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {r"layers\.[1-9]\.self_attn\.q_proj": 2, "q_proj": 6},
        "alpha_pattern": {"model.*v_proj": 32},
    },
}  # fmt: skip


def check_deltas(base: PreTrainedModel, folder: Path, inspection: Inspection) -> None:
    """Check that the scaled product of every module is the delta that PEFT adds to it."""
    assert inspection.inventory is not None
    tensors = load_file(folder / WEIGHTS_FILE)
    layers = dict(PeftModel.from_pretrained(base, folder).base_model.model.named_modules())
    adapted = {name for name, layer in layers.items() if hasattr(layer, "lora_A") and layer.lora_A}
    assert {module.path for module in inspection.inventory.modules} == adapted
    for module in inspection.inventory.modules:
        layer = layers[module.path]
        delta = module.scaling * tensors[module.b].float() @ tensors[module.a].float()
        theirs = layer.get_delta_weight("default").float()
        theirs = theirs.T if layer.fan_in_fan_out else theirs
        torch.testing.assert_close(delta, theirs, rtol=1e-5, atol=1e-6)
        assert (module.out_features, module.in_features) == tuple(delta.shape)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_good_variant_is_read_as_peft_reads_it(name: str, tmp_path: Path) -> None:
    folder = make_adapter(tiny_llama, tmp_path, seed=1, base=BASE, **VARIANTS[name])
    inspection = inspect_adapter(folder)
    assert (str(inspection.verdict), codes_of(inspection)) == ("sound, fusable", [])
    check_deltas(tiny_llama(), folder, inspection)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accepted(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = make_adapter(tiny_llama, tmp_path, seed=1, base=BASE, dtype=dtype, **LLAMA_MEMBERS["rank4"])
    inspection = inspect_adapter(folder)
    assert codes_of(inspection) == []
    check_deltas(tiny_llama(), folder, inspection)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("flag", [True, False])
def test_transposed_layers_of_gpt2_are_accepted_whatever_the_flag(flag: bool, tmp_path: Path) -> None:
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": flag}
    files = AdapterFiles.read(make_adapter(tiny_gpt2, tmp_path, seed=1, base=BASE, **options))
    files.config["fan_in_fan_out"] = flag
    files.config["base_model_name_or_path"] = "openai-community/gpt2"
    inspection = inspect_written(files, tmp_path)
    assert codes_of(inspection) == ([] if flag else ["MR137"])
    assert inspection.verdict.fusable
    check_deltas(tiny_gpt2(), tmp_path, inspection)


def test_eva_is_accepted(tmp_path: Path) -> None:
    torch.manual_seed(1)
    options = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="eva", eva_config=EvaConfig(rho=2.0)
    )
    model = get_peft_model(tiny_llama(), options, low_cpu_mem_usage=True)
    batches = [{"input_ids": some_tokens(batch=8, length=16, seed=seed)} for seed in range(6)]
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path)
    inspection = inspect_adapter(tmp_path)
    assert codes_of(inspection) == ["MR141"]
    check_deltas(tiny_llama(), tmp_path, inspection)


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        pytest.param(lambda raw: raw.replace(b"\n", b"\r\n"), [], id="crlf"),
        pytest.param(lambda raw: b"\xef\xbb\xbf" + raw, ["MR015"], id="byte-order-mark"),
    ],
)
def test_line_ends_and_byte_order_mark_are_accepted(
    change: Callable[[bytes], bytes], codes: list[str], tmp_path: Path
) -> None:
    folder = make_adapter(tiny_llama, tmp_path, seed=1, base=BASE, **LLAMA_MEMBERS["rank4"])
    config = folder / CONFIG_FILE
    plain = inspect_adapter(folder)
    config.write_bytes(change(config.read_bytes()))
    changed = inspect_adapter(folder)
    assert codes_of(changed) == codes
    assert changed.canonical_config_sha256 == plain.canonical_config_sha256
    assert changed.facts and plain.facts
    assert changed.facts.config_sha256 != plain.facts.config_sha256
    assert changed.verdict.fusable


def test_classifier_is_sound_and_not_fusable(tmp_path: Path) -> None:
    base = AutoModelForSequenceClassification.from_config(tiny_llama().config)
    options = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["q_proj"])
    model = get_peft_model(base, options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path)
    files = AdapterFiles.read(tmp_path)
    files.config["base_model_name_or_path"] = BASE
    inspection = inspect_written(files, tmp_path)
    assert str(inspection.verdict) == "sound, not fusable"
    assert codes_of(inspection) == ["MR129", "MR130", "MR323"]
    found = next(finding for finding in inspection.findings if finding.code == "MR323")
    assert found.found == "1 full weights: the head of a classifier"
