"""The rules about vLLM: asked for that purpose alone, and each refuses for one thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.inspection.comparison import judge_for_engine
from meteora_registry.inspection.vllm import EngineLimits
from meteora_registry.registry.workflows.validation import ValidateOptions, validate
from meteora_registry.schemas.finding import Severity
from meteora_registry.schemas.report import AdapterReport, Outcome, Purpose
from support.models import LOADS_WITH_PEFT, save_base, tiny_gpt2
from support.models import make_adapter as train
from support.program import Run
from support.small_adapters import make_adapter

PREFIX = "base_model.model.model."


def report_of(folder: Path, purpose: Purpose = Purpose.VLLM, **options: Any) -> AdapterReport:
    (report,) = validate([folder], ValidateOptions(purpose=purpose, **options)).adapters
    return report


def codes_of(folder: Path, **limits: Any) -> list[str]:
    return [each.code for each in judge_for_engine(inspect_adapter(folder), EngineLimits(**limits))]


def with_tensor(folder: Path, name: str, *shape: int) -> Path:
    """Add a tensor to an adapter's file."""
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights) | {name: np.ones(shape, "float32")}, weights, {"format": "pt"})
    return folder


def without_field(folder: Path, field: str) -> Path:
    config = json.loads((folder / "adapter_config.json").read_text())
    del config[field]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "codes"),
    [
        ({}, []),
        ({"use_dora": True}, ["MR801"]),
        ({"lora_bias": True}, ["MR801"]),
        ({"bias": "all"}, ["MR801"]),
        ({"bias": "lora_only"}, ["MR801"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["MR801"]),
        ({"init_lora_weights": "OLoRA"}, ["MR801"]),
        ({"init_lora_weights": "Gaussian"}, []),
        ({"init_lora_weights": "lora_ga"}, []),
        ({"init_lora_weights": False}, []),
        ({"alora_invocation_tokens": [1]}, ["MR801"]),
        ({"alora_invocation_tokens": []}, []),
        ({"layer_replication": [[0, 2]]}, ["MR801"]),
        ({"use_bdlora": {"nblocks": 2}}, ["MR801"]),
        ({"use_qalora": True}, ["MR801"]),
        ({"modules_to_save": ["lm_head"]}, ["MR802"]),
        ({"modules_to_save": ["score", "lm_head"]}, ["MR802"]),
        ({"modules_to_save": ["classifier", "score"]}, []),
        ({"modules_to_save": []}, []),
        ({"r": 16}, []),
        ({"r": 17}, ["MR803"]),
        ({"r": 4, "rank_pattern": {"absent": 17}}, ["MR803"]),
        ({"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "layers_to_transform": [0, 1]}, []),
    ],
    ids=str,
)
def test_rules_about_configs_refuse_what_the_engine_refuses(
    config: dict[str, Any], codes: list[str], tmp_path: Path
) -> None:
    assert codes_of(make_adapter(tmp_path, **config)) == codes


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("layers.0.self_attn.q_proj.lora_velora_embed", ["MR804"]),
        ("layers.0.self_attn.q_proj.lora_magnitude_vector", ["MR804"]),
        ("layers.0.self_attn.k_proj.lora_A.default.weight", ["MR804"]),
        ("layers.0.self_attn.k_proj.lora_B.bias", ["MR804"]),
        ("norm.weight", ["MR804"]),
        ("score.weight", ["MR804"]),
        ("embed_tokens.lora_embedding_A.weight", ["MR804"]),
        ("embed_tokens.lora_embedding_A", []),
        ("embed_tokens.base_layer.weight", []),
        ("layers.0.self_attn.k_proj.lora_B.weight", []),
        ("vision_tower.layers.0.q_proj.lora_A.weight", ["MR806"]),
        ("layers.0.mlp.experts.lora_A.weight", ["MR807"]),
        ("layers.0.mlp.experts.3.up_proj.lora_A.weight", ["MR807"]),
    ],
)
def test_rules_about_tensors_refuse_what_the_engine_refuses(
    name: str, codes: list[str], tmp_path: Path
) -> None:
    assert codes_of(with_tensor(make_adapter(tmp_path), PREFIX + name, 4, 4)) == codes


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules"])
def test_field_that_the_engine_requires_is_missed(field: str, tmp_path: Path) -> None:
    assert codes_of(without_field(make_adapter(tmp_path), field)) == ["MR805"]


