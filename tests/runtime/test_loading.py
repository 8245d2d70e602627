"""The matrix: entry point, base dtype, PEFT's casts, low memory, ``.to()``, save and reload."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import GateNotFittedWarning, MeteoraLayer, force_adapter, load_bundle
from meteora_registry.schemas.errors import UsageError
from support.bundles import write_bundle
from support.examples import TIMES
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_of,
    make_adapter,
    make_llama_adapters,
    save_base,
    tiny_gpt2,
    tiny_llama,
)
from support.task_data import save_text_base

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Load = Callable[[Path, torch.dtype], nn.Module]


@dataclass(frozen=True)
class Setting:
    """One base with a bundle per dtype of the factors."""

    base: Path
    adapters: dict[str, Path]
    bundles: dict[torch.dtype, Path]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("loading")
    base = save_base(tiny_llama(), folder / "base")
    adapters = make_llama_adapters(folder / "adapters", base=str(base))
    bundles = {
        dtype: write_bundle(folder / f"bundle-{dtype}", adapters, base=str(base), dtype=dtype, gate_bias=True)
        for dtype in DTYPES
    }
    return Setting(base, adapters, bundles)


def through_peft_model(bundle: Path, base_dtype: torch.dtype, **options: Any) -> nn.Module:
    return PeftModel.from_pretrained(tiny_llama(base_dtype), bundle, **options)


def through_auto_peft(bundle: Path, base_dtype: torch.dtype, **options: Any) -> nn.Module:
    return AutoPeftModelForCausalLM.from_pretrained(bundle, dtype=base_dtype, **options)


def through_auto_model(bundle: Path, base_dtype: torch.dtype) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(bundle, dtype=base_dtype)


def through_load_adapter(bundle: Path, base_dtype: torch.dtype, **options: Any) -> nn.Module:
    model = tiny_llama(base_dtype)
    model.load_adapter(bundle, **options)
    return model


def _with(load: Callable[..., nn.Module], **options: Any) -> Load:
    return lambda bundle, base_dtype: load(bundle, base_dtype, **options)


LOADS: dict[str, Load] = {
    "PeftModel": through_peft_model,
    "PeftModel-no-autocast": _with(through_peft_model, autocast_adapter_dtype=False),
    "PeftModel-low-memory": _with(through_peft_model, low_cpu_mem_usage=True),
    "PeftModel-low-memory-no-autocast": _with(
        through_peft_model, low_cpu_mem_usage=True, autocast_adapter_dtype=False
    ),
    "PeftModel-trainable": _with(through_peft_model, is_trainable=True),
    "AutoPeftModel": through_auto_peft,
    "AutoPeftModel-low-memory": _with(through_auto_peft, low_cpu_mem_usage=True),
    "AutoModel": through_auto_model,
    "load_adapter": through_load_adapter,
    "load_adapter-trainable": _with(through_load_adapter, is_trainable=True),
}
every_load = pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same_bytes(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


DTYPE_PAIRS = {
    "base-fp32-bundle-fp32": (torch.float32, torch.float32),
    "base-fp32-bundle-bf16": (torch.float32, torch.bfloat16),
    "base-bf16-bundle-fp32": (torch.bfloat16, torch.float32),
    "base-bf16-bundle-bf16": (torch.bfloat16, torch.bfloat16),
    "base-fp16-bundle-fp32": (torch.float16, torch.float32),
    "base-fp16-bundle-fp16": (torch.float16, torch.float16),
}


@pytest.mark.parametrize(
    ("load", "base_dtype", "dtype"),
    [
        pytest.param(load, *DTYPE_PAIRS[pair], id=f"{pair}-{name}")
        for place, (name, load) in enumerate(LOADS.items())
        for number, pair in enumerate(DTYPE_PAIRS)
        if TIMES > 1 or number == place % len(DTYPE_PAIRS)
    ],
)
def test_save_after_load_writes_the_same_tensors(
    setting: Setting, tmp_path: Path, load: Load, base_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    model = load(setting.bundles[dtype], base_dtype)
    before = logits_of(model)
    assert before.dtype == base_dtype
    model.save_pretrained(tmp_path)
    assert_same_bytes(tensors_in(tmp_path), tensors_in(setting.bundles[dtype]))
    assert torch.equal(logits_of(load(tmp_path, base_dtype)), before)


@every_load
def test_cast_of_the_model_leaves_the_bundle_as_it_is(setting: Setting, tmp_path: Path, load: Load) -> None:
    bundle = setting.bundles[torch.float16]
    model = load(bundle, torch.float32)
    for cast in (model.half, model.bfloat16, model.float):
        cast()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert_same_bytes(tensors_in(tmp_path), tensors_in(bundle))
    assert logits_of(model).dtype == torch.bfloat16


def test_module_that_transformers_keeps_in_float32_keeps_the_bundle_as_it_is(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["o_proj"])
    model = through_auto_model(setting.bundles[torch.bfloat16], torch.bfloat16)
    assert model.get_submodule("model.layers.0.self_attn.o_proj").weight.dtype == torch.float32
    model.save_pretrained(tmp_path)
    assert_same_bytes(tensors_in(tmp_path), tensors_in(setting.bundles[torch.bfloat16]))


@pytest.mark.parametrize("widens", [True, False], ids=["autocast", "no-autocast"])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_member_in_half_precision_computes_as_peft_does(
    setting: Setting, tmp_path: Path, dtype: torch.dtype, base_dtype: torch.dtype, widens: bool
) -> None:
    adapter = shutil.copytree(setting.adapters["rank8"], tmp_path / "adapter")
    factors = {name: tensor.to(dtype) for name, tensor in tensors_in(adapter).items()}
    save_file(factors, adapter / "adapter_model.safetensors")
    alone, routed = (
        PeftModel.from_pretrained(tiny_llama(base_dtype), folder, autocast_adapter_dtype=widens).eval()
        for folder in (adapter, setting.bundles[dtype])
    )
    with force_adapter(routed, "rank8"):
        error = relative_error(logits_of(routed), logits_of(alone))
    # Without widening, PEFT rounds between A and B; the kernels sum in float32.
    assert error <= (1e-5 if base_dtype == torch.float32 and widens else 5e-2)


def test_factors_compute_in_the_dtype_asked_for_and_are_saved_in_their_own(
    setting: Setting, tmp_path: Path
) -> None:
    bundle, base = setting.bundles[torch.bfloat16], save_text_base(tmp_path / "base")
    loaded = load_bundle(bundle, base, dtype=torch.bfloat16, factor_dtype=torch.bfloat16)
    factors = [p for name, p in loaded.model.named_parameters() if "meteora_A" in name]
    assert {factor.dtype for factor in factors} == {torch.bfloat16}
    loaded.model.save_pretrained(tmp_path / "saved")
    assert_same_bytes(tensors_in(tmp_path / "saved"), tensors_in(bundle))


def test_factors_that_were_rounded_are_not_saved(setting: Setting, tmp_path: Path) -> None:
    base = save_text_base(tmp_path / "base")
    loaded = load_bundle(setting.bundles[torch.float32], base, factor_dtype=torch.bfloat16)
    assert relative_error(logits_of(loaded.model), logits_of(tiny_llama())) > 0.1
    with pytest.raises(UsageError, match=r"were rounded from `torch.float32` to `torch.bfloat16`"):
        loaded.model.save_pretrained(tmp_path / "rounded")


def test_a_dtype_that_factors_cannot_have_is_refused(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`factor_dtype` is `torch.int8`, expected one of `torch.float32`"):
        load_bundle(
            setting.bundles[torch.float32], save_text_base(tmp_path / "base"), factor_dtype=torch.int8
        )


@every_load
def test_every_entry_point_computes_the_same(setting: Setting, load: Load) -> None:
    bundle = setting.bundles[torch.float32]
    reference = logits_of(through_peft_model(bundle, torch.float32))
    model = load(bundle, torch.float32)
    assert torch.equal(logits_of(model), reference)
    assert relative_error(logits_of(tiny_llama()), reference) > 0.1
    assert not [module for module in model.modules() if "_load_pretrained_model" in module.__dict__]


@every_load
def test_gate_alone_is_trained_and_only_when_asked(
    setting: Setting, load: Load, request: pytest.FixtureRequest
) -> None:
    model = load(setting.bundles[torch.float32], torch.bfloat16)
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    asked = "-trainable" in request.node.name
    assert trained == ({"meteora_gate", "meteora_gate_bias"} if asked else set())


def warning_of(load: Load, bundle: Path) -> str:
    with pytest.warns() as seen:
        load(bundle, torch.float32)
    (warning,) = [entry for entry in seen if entry.category is GateNotFittedWarning]
    return str(warning.message)


@every_load
def test_load_says_once_that_nobody_knows_whether_a_gate_was_fitted(setting: Setting, load: Load) -> None:
    assert warning_of(load, setting.bundles[torch.float32]) == (
        "the gate of bundle `default` came with another layout, which does not state whether it was fitted, "
        "or on what; use one member with `force_adapter(model, NAME)`, "
        "or fit the gates with `meteora-registry gate fit`"
    )


@every_load
def test_load_says_once_that_the_gate_is_not_fitted(setting: Setting, load: Load, tmp_path: Path) -> None:
    # A bundle like the setting's, but for the gate: linear and without a bias, it is the drawn one.
    bundle = write_bundle(tmp_path / "bundle", setting.adapters, base=str(setting.base))
    assert warning_of(load, bundle) == (
        "the gate of bundle `default` is not fitted: which of its 5 members a token takes means nothing yet; "
        "use one member with `force_adapter(model, NAME)`, or fit the gates with `meteora-registry gate fit`"
    )


@pytest.mark.parametrize(
    "load", [LOADS["PeftModel"], LOADS["load_adapter"]], ids=["PeftModel", "load_adapter"]
)
def test_layers_stand_at_exactly_the_paths_of_the_bundle(
    setting: Setting, tmp_path: Path, load: Load
) -> None:
    adapter = setting.base.parent / "adapters" / "last-layer"
    model = load(write_bundle(tmp_path, {"only": adapter}, top_k=1), torch.float32)
    found = {name for name, module in model.named_modules() if isinstance(module, MeteoraLayer)}
    assert {name.removeprefix("base_model.model.") for name in found} == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }


def test_injection_and_state_dict_by_hand_give_the_same_model(setting: Setting) -> None:
    bundle = setting.bundles[torch.bfloat16]
    model = inject_adapter_in_model(PeftConfig.from_pretrained(bundle), tiny_llama())
    set_peft_model_state_dict(model, tensors_in(bundle))
    assert torch.equal(logits_of(model), logits_of(through_peft_model(bundle, torch.float32)))
    assert_same_bytes(
        {f"base_model.model.{name}": t for name, t in get_peft_model_state_dict(model).items()},
        tensors_in(bundle),
    )
    assert "_load_pretrained_model" not in model.__dict__


def test_tensors_loaded_over_others_are_saved_in_their_own_dtype(setting: Setting) -> None:
    bundle = setting.bundles[torch.bfloat16]
    model = inject_adapter_in_model(PeftConfig.from_pretrained(bundle), tiny_llama())
    for loaded in (bundle, setting.bundles[torch.float32]):
        set_peft_model_state_dict(model, tensors_in(loaded))
        assert_same_bytes(
            {f"base_model.model.{name}": t for name, t in get_peft_model_state_dict(model).items()},
            tensors_in(loaded),
        )


def test_save_keeps_the_config(setting: Setting, tmp_path: Path) -> None:
    model = through_peft_model(setting.bundles[torch.float32], torch.float32)
    model.save_pretrained(tmp_path)
    saved = PeftModel.from_pretrained(tiny_llama(), tmp_path).peft_config["default"]
    assert saved.bundle == model.peft_config["default"].bundle


def test_save_keeps_the_paths_of_many_modules(tmp_path: Path) -> None:
    # PEFT shortens a list of twenty paths or more to suffixes.
    def base() -> nn.Module:
        return tiny_gpt2(layers=7)

    targets = ["c_attn", "c_proj", "c_fc"]
    adapter = make_adapter(base, tmp_path / "a", seed=1, r=2, target_modules=targets, fan_in_fan_out=True)
    model = PeftModel.from_pretrained(base(), write_bundle(tmp_path / "bundle", {"a": adapter}, top_k=1))
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert len(saved["target_modules"]) == 28
    assert "transformer.h.6.mlp.c_fc" in saved["target_modules"]
