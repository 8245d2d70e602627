"""What else the refusing rules are about: variants, experts, overflow, bases, and what files lead to.

``lose`` is the arithmetic of a bundle, W x + s B A x of the linear modules in the file; where a rule
says *not fusable*, it gives another answer than PEFT does, or cannot be formed at all.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)
from transformers.utils.hub import get_checkpoint_shard_files

from meteora_registry.inspection.adapter import inspect_adapter, inspect_config
from support.adapters import AdapterFiles, codes_of, inspect_written
from support.defects import DEFECTS
from support.models import make_adapter, some_tokens, tiny_gpt2, tiny_llama

OPTIONS = {"r": 4, "lora_alpha": 20, "target_modules": ["q_proj", "v_proj"]}
SCALING = 5.0
# What makes a difference; equal results differ by far less.
VISIBLE = 1e-2
EQUAL = 1e-5
PREFIX = "base_model.model."

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(some_tokens()).logits


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def trained(options: object, base: PreTrainedModel) -> torch.nn.Module:
    model = get_peft_model(base, options)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def save(model: torch.nn.Module, folder: Path) -> AdapterFiles:
    model.save_pretrained(folder, save_embedding_layers=False)
    return AdapterFiles.read(folder)


def load(folder: Path, base: PreTrainedModel) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, folder)


def lose(files: AdapterFiles, base: PreTrainedModel) -> PreTrainedModel:
    """The base with s B A added to its linear modules, all that a bundle would carry over."""
    modules = dict(base.named_modules())
    with torch.no_grad():
        for name in files.names("lora_A.weight"):
            path = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            product = files.tensors[name.replace("lora_A", "lora_B")] @ files.tensors[name]
            modules[path].weight += SCALING * product
    return base


def good_files(folder: Path) -> AdapterFiles:
    return AdapterFiles.read(make_adapter(tiny_llama, folder, seed=1, base="org/base", **OPTIONS))


def with_defect(name: str, folder: Path) -> Path:
    files = good_files(folder / "good")
    next(each for each in DEFECTS if each.name == name).change(files)
    return files.write(folder / "changed")


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        pytest.param({"kasa_config": KasaConfig()}, {"MR126", "MR327"}, id="kasa"),
        pytest.param({"alora_invocation_tokens": [3]}, {"MR126"}, id="alora"),
    ],
)
def test_variant_computes_something_else(options: dict[str, object], codes: set[str], tmp_path: Path) -> None:
    model = trained(LoraConfig(**OPTIONS | options), tiny_llama())
    files = save(model, tmp_path)
    assert codes <= set(codes_of(inspect_adapter(tmp_path)))
    assert difference(logits(lose(files, tiny_llama())), logits(model)) > VISIBLE


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
    """Blocks of a factor are no matrix of the layer's size; replicated layers are not in the base."""
    files = save(trained(LoraConfig(**OPTIONS | options), tiny_llama()), tmp_path)
    assert "MR126" in codes_of(inspect_adapter(tmp_path))
    with pytest.raises(error):
        lose(files, tiny_llama())


def test_sampling_variant_is_another_model_in_training(tmp_path: Path) -> None:
    """MonteCLoRA draws its factors anew at every step; a bundle could not be fitted to it."""
    model = trained(LoraConfig(monteclora_config=MontecloraConfig(), **OPTIONS), tiny_llama())
    save(model, tmp_path)
    assert {"MR126", "MR327"} <= set(codes_of(inspect_adapter(tmp_path)))
    model.train()
    assert difference(logits(model), logits(model)) > EQUAL


def test_another_method_leaves_nothing_to_fuse(tmp_path: Path) -> None:
    options = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    model = trained(options, tiny_llama())
    files = save(model, tmp_path)
    assert "MR103" in codes_of(inspect_adapter(tmp_path))
    assert files.names("lora_A.weight") == []
    assert difference(logits(model), logits(tiny_llama())) > EQUAL


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