@pytest.mark.parametrize(
    ("architecture", "codes"),
    [
        ("GPT2LMHeadModel", ["MR808"]),
        ("Qwen2ForCausalLM", ["MR809"]),
        ("LlamaForCausalLM", []),
        ("UnheardOfForCausalLM", []),
    ],
)
@pytest.mark.parametrize("name", ["model.embed_tokens.lora_embedding_A", "lm_head.lora_A.weight"])
def test_class_of_the_base_decides_on_adapters_and_vocabulary_layers(
    architecture: str, codes: list[str], name: str, tmp_path: Path
) -> None:
    folder = with_tensor(make_adapter(tmp_path), f"base_model.model.{name}", 4, 4)
    assert codes_of(folder, architectures=(architecture,)) == codes


def test_linear_layers_are_served_for_a_class_without_vocabulary_layers(tmp_path: Path) -> None:
    assert codes_of(make_adapter(tmp_path), architectures=("Qwen2ForCausalLM",)) == []


@pytest.mark.parametrize(
    ("rank", "limit", "remedy"),
    [
        (17, 16, "start the engine with `--max-lora-rank 32`, and state it here too"),
        (65, 64, "start the engine with `--max-lora-rank 128`, and state it here too"),
        (513, 512, "no engine has room for it; train with a smaller rank"),
    ],
)
def test_rank_above_the_engine_names_the_least_that_has_room(
    rank: int, limit: int, remedy: str, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path, rank=rank, layers=1)
    (found,) = judge_for_engine(inspect_adapter(folder), EngineLimits(limit))
    assert (found.found, found.expected, found.remedy) == (f"rank `{rank}`", f"at most {limit}", remedy)


@pytest.mark.parametrize("digits", [40, 5000])
def test_rank_of_any_number_of_digits_is_refused(digits: int, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path)
    config = (folder / "adapter_config.json").read_text().replace('"r": 4', f'"r": 1{digits * "0"}')
    (folder / "adapter_config.json").write_text(config)
    assert report_of(folder).outcome is Outcome.REFUSED


@pytest.mark.parametrize("purpose", [Purpose.USE, Purpose.FUSE])
def test_rules_about_vllm_are_not_asked_for_another_purpose(purpose: Purpose, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path, rank=17)
    found = report_of(folder, purpose)
    assert (found.outcome, found.findings) == (Outcome.ACCEPTED, ())
    assert report_of(folder).outcome is Outcome.REFUSED


def test_not_served_is_no_verdict_on_the_adapter(tmp_path: Path) -> None:
    report = report_of(make_adapter(tmp_path, rank=17))
    assert report.verdict is not None
    assert (report.verdict.sound, report.verdict.fusable) == (True, True)


def test_what_only_a_bundle_cannot_hold_is_served(tmp_path: Path) -> None:
    report = report_of(make_adapter(tmp_path, alpha=-8))
    assert [each.code for each in report.findings] == ["MR120"]
    assert report.outcome is Outcome.ACCEPTED


def test_broken_adapter_is_refused_for_an_engine(tmp_path: Path) -> None:
    assert report_of(make_adapter(tmp_path, alpha=0)).outcome is Outcome.REFUSED


def test_experts_of_a_mixture_are_a_warning(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path)
    for factor, shape in (("A", (16, 32)), ("B", (32, 16))):
        with_tensor(folder, f"{PREFIX}layers.0.mlp.experts.lora_{factor}.weight", *shape)
    (found,) = judge_for_engine(inspect_adapter(folder), EngineLimits())
    assert found.severity is Severity.WARN


def test_adapter_of_another_method_is_not_asked(tmp_path: Path) -> None:
    assert codes_of(make_adapter(tmp_path, peft_type="LOHA", r=17)) == []


def test_validate_takes_the_limit_of_the_engine(run: Run, tmp_path: Path) -> None:
    make_adapter(tmp_path / "wide", rank=32)
    refused = run("validate", "wide", "--for", "vllm")
    assert refused.returncode == 1
    assert "MR803" in refused.stdout
    assert run("validate", "wide", "--for", "vllm", "--max-lora-rank", "32").returncode == 0
    assert run("validate", "wide", "--for", "vllm", "--max-lora-rank", "33").returncode == 2


@LOADS_WITH_PEFT
def test_classes_of_the_base_come_from_its_config(tmp_path: Path) -> None:
    adapter = train(
        tiny_gpt2,
        tmp_path / "adapter",
        seed=1,
        base="org/base",
        target_modules=["c_attn"],
        fan_in_fan_out=True,
    )
    base = save_base(tiny_gpt2(), tmp_path / "base")
    assert [each.code for each in report_of(adapter, base=str(base)).findings] == ["MR808"]
