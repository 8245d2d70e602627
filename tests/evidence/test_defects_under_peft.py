"""Why the refusing rules refuse: what PEFT makes of the same files, measured."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from transformers import LlamaForCausalLM, PreTrainedModel

from support.adapters import AdapterFiles, codes_of, inspect_written
from support.defects import WEIGHT_DEFECTS, Defect
from support.models import make_adapter, some_tokens, tiny_llama

OPTIONS = {"r": 4, "lora_alpha": 20, "target_modules": ["q_proj", "v_proj"]}
# What makes a difference; equal results differ by far less.
VISIBLE = 1e-2
EQUAL = 1e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> AdapterFiles:
    folder = make_adapter(tiny_llama, tmp_path_factory.mktemp("made"), seed=1, base="org/base", **OPTIONS)
    return AdapterFiles.read(folder)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(some_tokens()).logits


def load(files: AdapterFiles, folder: Path) -> torch.Tensor:
    """The logits that PEFT gives with these files, whatever it warns."""
    files.write(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(PeftModel.from_pretrained(tiny_llama(), folder))


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def defect(name: str) -> Defect:
    from support.defects import DEFECTS

    return next(each for each in DEFECTS if each.name == name)


def with_defect(name: str, files: AdapterFiles) -> AdapterFiles:
    changed = copy.deepcopy(files)
    defect(name).change(changed)
    return changed


@pytest.mark.parametrize(
    "name",
    [
        "prefix-none",
        "prefix-module",
        "prefix-doubled",
        "prefix-fsdp",
        "kohya",
        "comfyui",
        "lora-down",
        "prefix-unknown",
        "no-lora",
        "full-model",
    ],
)
def test_peft_answers_with_the_base_where_names_are_not_its_own(
    name: str, files: AdapterFiles, tmp_path: Path
) -> None:
    found = load(with_defect(name, files), tmp_path)
    right = load(files, tmp_path / "right")
    assert difference(found, logits(tiny_llama())) < EQUAL or name == "lora-down"
    assert difference(found, right) > VISIBLE


@pytest.mark.parametrize(
    "name",
    [
        "alpha-missing",
        "a-alone",
        "b-alone",
        "targets-narrower",
        "rank-missing",
        "pattern-alpha-zero",
        "int8",
        "float8",
        "rslora-text",
        "path-unusable",
        "factor-named-otherwise",
        "pattern-look-ahead",
    ],
)
def test_peft_is_wrong_or_fails(name: str, files: AdapterFiles, tmp_path: Path) -> None:
    right = load(files, tmp_path / "right")
    try:
        found = load(with_defect(name, files), tmp_path)
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError):
        return
    assert difference(found, right) > VISIBLE


@pytest.mark.parametrize(
    "name",
    [
        "rank-zero",
        "rank-text",
        "rank-unlike-tensors",
        "rank-pattern-unlike-tensors",
        "alpha-text",
        "initialisation-unknown",
        "targets-broken",
        "type-missing",
        "type-unknown",
        "type-lower-case",
        "config-list",
        "config-no-json",
        "config-empty",
        "swapped",
        "transposed",
        "one-dimension",
        "zero-size",
        "ranks-disagree",
        "weights-lfs",
        "weights-empty",
        "weights-truncated",
        "layers-beside-text",
        "targets-number",
        "config-missing",
        "config-lfs",
        "config-html",
        "weights-missing",
        "sharded",
        "type-bundle",
    ],
)
def test_peft_stops_with_an_error(name: str, files: AdapterFiles, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        load(with_defect(name, files), tmp_path)
    assert not isinstance(caught.value, AssertionError)


@pytest.mark.parametrize(
    "each",
    [d for d in WEIGHT_DEFECTS if set(d.codes) & {f"MR2{n:02}" for n in range(1, 11)}],
    ids=lambda d: d.name,
)
def test_file_that_is_no_safetensors_file_is_none_for_its_own_library(
    each: Defect, files: AdapterFiles, tmp_path: Path
) -> None:
    folder = with_defect(each.name, files).write(tmp_path)
    with (
        pytest.raises(SafetensorError),
        safe_open(folder / "adapter_model.safetensors", framework="pt") as opened,
    ):
        opened.keys()


def test_nan_in_one_layer_may_give_finite_wrong_logits(files: AdapterFiles, tmp_path: Path) -> None:
    right = load(files, tmp_path / "right")
    found = load(with_defect("nan", files), tmp_path)
    assert not torch.equal(found.nan_to_num(1e9), right)


def test_untrained_adapter_does_nothing(files: AdapterFiles, tmp_path: Path) -> None:
    assert difference(load(with_defect("untrained", files), tmp_path), logits(tiny_llama())) < EQUAL


def biased_llama() -> PreTrainedModel:
    """The tiny Llama with biases in its attention, as Qwen has them."""
    config = copy.deepcopy(tiny_llama().config)
    config.attention_bias = True
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def trained(options: LoraConfig) -> PreTrainedModel:
    model = get_peft_model(biased_llama(), options)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.3 if "lora_" in name else 0.1))
    return model.eval()


def save(model: PreTrainedModel, folder: Path) -> AdapterFiles:
    model.save_pretrained(folder)
    return AdapterFiles.read(folder)


def test_dora_without_its_flag_is_silently_wrong(tmp_path: Path) -> None:
    model = trained(LoraConfig(use_dora=True, **OPTIONS))
    right = logits(model)
    lost = save(model, tmp_path / "dora")
    assert codes_of(inspect_written(lost, tmp_path / "a")) == ["MR121", "MR141", "MR321"]
    lost.config["use_dora"] = False
    lost.write(tmp_path / "lost")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        silent = logits(PeftModel.from_pretrained(biased_llama(), tmp_path / "lost"))
    assert difference(silent, right) > VISIBLE
    assert codes_of(inspect_written(lost, tmp_path / "lost")) == ["MR141", "MR321"]


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        pytest.param({"bias": "all"}, {"MR122"}, id="bias-all"),
        pytest.param({"bias": "lora_only"}, {"MR122"}, id="bias-lora-only"),
        pytest.param({"lora_bias": True}, {"MR122", "MR322"}, id="lora-bias"),
        pytest.param({"modules_to_save": ["lm_head"]}, {"MR129", "MR323"}, id="modules-to-save"),
        pytest.param({"init_lora_weights": "pissa"}, {"MR123"}, id="pissa"),
        pytest.param({"init_lora_weights": "olora"}, {"MR123"}, id="olora"),
        pytest.param({"trainable_token_indices": list(range(64))}, {"MR128", "MR325"}, id="tokens"),
        pytest.param({"target_modules": ["q_proj", "lm_head"]}, {"MR324"}, id="output-layer"),
        pytest.param({"target_modules": ["q_proj", "embed_tokens"]}, {"MR324"}, id="embedding"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_factors_alone_are_not_the_adapter(
    options: dict[str, object], codes: set[str], tmp_path: Path
) -> None:
    """What PEFT computes is not W x + s B A x of the linear layers between embedding and output."""
    model = trained(LoraConfig(**OPTIONS | options))
    right = logits(model)
    files = save(model, tmp_path)
    inspection = inspect_written(files, tmp_path)
    assert codes <= set(codes_of(inspection))
    assert not inspection.verdict.fusable
    assert inspection.verdict.sound
    plain = biased_llama()
    modules = dict(plain.named_modules())
    with torch.no_grad():
        for name in files.names("lora_A.weight"):
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            if path != "lm_head":
                delta = 5.0 * files.tensors[name.replace("lora_A", "lora_B")] @ files.tensors[name]
                modules[path].weight += delta
    assert difference(logits(plain), right) > 1e-3


@pytest.mark.parametrize("pattern", ["(([a-z_.0-9]+)+)+!"])
def test_hostile_pattern_hangs_the_engine_that_loaders_use(
    pattern: str, files: AdapterFiles, tmp_path: Path
) -> None:
    match = f"import re; re.fullmatch({pattern!r}, 'model.layers.0.self_attn.q_proj')"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", match], timeout=3, check=False)
    hostile = copy.deepcopy(files)
    hostile.config |= {"target_modules": pattern, "alpha_pattern": {pattern: 4}}
    assert codes_of(inspect_written(hostile, tmp_path)) == ["MR116", "MR117", "MR134", "MR135"]
