"""Adapters whose answer is not W x + s B A x of linear modules, which is all that a bundle holds."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig
from pydantic import ValidationError
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from meteora_registry.inspection.adapter import inspect_adapter, inspect_config
from meteora_registry.schemas.bundle import Override
from support.adapters import AdapterFiles, codes_of, inspect_written
from support.evidence import (
    EQUAL,
    OPTIONS,
    PREFIX,
    VISIBLE,
    defective_files,
    difference,
    good_files,
    load,
    lose,
    save,
    trained,
)
from support.models import logits_of, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def biased_llama() -> PreTrainedModel:
    """Return the tiny Llama with biases in its attention, as Qwen has them."""
    config = copy.deepcopy(tiny_llama().config)
    config.attention_bias = True
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def trained_with_biases(options: LoraConfig) -> PreTrainedModel:
    model = get_peft_model(biased_llama(), options)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.3 if "lora_" in name else 0.1))
    return model.eval()


def save_all(model: PreTrainedModel, folder: Path) -> AdapterFiles:
    """Write the adapter with the layers of the vocabulary that belong to it."""
    model.save_pretrained(folder)
    return AdapterFiles.read(folder)


@pytest.mark.rule("MR121", "MR321")
def test_dora_without_its_flag_is_silently_wrong(tmp_path: Path) -> None:
    model = trained_with_biases(LoraConfig(use_dora=True, **OPTIONS))
    right = logits_of(model)
    lost = save_all(model, tmp_path / "dora")
    assert codes_of(inspect_written(lost, tmp_path / "a")) == ["MR121", "MR141", "MR321"]
    lost.config["use_dora"] = False
    lost.write(tmp_path / "lost")
    silent = logits_of(load(tmp_path / "lost", biased_llama()))
    assert difference(silent, right) > VISIBLE
    assert codes_of(inspect_written(lost, tmp_path / "lost")) == ["MR141", "MR321", "MR330"]


@pytest.mark.rule("MR120")
def test_bundle_holds_no_negative_scaling(tmp_path: Path) -> None:
    negated = defective_files("alpha-negative")
    assert codes_of(inspect_written(negated, tmp_path / "negated")) == ["MR120"]
    assert difference(logits_of(load(tmp_path / "negated")), logits_of(tiny_llama())) > VISIBLE
    with pytest.raises(ValidationError, match="greater than"):
        Override(rank=4, scaling=-2.0)


def options_of_rules(codes: set[str], name: str, **options: object) -> object:
    """Return the case of options of PEFT that show these rules."""
    return pytest.param(options, codes, marks=pytest.mark.rule(*codes), id=name)


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        options_of_rules({"MR122"}, "bias-all", bias="all"),
        options_of_rules({"MR122"}, "bias-lora-only", bias="lora_only"),
        options_of_rules({"MR122", "MR322"}, "lora-bias", lora_bias=True),
        options_of_rules({"MR129", "MR323"}, "modules-to-save", modules_to_save=["lm_head"]),
        options_of_rules({"MR123"}, "pissa", init_lora_weights="pissa"),
        options_of_rules({"MR123"}, "olora", init_lora_weights="olora"),
        options_of_rules({"MR128", "MR325"}, "tokens", trainable_token_indices=list(range(64))),
        options_of_rules({"MR324"}, "output-layer", target_modules=["q_proj", "lm_head"]),
        options_of_rules({"MR324"}, "embedding", target_modules=["q_proj", "embed_tokens"]),
    ],
)
def test_factors_alone_are_not_the_adapter(
    options: dict[str, object], codes: set[str], tmp_path: Path
) -> None:
    model = trained_with_biases(LoraConfig(**OPTIONS | options))
    right = logits_of(model)
    files = save_all(model, tmp_path)
    inspection = inspect_written(files, tmp_path)
    assert codes <= set(codes_of(inspection))
    assert not inspection.verdict.fusable
    assert inspection.verdict.sound
    files.tensors = {name: each for name, each in files.tensors.items() if "lm_head" not in name}
    assert difference(logits_of(lose(files, biased_llama())), right) > 1e-3


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        options_of_rules({"MR126", "MR327"}, "kasa", kasa_config=KasaConfig()),
        # MR603 repeats for several adapters what another rule found in one of them.
        options_of_rules({"MR126", "MR603"}, "alora", alora_invocation_tokens=[3]),
    ],
)
def test_variant_computes_something_else(options: dict[str, object], codes: set[str], tmp_path: Path) -> None:
    model = trained(LoraConfig(**OPTIONS | options), tiny_llama())
    files = save(model, tmp_path)
    assert codes - {"MR603"} <= set(codes_of(inspect_adapter(tmp_path)))
    assert difference(logits_of(lose(files, tiny_llama())), logits_of(model)) > VISIBLE


@pytest.mark.rule("MR126")
@pytest.mark.parametrize(
    ("options", "error"),
    [
        pytest.param(
            {"use_bdlora": BdLoraConfig(["q_proj"], ["v_proj"], nblocks=2)}, RuntimeError, id="block-diagonal"
        ),
        pytest.param({"layer_replication": [(0, 2), (0, 2)]}, KeyError, id="layer-replication"),
    ],
)
def test_variant_has_no_product_on_the_base(
    options: dict[str, object], error: type[Exception], tmp_path: Path
) -> None:
    """A factor's blocks are not a matrix of the layer's size; the base has no replicated layers."""
    files = save(trained(LoraConfig(**OPTIONS | options), tiny_llama()), tmp_path)
    assert "MR126" in codes_of(inspect_adapter(tmp_path))
    with pytest.raises(error):
        lose(files, tiny_llama())


@pytest.mark.rule("MR126", "MR327")
@pytest.mark.parametrize(
    "options", [pytest.param({"monteclora_config": MontecloraConfig()}, id="monteclora")]
)
def test_sampling_variant_is_another_model_in_training(options: dict[str, object], tmp_path: Path) -> None:
    """MonteCLoRA draws its factors anew at every step, so a bundle could not be fitted to it."""
    model = trained(LoraConfig(**OPTIONS | options), tiny_llama())
    save(model, tmp_path)
    assert {"MR126", "MR327"} <= set(codes_of(inspect_adapter(tmp_path)))
    model.train()
    assert difference(logits_of(model), logits_of(model)) > EQUAL


@pytest.mark.rule("MR103")
def test_another_method_leaves_nothing_to_fuse(tmp_path: Path) -> None:
    options = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    model = trained(options, tiny_llama())
    files = save(model, tmp_path)
    assert "MR103" in codes_of(inspect_adapter(tmp_path))
    assert files.names("lora_A.weight") == []
    assert difference(logits_of(model), logits_of(tiny_llama())) > EQUAL


def tiny_mixture() -> PreTrainedModel:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
    )
    return MixtralForCausalLM(config).eval()


@pytest.mark.rule("MR127")
def test_parameters_of_experts_are_no_linear_modules(tmp_path: Path) -> None:
    """The delta of a stacked parameter is three-dimensional, and no linear module has it."""
    name = "mlp.experts.gate_up_proj"
    base = tiny_mixture()
    assert any(found.endswith(name) for found, _ in base.named_parameters())
    options = LoraConfig(r=4, lora_alpha=20, target_modules=[], target_parameters=[name])
    model = trained(options, base)
    files = save(model, tmp_path)
    assert "MR127" in codes_of(inspect_adapter(tmp_path))
    assert difference(logits_of(model), logits_of(tiny_mixture())) > VISIBLE
    linear = {path for path, each in tiny_mixture().named_modules() if isinstance(each, torch.nn.Linear)}
    paths = {found.removeprefix(PREFIX).partition(".lora_")[0] for found in files.tensors}
    assert paths.isdisjoint(linear)


@pytest.mark.rule("MR326")
def test_expert_modules_of_older_files_are_gone(tmp_path: Path) -> None:
    files = good_files()
    files.rename("self_attn.q_proj", "block_sparse_moe.experts.0.w1")
    assert "MR326" in codes_of(inspect_written(files, tmp_path / "experts"))
    with pytest.raises(KeyError, match="experts"):
        lose(files, tiny_mixture())


@pytest.mark.rule("MR309")
def test_convolution_has_no_matrix_product(tmp_path: Path) -> None:
    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2))

    model = trained(LoraConfig(r=2, lora_alpha=10, target_modules=["0"]), make())
    files = save(model, tmp_path)
    assert "MR309" in codes_of(inspect_adapter(tmp_path))
    with pytest.raises(RuntimeError):
        lose(files, make())


@pytest.mark.rule("MR130")
def test_head_of_a_classifier_is_part_of_the_adapter(tmp_path: Path) -> None:
    def make() -> PreTrainedModel:
        torch.manual_seed(0)
        config = copy.deepcopy(tiny_llama().config)
        config.num_labels, config.pad_token_id = 3, 0
        return LlamaForSequenceClassification(config).eval()

    model = trained(LoraConfig(task_type=TaskType.SEQ_CLS, **OPTIONS), make())
    files = save(model, tmp_path)
    assert {"MR130", "MR323"} <= set(codes_of(inspect_adapter(tmp_path)))
    assert difference(logits_of(lose(files, make())), logits_of(model)) > VISIBLE


@pytest.mark.rule("MR136")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_vocabulary_layers_of_a_config_carry_a_delta(target: str, tmp_path: Path) -> None:
    model = trained(LoraConfig(**OPTIONS | {"target_modules": ["q_proj", target]}), tiny_llama())
    files = save(model, tmp_path)
    assert "MR136" in codes_of(inspect_config(tmp_path / "adapter_config.json"))
    files.tensors = {name: each for name, each in files.tensors.items() if target not in name}
    assert difference(logits_of(lose(files, tiny_llama())), logits_of(model)) > VISIBLE


@pytest.mark.rule("MR508")
def test_delta_of_a_tied_layer_changes_two_layers(tmp_path: Path) -> None:
    options = LoraConfig(r=4, lora_alpha=20, target_modules=["lm_head"])
    model = trained(options, tiny_gpt2())
    files = save(model, tmp_path)
    assert "MR324" in codes_of(inspect_adapter(tmp_path))
    assert difference(logits_of(lose(files, tiny_gpt2())), logits_of(model)) > VISIBLE


@pytest.mark.rule("MR402")
def test_product_that_overflows_spoils_every_output(tmp_path: Path) -> None:
    folder = defective_files("overflow-fp16").write(tmp_path)
    assert "MR402" in codes_of(inspect_adapter(folder))
    model = PeftModel.from_pretrained(tiny_llama(torch.float16), folder, autocast_adapter_dtype=False)
    module = model.base_model.model.model.layers[0].self_attn.q_proj
    assert not module.get_delta_weight("default").isfinite().all()
    assert not logits_of(model.merge_and_unload()).isfinite().all()


@pytest.mark.rule("MR305")
def test_factor_that_stands_twice_may_be_the_other(tmp_path: Path) -> None:
    files = good_files()
    name = files.names("lora_A.weight")[0]
    files.tensors[name.removeprefix(PREFIX)] = files.tensors[name] * -1
    assert "MR305" in codes_of(inspect_written(files, tmp_path / "one"))
    one = logits_of(load(tmp_path / "one", tiny_llama()))
    files.tensors[name], files.tensors[name.removeprefix(PREFIX)] = (
        files.tensors[name.removeprefix(PREFIX)],
        files.tensors[name],
    )
    files.write(tmp_path / "other")
    assert difference(logits_of(load(tmp_path / "other", tiny_llama())), one) > VISIBLE