def test_parameters_of_experts_are_no_linear_modules(tmp_path: Path) -> None:
    """The delta of a stacked parameter is three-dimensional, and no linear module has it."""
    name = "mlp.experts.gate_up_proj"
    base = tiny_mixture()
    assert any(found.endswith(name) for found, _ in base.named_parameters())
    options = LoraConfig(r=4, lora_alpha=20, target_modules=[], target_parameters=[name])
    model = trained(options, base)
    files = save(model, tmp_path)
    assert "MR127" in codes_of(inspect_adapter(tmp_path))
    assert difference(logits(model), logits(tiny_mixture())) > VISIBLE
    linear = {path for path, each in tiny_mixture().named_modules() if isinstance(each, torch.nn.Linear)}
    paths = {found.removeprefix(PREFIX).partition(".lora_")[0] for found in files.tensors}
    assert paths.isdisjoint(linear)


def test_expert_modules_of_older_files_are_gone(tmp_path: Path) -> None:
    files = good_files(tmp_path / "good")
    files.rename("self_attn.q_proj", "block_sparse_moe.experts.0.w1")
    assert "MR326" in codes_of(inspect_written(files, tmp_path / "experts"))
    with pytest.raises(KeyError, match="experts"):
        lose(files, tiny_mixture())


def test_convolution_has_no_matrix_product(tmp_path: Path) -> None:
    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2))

    model = trained(LoraConfig(r=2, lora_alpha=10, target_modules=["0"]), make())
    files = save(model, tmp_path)
    assert "MR309" in codes_of(inspect_adapter(tmp_path))
    with pytest.raises(RuntimeError):
        lose(files, make())


def test_head_of_a_classifier_is_part_of_the_adapter(tmp_path: Path) -> None:
    def make() -> PreTrainedModel:
        torch.manual_seed(0)
        config = copy.deepcopy(tiny_llama().config)
        config.num_labels, config.pad_token_id = 3, 0
        return LlamaForSequenceClassification(config).eval()

    model = trained(LoraConfig(task_type=TaskType.SEQ_CLS, **OPTIONS), make())
    files = save(model, tmp_path)
    assert {"MR130", "MR323"} <= set(codes_of(inspect_adapter(tmp_path)))
    assert difference(logits(lose(files, make())), logits(model)) > VISIBLE


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_vocabulary_layers_of_a_config_carry_a_delta(target: str, tmp_path: Path) -> None:
    model = trained(LoraConfig(**OPTIONS | {"target_modules": ["q_proj", target]}), tiny_llama())
    files = save(model, tmp_path)
    assert "MR136" in codes_of(inspect_config(tmp_path / "adapter_config.json"))
    files.tensors = {name: each for name, each in files.tensors.items() if target not in name}
    assert difference(logits(lose(files, tiny_llama())), logits(model)) > VISIBLE


def test_delta_of_a_tied_layer_changes_two_layers(tmp_path: Path) -> None:
    options = LoraConfig(r=4, lora_alpha=20, target_modules=["lm_head"])
    model = trained(options, tiny_gpt2())
    files = save(model, tmp_path)
    assert "MR324" in codes_of(inspect_adapter(tmp_path))
    assert difference(logits(lose(files, tiny_gpt2())), logits(model)) > VISIBLE


def test_product_that_overflows_spoils_every_output(tmp_path: Path) -> None:
    folder = with_defect("overflow-fp16", tmp_path)
    assert "MR402" in codes_of(inspect_adapter(folder))
    model = PeftModel.from_pretrained(tiny_llama(torch.float16), folder, autocast_adapter_dtype=False)
    module = model.base_model.model.model.layers[0].self_attn.q_proj
    assert not module.get_delta_weight("default").isfinite().all()
    assert not logits(model.merge_and_unload()).isfinite().all()


def test_factor_that_stands_twice_may_be_the_other(tmp_path: Path) -> None:
    files = good_files(tmp_path / "good")
    name = files.names("lora_A.weight")[0]
    files.tensors[name.removeprefix(PREFIX)] = files.tensors[name] * -1
    assert "MR305" in codes_of(inspect_written(files, tmp_path / "one"))
    one = logits(load(tmp_path / "one", tiny_llama()))
    files.tensors[name], files.tensors[name.removeprefix(PREFIX)] = (
        files.tensors[name.removeprefix(PREFIX)],
        files.tensors[name],
    )
    files.write(tmp_path / "other")
    assert difference(logits(load(tmp_path / "other", tiny_llama())), one) > VISIBLE


