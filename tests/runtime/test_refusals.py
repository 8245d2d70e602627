"""Refusals of a reader: wrong configs, wrong tensors, wrong bases; through PEFT and through transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from meteora_registry.runtime import MeteoraConfig
from meteora_registry.schemas.errors import BundleRefused, InvalidDocument, SourceUnreadable, UsageError
from support.bundles import write_bundle
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    make_adapter,
    some_tokens,
    tiny_gpt2,
    tiny_llama,
)

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

Load = Callable[[nn.Module, Path], nn.Module]
Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.1.self_attn.v_proj"


def through_peft(base: nn.Module, bundle: Path) -> nn.Module:
    return PeftModel.from_pretrained(base, bundle)


def through_peft_low_memory(base: nn.Module, bundle: Path) -> nn.Module:
    return PeftModel.from_pretrained(base, bundle, low_cpu_mem_usage=True)


def through_transformers(base: nn.Module, bundle: Path) -> nn.Module:
    base.load_adapter(bundle)
    return base


every_load = pytest.mark.parametrize(
    "load", [through_peft, through_peft_low_memory, through_transformers], ids=lambda load: load.__name__
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    members = {
        name: make_adapter(
            tiny_llama, tmp_path / name, seed=rank, r=rank, target_modules=["q_proj", "v_proj"]
        )
        for name, rank in [("small", 4), ("large", 12)]
    }
    return write_bundle(tmp_path / "bundle", members)


def change_tensors(bundle: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = bundle / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_config(bundle: Path, **values: Any) -> None:
    path = bundle / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def name_of(path: str, tensor: str) -> str:
    return f"base_model.model.{path}.{tensor}"


def remove_a_tensor(tensors: dict[str, Tensor]) -> None:
    del tensors[name_of(Q, "meteora_B")]


def remove_every_factor(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        if "gate" not in name:
            del tensors[name]


def add_a_tensor(tensors: dict[str, Tensor]) -> None:
    tensors[name_of("model.layers.0.self_attn.k_proj", "meteora_A")] = torch.zeros(8, 32)


def rename_a_tensor(tensors: dict[str, Tensor]) -> None:
    tensors[name_of(Q, "lora_A")] = tensors.pop(name_of(Q, "meteora_A"))


def shorten_a(tensors: dict[str, Tensor]) -> None:
    tensors[name_of(Q, "meteora_A")] = tensors[name_of(Q, "meteora_A")][:-8].clone()


def transpose_b(tensors: dict[str, Tensor]) -> None:
    tensors[name_of(V, "meteora_B")] = tensors[name_of(V, "meteora_B")].T.contiguous()


def shorten_the_gate(tensors: dict[str, Tensor]) -> None:
    tensors[name_of(V, "meteora_gate")] = tensors[name_of(V, "meteora_gate")][:1].clone()


def make_integers(tensors: dict[str, Tensor]) -> None:
    for name in tensors:
        if "gate" not in name:
            tensors[name] = tensors[name].to(torch.int8)


def mix_dtypes(tensors: dict[str, Tensor]) -> None:
    tensors[name_of(Q, "meteora_A")] = tensors[name_of(Q, "meteora_A")].half()


def round_the_gate(tensors: dict[str, Tensor]) -> None:
    tensors[name_of(Q, "meteora_gate")] = tensors[name_of(Q, "meteora_gate")].bfloat16()


TENSOR_PROBLEMS = {
    remove_a_tensor: f"`{Q}.meteora_B` is missing",
    add_a_tensor: "`model.layers.0.self_attn.k_proj.meteora_A` is unexpected",
    rename_a_tensor: f"`{Q}.meteora_A` is missing; `{Q}.lora_A` is unexpected",
    shorten_a: f"`{Q}.meteora_A` is [16, 32], expected [24, 32]",
    transpose_b: f"`{V}.meteora_B` is [16, 24], expected [24, 16]",
    shorten_the_gate: f"`{V}.meteora_gate` is [1, 32], expected [2, 32]",
    make_integers: (
        "`meteora_A` and `meteora_B` are `torch.int8`, "
        "expected one of `torch.float32`, `torch.float16`, `torch.bfloat16` throughout"
    ),
    mix_dtypes: (
        "`meteora_A` and `meteora_B` are `torch.float16`, `torch.float32`, "
        "expected one of `torch.float32`, `torch.float16`, `torch.bfloat16` throughout"
    ),
    round_the_gate: f"`{Q}.meteora_gate` is `torch.bfloat16`, expected `torch.float32`",
}


@every_load
@pytest.mark.parametrize("change", TENSOR_PROBLEMS, ids=lambda change: change.__name__)
def test_wrong_tensors_are_refused(
    bundle: Path, load: Load, change: Callable[[dict[str, Tensor]], None]
) -> None:
    change_tensors(bundle, change)
    with pytest.raises(BundleRefused) as caught:
        load(tiny_llama(), bundle)
    assert str(caught.value) == (
        f"the tensors of bundle `default` are not those of its config and base: {TENSOR_PROBLEMS[change]}"
    )


@every_load
def test_every_problem_of_the_tensors_is_counted(bundle: Path, load: Load) -> None:
    change_tensors(bundle, remove_every_factor)
    with pytest.raises(BundleRefused, match=r"`model.layers.1.self_attn.q_proj.meteora_A` is missing; and 3"):
        load(tiny_llama(), bundle)


@every_load
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"meteora_format": 2}, "`adapter_config.json` has bundle format `2`, this reader knows `1`"),
        (
            {"required_features": ["telepathy"]},
            "`adapter_config.json` requires `telepathy`, which this reader does not know",
        ),
    ],
    ids=["format", "feature"],
)
def test_unknown_format_or_feature_is_refused(
    bundle: Path, load: Load, values: dict[str, Any], message: str
) -> None:
    change_config(bundle, **values)
    with pytest.raises(BundleRefused) as caught:
        load(tiny_llama(), bundle)
    assert str(caught.value) == message
    assert "upgrade meteora-registry" in str(caught.value.hint)


@every_load
def test_config_that_breaks_the_schema_is_refused(bundle: Path, load: Load) -> None:
    change_config(bundle, top_k=3)
    with pytest.raises(InvalidDocument, match="top_k is 3, expected at most the number of members, 2"):
        load(tiny_llama(), bundle)


def test_config_of_another_peft_type_is_refused() -> None:
    with pytest.raises(
        BundleRefused, match="is not a MeteoRA bundle: peft_type is `LORA`, expected `METEORA`"
    ):
        MeteoraConfig(peft_type="LORA")


@every_load
def test_base_without_a_target_module_is_refused_unchanged(bundle: Path, load: Load) -> None:
    base = tiny_gpt2()
    before = [name for name, _ in base.named_modules()]
    with pytest.raises(BundleRefused) as caught:
        load(base, bundle)
    assert str(caught.value) == (
        f"the base `GPT2LMHeadModel` has no module `{Q}`; it lacks 4 of the bundle's 4 modules"
    )
    assert [name for name, _ in base.named_modules()] == before


@every_load
def test_suffix_of_a_target_path_is_not_a_target(bundle: Path, load: Load) -> None:
    # The bare Llama has `layers.0...`, which ends as the bundle's paths end.
    with pytest.raises(BundleRefused, match="the base `LlamaModel` has no module"):
        load(tiny_llama().model, bundle)


@every_load
def test_base_of_other_shapes_is_refused(bundle: Path, load: Load) -> None:
    base = tiny_llama()
    base.get_submodule("model.layers.0.self_attn").q_proj = nn.Linear(32, 40, bias=False)
    with pytest.raises(BundleRefused, match=r"`\S+q_proj.meteora_B` is \[24, 32\], expected \[24, 40\]"):
        load(base, bundle)


@pytest.mark.parametrize(
    "layer",
    [nn.Embedding(32, 32), nn.Conv1d(32, 32, 1), nn.MultiheadAttention(32, 4).out_proj],
    ids=lambda layer: type(layer).__name__,
)
def test_module_that_is_not_called_as_a_linear_is_refused(bundle: Path, layer: nn.Module) -> None:
    base = tiny_llama()
    base.get_submodule("model.layers.0.self_attn").q_proj = layer
    with pytest.raises(BundleRefused, match=f"`{Q}` of the base is `{type(layer).__name__}`, expected"):
        through_peft(base, bundle)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_base_that_carries_another_kind_of_adapter_is_refused(bundle: Path, tmp_path: Path) -> None:
    model = tiny_llama()
    model.load_adapter(tmp_path / "small", adapter_name="lora")
    with pytest.raises(BundleRefused, match="already carries an adapter of another kind, `Linear`"):
        model.load_adapter(bundle, adapter_name="bundle")


def test_bundle_whose_tensors_were_never_loaded_does_not_compute(bundle: Path) -> None:
    model = get_peft_model(tiny_llama(), PeftConfig.from_pretrained(bundle))
    with pytest.raises(BundleRefused, match="the tensors of bundle `default` were never loaded: `model"):
        model(some_tokens())


def test_refused_second_bundle_leaves_the_first_working(bundle: Path, tmp_path: Path) -> None:
    broken = write_bundle(tmp_path / "broken", {"small": tmp_path / "small"}, top_k=1)
    change_tensors(broken, remove_a_tensor)
    model = PeftModel.from_pretrained(tiny_llama(), bundle)
    with torch.no_grad():
        before = model(some_tokens()).logits
        with pytest.raises(BundleRefused):
            model.load_adapter(broken, adapter_name="second")
        assert torch.equal(model(some_tokens()).logits, before)


def test_refused_bundle_can_be_deleted_from_a_transformers_model(bundle: Path) -> None:
    model = tiny_llama()
    change_tensors(bundle, remove_a_tensor)
    with pytest.raises(BundleRefused):
        model.load_adapter(bundle)
    model.delete_adapter("default")
    with torch.no_grad():
        assert torch.equal(model(some_tokens()).logits, tiny_llama()(some_tokens()).logits)


def test_pickled_weights_are_refused(bundle: Path) -> None:
    torch.save(load_file(bundle / "adapter_model.safetensors"), bundle / "adapter_model.bin")
    with pytest.raises(BundleRefused, match=r"are `adapter_model.bin`, expected `adapter_model.safetensors`"):
        tiny_llama().load_adapter(bundle, use_safetensors=False)


def test_missing_weights_are_refused(bundle: Path) -> None:
    path = bundle / "adapter_model.safetensors"
    path.unlink()
    with pytest.raises(SourceUnreadable) as caught:
        through_transformers(tiny_llama(), bundle)
    assert str(caught.value) == f"`{path}` cannot be read: no such file"


def test_damaged_weights_are_refused(bundle: Path) -> None:
    path = bundle / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BundleRefused, match=r"`adapter_model.safetensors` is not a safetensors file: "):
        through_transformers(tiny_llama(), bundle)


@pytest.mark.parametrize("method", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
def test_merge_is_refused(bundle: Path, method: str) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundle)
    with pytest.raises(UsageError) as caught:
        getattr(model, method)()
    assert str(caught.value) == (
        "a routed model cannot be merged or unmerged: its weights differ from token to token"
    )


def test_adapter_names_of_a_mixed_batch_are_refused(bundle: Path) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundle)
    tokens = some_tokens(batch=2)
    for call in (model, model.generate):
        with pytest.raises(UsageError, match="`adapter_names` is not supported: a bundle routes every token"):
            call(input_ids=tokens, adapter_names=["default", "__base__"])
