"""Adapters as people meet them: each verdict is compared with what PEFT makes of the same files.

A mark `xfail` states what is wrong today. It is strict: the commit that mends the fault removes the mark.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, BdLoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from meteora_registry import runtime
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    VOCABULARY,
    logits_alone,
    logits_of,
    make_adapter,
    save_base,
    some_tokens,
    tiny_llama,
)
from support.program import Run

pytestmark = [
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    # PEFT warns so when it loads an adapter of which it uses nothing.
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
    # PEFT warns so when it makes parameters of the names of expert modules.
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
]

QV = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
MAX_DIFFERENCE = 1e-5
COMMIT = "3f1c9ab0" * 5
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def tiny_mixture() -> PreTrainedModel:
    """Return a mixture of four experts in each layer, which transformers stacks into one parameter."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**TEXT, num_experts=4, moe_intermediate_size=16, num_experts_per_tok=2)
    return Qwen3MoeForCausalLM(config).eval()


def tiny_gemma3() -> PreTrainedModel:
    """Return a vision-language model, whose modules transformers has renamed since 4.52."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
        "vision_use_head": False,
    }
    tokens = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62}
    config = Gemma3Config(text_config=TEXT, vision_config=vision, mm_tokens_per_image=4, **tokens)
    return Gemma3ForConditionalGeneration(config).eval()


def adapter(name: str, make_base: Callable[[], PreTrainedModel] = tiny_llama, **options: Any) -> Path:
    """Return an adapter of two projections in a folder of this name; options replace or add to its config."""
    return make_adapter(make_base, Path(name), **({"seed": 1, "base": "org/base"} | QV | options))


def renamed(source: Path, name: str, rename: Callable[[str], str], **config: Any) -> Path:
    """Return a copy of an adapter with other tensor names and these changes to its config."""
    target = Path(name)
    shutil.copytree(source, target)
    tensors = load_file(source / "adapter_model.safetensors")
    save_file({rename(key): value for key, value in tensors.items()}, target / "adapter_model.safetensors")
    changed = json.loads((source / "adapter_config.json").read_text()) | config
    (target / "adapter_config.json").write_text(json.dumps(changed))
    return target


def has_effect(make_base: Callable[[], PreTrainedModel], folder: Path) -> bool:
    """Return whether PEFT answers with the adapter otherwise than without it."""
    tokens = some_tokens()
    return not torch.equal(logits_alone(make_base(), folder, tokens), logits_of(make_base(), tokens))


def member_logits(base: PreTrainedModel, bundle: Path, member: str) -> Tensor:
    """Return the logits of a bundle with one member forced."""
    model = PeftModel.from_pretrained(base, bundle).eval()
    with runtime.force_adapter(model, member):
        return logits_of(model)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]},
    ],
    ids=["names that PEFT converts", "explicit parameters"],
)
def test_adapter_of_expert_weights_is_sound_and_catalogued(run: Run, options: dict[str, Any]) -> None:
    folder = adapter("experts", tiny_mixture, **options)
    assert has_effect(tiny_mixture, folder)
    assert run("validate", folder).returncode == 0
    assert run("add", folder).returncode == 0


def test_adapter_in_the_hubs_cache_is_read_like_its_repository(run: Run) -> None:
    source = adapter("adapter")
    repository = Path("hub/models--org--legal")
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(source / name, repository / "blobs" / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert has_effect(tiny_llama, snapshot)
    assert run("validate", snapshot).returncode == 0
    assert run("add", snapshot).returncode == 0


def old_and_new_names() -> tuple[Path, Path]:
    """Return one adapter under the module names of today and under those of transformers before 4.52."""
    new = adapter("new", tiny_gemma3, target_modules=r".*language_model.*(q_proj|v_proj)")
    old = renamed(
        new,
        "old",
        lambda key: key.replace("model.model.language_model.", "model.language_model.model."),
        target_modules=["q_proj", "v_proj"],
    )
    assert has_effect(tiny_gemma3, old)
    return old, new


def test_fuse_without_the_base_reports_that_it_was_not_attached(run: Run) -> None:
    for folder in old_and_new_names():
        assert run("add", folder).returncode == 0
    fused = run("fuse", "old", "new", "--out", "bundle")
    assert "not attached to its base" in fused.stdout + fused.stderr


def test_bundle_names_the_declared_base_and_not_the_folder_it_was_read_from(run: Run) -> None:
    old, new = old_and_new_names()
    save_base(tiny_gemma3(), Path("models/gemma3"))
    for folder in (old, new):
        assert run("add", folder).returncode == 0
    base = ["--base", "org/base", "--base-folder", "models/gemma3"]
    assert run("fuse", "old", "new", "--out", "bundle", *base).returncode == 0
    config = json.loads(Path("bundle/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert "models/gemma3" not in Path("bundle/README.md").read_text()
    alone = logits_alone(tiny_gemma3(), new, some_tokens())
    assert (member_logits(tiny_gemma3(), Path("bundle"), "old") - alone).abs().max() <= MAX_DIFFERENCE


def test_prefix_before_pefts_is_stripped_or_refused(run: Run) -> None:
    plain, other = adapter("plain"), adapter("other", seed=2)
    prefixed = renamed(plain, "prefixed", lambda key: f"thinker.{key}")
    if run("validate", prefixed, "--for", "fuse").returncode:
        return
    for folder in (prefixed, other):
        assert run("add", folder).returncode == 0
    assert run("fuse", "prefixed", "other", "--out", "bundle").returncode == 0
    alone = logits_alone(tiny_llama(), plain, some_tokens())
    assert (member_logits(tiny_llama(), Path("bundle"), "prefixed") - alone).abs().max() <= MAX_DIFFERENCE


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.replace(".lora_A.", ".lora_A.sft.").replace(".lora_B.", ".lora_B.sft."),
        lambda key: key.replace(".lora_", ".base_layer.lora_"),
        lambda key: key.removesuffix(".weight"),
    ],
    ids=["adapter name inside", "base layer inside", "no suffix"],
)
def test_adapter_of_which_peft_loads_nothing_is_broken(run: Run, rename: Callable[[str], str]) -> None:
    folder = renamed(adapter("plain"), "renamed", rename)
    assert not has_effect(tiny_llama, folder)
    assert run("validate", folder).returncode == 1


def tiny_backbone() -> PreTrainedModel:
    """Return the Llama without its head, as an embedding model is loaded."""
    backbone: PreTrainedModel = tiny_llama().model
    return backbone


def test_bundle_of_embedding_adapters_loads_on_the_class_they_were_trained_on(run: Run) -> None:
    save_base(tiny_llama(), Path("base"))
    for seed, name in enumerate(("first", "second"), start=1):
        folder = adapter(name, tiny_backbone, seed=seed, task_type="FEATURE_EXTRACTION")
        assert run("add", folder).returncode == 0
    assert run("fuse", "first", "second", "--out", "bundle", "--base", "./base").returncode == 0
    alone = PeftModel.from_pretrained(AutoModel.from_pretrained("base"), "first").eval()
    model = PeftModel.from_pretrained(AutoModel.from_pretrained("base"), "bundle").eval()
    with torch.no_grad(), runtime.force_adapter(model, "first"):
        found, expected = (each(some_tokens()).last_hidden_state for each in (model, alone))
    assert (found - expected).abs().max() <= MAX_DIFFERENCE


@pytest.mark.parametrize(
    "options",
    [
        {
            "target_modules": ["q_proj", "v_proj", "o_proj"],
            "use_bdlora": BdLoraConfig(["o_proj"], ["q_proj", "v_proj"], nblocks=2),
        },
        {"layer_replication": [(0, 2), (1, 2)]},
    ],
    ids=["block-diagonal", "layer replication"],
)
def test_variant_that_peft_loads_is_sound(run: Run, options: dict[str, Any]) -> None:
    save_base(tiny_llama(), Path("base"))
    folder = adapter("variant", **options)
    assert has_effect(tiny_llama, folder)
    assert run("validate", folder, "--base", "./base").returncode == 0


def test_bundle_of_members_without_a_task_type_loads_as_they_do(run: Run) -> None:
    base = str(save_base(tiny_llama(), Path("base").absolute()))
    for seed, name in enumerate(("first", "second"), start=1):
        assert run("add", adapter(name, seed=seed, base=base, task_type=None)).returncode == 0
    assert run("fuse", "first", "second", "--out", "bundle", "--base", base).returncode == 0
    alone = logits_of(AutoPeftModelForCausalLM.from_pretrained("first").eval())
    model = AutoPeftModelForCausalLM.from_pretrained("bundle").eval()
    with runtime.force_adapter(model, "first"):
        assert (logits_of(model) - alone).abs().max() <= MAX_DIFFERENCE


def test_adapter_for_a_base_with_code_of_its_own_is_judged_all_the_same(run: Run) -> None:
    folder = adapter("adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: value * float("nan") for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    code = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    save_base(tiny_llama(), Path("base"))
    config = json.loads(Path("base/config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": code}
    Path("base/config.json").write_text(json.dumps(config))
    judged = run("validate", folder, "--base", "./base")
    assert judged.returncode == 1
    assert "NaN" in judged.stdout
    assert "not checked" in judged.stdout


def test_weights_file_as_argument_means_its_folder(run: Run) -> None:
    folder = adapter("adapter")
    assert run("validate", folder / "adapter_model.safetensors").returncode == 0


def test_checkpoints_of_two_runs_take_the_names_of_the_runs(run: Run) -> None:
    for name, options in (("run-a", {}), ("run-b", {"target_modules": ["down_proj"], "r": 7})):
        assert run("add", adapter(f"{name}/checkpoint-500", **options)).returncode == 0
    listed = json.loads(run("list", "--format", "json").stdout)
    assert [each["name"] for each in listed["adapters"]] == ["run-a", "run-b"]


def test_all_adapters_in_a_folder_are_added(run: Run) -> None:
    for name in ("policy", "reference"):
        adapter(f"trained/{name}")
    assert run("add", "./trained", "--all").returncode == 0
    listed = json.loads(run("list", "--format", "json").stdout)
    assert [each["name"] for each in listed["adapters"]] == ["policy", "reference"]