def deeper_llama(layers: int, *, seed: int = 0, **changes: int) -> PreTrainedModel:
    values = tiny_llama().config.to_dict() | {"num_hidden_layers": layers} | changes
    values.pop("layer_types", None)
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


def test_modules_that_the_base_lacks_are_dropped(tmp_path: Path) -> None:
    """MR501: PEFT loads two layers of three and says nothing that stops anybody."""
    files = save(trained(LoraConfig(**OPTIONS), deeper_llama(3)), tmp_path / "three")
    dropped = logits(load(tmp_path / "three", tiny_llama()))
    files.tensors = {name: each for name, each in files.tensors.items() if ".layers.2." not in name}
    files.write(tmp_path / "two")
    assert torch.equal(dropped, logits(load(tmp_path / "two", tiny_llama())))


def test_shapes_of_another_base_are_a_raw_error(tmp_path: Path) -> None:
    """MR502, MR601: no product of these factors fits."""
    save(trained(LoraConfig(**OPTIONS), deeper_llama(2, hidden_size=64)), tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load(tmp_path, tiny_llama())


def test_module_that_is_not_linear_cannot_be_adapted(tmp_path: Path) -> None:
    """MR503: a normalisation has no product to add to."""
    files = good_files(tmp_path)
    files.rename("self_attn.q_proj", "input_layernorm")
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        lose(files, tiny_llama())


def test_resized_vocabulary_is_a_raw_error(tmp_path: Path) -> None:
    """MR506: the saved output layer does not fit the base's."""
    options = LoraConfig(modules_to_save=["lm_head"], **OPTIONS)
    save(trained(options, deeper_llama(2, vocab_size=65)), tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load(tmp_path, tiny_llama())


def test_adapter_on_another_base_of_equal_shapes_is_silently_wrong(tmp_path: Path) -> None:
    """MR602: shapes agree, and nothing the adapter learned applies."""
    model = trained(LoraConfig(**OPTIONS), tiny_llama())
    save(model, tmp_path)
    assert difference(logits(load(tmp_path, deeper_llama(2, seed=1))), logits(model)) > VISIBLE


def test_link_makes_an_adapter_of_what_lies_elsewhere(tmp_path: Path) -> None:
    """MR002: PEFT follows it, so the folder's own bytes do not say what is loaded."""
    good_files(tmp_path / "good").write(tmp_path / "elsewhere")
    linked = good_files(tmp_path / "other").write(tmp_path / "linked")
    weights = linked / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere" / weights.name)
    assert "MR002" in codes_of(inspect_adapter(linked))
    before = logits(load(linked, tiny_llama()))
    files = good_files(tmp_path / "good")
    files.tensors = {name: tensor * 2 for name, tensor in files.tensors.items()}
    files.write(tmp_path / "elsewhere")
    assert difference(logits(load(linked, tiny_llama())), before) > VISIBLE


class Payload:
    """A pickle of this runs what it likes."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)

    def __init__(self, path: Path) -> None:
        self.path = path


def test_pickle_runs_what_it_carries(tmp_path: Path) -> None:
    """MR004, MR203: reading the weights is running them."""
    data = pickle.dumps(Payload(tmp_path / "ran"))
    files = good_files(tmp_path / "good")
    files.extra, files.absent = {"adapter_model.bin": data}, {"adapter_model.safetensors"}
    assert "MR004" in codes_of(inspect_written(files, tmp_path / "bin"))
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "bin" / "adapter_model.bin").read_bytes())
    assert (tmp_path / "ran").exists()


def test_index_leads_its_reader_out_of_the_folder(tmp_path: Path) -> None:
    """MR006: transformers joins the names of an index to the folder, whatever they are."""
    index = '{"metadata": {}, "weight_map": {"a": "../secret"}}'
    folder = with_defect("index-outside", tmp_path)
    assert "MR006" in codes_of(inspect_adapter(folder))
    path = folder / "adapter_model.safetensors.index.json"
    path.write_text(index, encoding="utf-8")
    (files, _) = get_checkpoint_shard_files(str(folder), str(path))
    assert not Path(files[0]).resolve().is_relative_to(folder.resolve())
