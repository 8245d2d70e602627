"""Adapters as PEFT did not save them: one change each to files that it did save."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .verdict_kinds import DENSE, ENCODER, GPT2, NORMALISED_HEAD, QWEN3_MOE, VISION, Kind
from .verdict_options import Case

Tensors = dict[str, Tensor]
Change = Callable[[Tensors, dict[str, Any]], Tensors | None]
PREFIX = "base_model.model."


@dataclass(frozen=True)
class FileCase:
    """A change to the files of an adapter.

    ``change`` returns the new tensors, or changes the config in place and returns nothing;
    ``needs_base`` where the files alone cannot show what is wrong. ``reference`` states what PEFT must
    answer to have loaded the files: as before the change; as it does, for a change that makes another
    sound adapter of it; or nothing will do, for a change that adds what no load can take.
    """

    name: str
    change: Change
    kind: Kind = DENSE
    options: tuple[tuple[str, Any], ...] = ()
    needs_base: bool = False
    reference: Literal["before", "own", "none"] = "before"

    @property
    def original(self) -> Case:
        """The adapter that PEFT saves before the change."""
        options: dict[str, Any] = {"lora_alpha": 16} | dict(self.options)
        return Case(f"before: {self.name}", (), lambda _: options, (self.kind,))

    def write(self, source: Path, target: Path) -> Path:
        """Write a copy of an adapter with the change."""
        shutil.copytree(source, target)
        tensors = load_file(source / "adapter_model.safetensors")
        config = json.loads((source / "adapter_config.json").read_text())
        changed = self.change(tensors, config)
        written = tensors if changed is None else changed
        contiguous = {name: value.clone().contiguous() for name, value in written.items()}
        save_file(contiguous, target / "adapter_model.safetensors", metadata={"format": "pt"})
        (target / "adapter_config.json").write_text(json.dumps(config))
        return target


def _names(rename: Callable[[str], str]) -> Change:
    return lambda tensors, _: {rename(name): value for name, value in tensors.items()}


def _config(**changes: Any) -> Change:
    def change(_: Tensors, config: dict[str, Any]) -> None:
        config.update(changes)

    return change


def without(*fields: str) -> Change:
    """Return the change of a config that lacks these fields."""

    def change(_: Tensors, config: dict[str, Any]) -> None:
        for name in fields:
            config.pop(name)

    return change


def _keep(accept: Callable[[str], bool]) -> Change:
    return lambda tensors, _: {name: value for name, value in tensors.items() if accept(name)}


def _values(convert: Callable[[str, Tensor], Tensor]) -> Change:
    return lambda tensors, _: {name: convert(name, value) for name, value in tensors.items()}


def _add(**added: Tensor) -> Change:
    names = {name.replace("__", "."): value for name, value in added.items()}
    return lambda tensors, _: tensors | names


def _after_prefix(name: str, part: str) -> str:
    return name.replace(PREFIX, PREFIX + part, 1)


def _two_prefixes(name: str) -> str:
    return f"{'policy' if 'layers.0' in name else 'reference'}.{name}"


def _kohya(name: str) -> str:
    path, _, factor = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
    return f"lora_unet_{path.replace('.', '_')}.lora_{'down' if factor == 'lora_A' else 'up'}.weight"


def _swap_factors(name: str) -> str:
    return name.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B")


def _another_layer(tensors: Tensors, _: dict[str, Any]) -> Tensors:
    added = {name.replace("layers.1.", "layers.2."): value for name, value in tensors.items()}
    return tensors | added


def _merged_linear(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Write what PEFT before 0.3 made of GPT-2: two blocks of rank, and B as a grouped convolution."""
    config["enable_lora"] = [True, False, True]
    return {
        name: torch.cat([value, value]) if "lora_A" in name else value[: value.shape[0] * 2 // 3, :, None]
        for name, value in tensors.items()
    }


def _nan(name: str, value: Tensor) -> Tensor:
    return (
        torch.where(value > 0, float("nan"), value)
        if name.endswith("layers.0.self_attn.q_proj.lora_B.weight")
        else value
    )


def _renamed_and_listed(old: str, new: str, targets: str | None = None) -> Change:
    def change(tensors: Tensors, config: dict[str, Any]) -> Tensors:
        config["target_modules"] = targets or _QV
        return {name.replace(old, new): value for name, value in tensors.items()}

    return change


def _separate_experts(_: Tensors, config: dict[str, Any]) -> Tensors:
    """Write one pair per expert, as PEFT did before transformers stacked the experts."""
    config.update(
        target_modules=["gate_proj", "up_proj", "down_proj"],
        target_parameters=None,
        rank_pattern={},
        alpha_pattern={},
    )
    generator = torch.Generator().manual_seed(1)
    features = {"gate_proj": (32, 16), "up_proj": (32, 16), "down_proj": (16, 32)}
    tensors = {}
    for layer, expert, (name, (inner, outer)) in product(range(2), range(4), features.items()):
        path = f"{PREFIX}model.layers.{layer}.mlp.experts.{expert}.{name}"
        tensors[f"{path}.lora_A.weight"] = torch.randn((4, inner), generator=generator)
        tensors[f"{path}.lora_B.weight"] = torch.randn((outer, 4), generator=generator)
    return tensors


_QV = ["q_proj", "v_proj"]
_MARKED = (
    FileCase("nothing changed", _config()),
    FileCase(
        "the adapter's name inside",
        _names(lambda name: name.replace(".lora_A.", ".lora_A.sft.").replace(".lora_B.", ".lora_B.sft.")),
    ),
    FileCase(
        "the name `default` inside",
        _names(
            lambda name: name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        ),
    ),
    FileCase("a base layer inside", _names(lambda name: name.replace(".lora_", ".base_layer.lora_"))),
    FileCase("no `.weight`", _names(lambda name: name.removesuffix(".weight"))),
    FileCase("no prefix", _names(lambda name: name.removeprefix(PREFIX))),
    # The path that is left may be one of a model without a head.
    FileCase(
        "half of the prefix",
        _names(lambda name: name.replace(PREFIX, "base_model.", 1)),
        needs_base=True,
    ),
    FileCase("the prefix twice", _names(lambda name: PREFIX + name)),
    FileCase("a wrapper before the prefix", _names(lambda name: f"module.{name}")),
    FileCase("a wrapper after the prefix", _names(lambda name: _after_prefix(name, "module."))),
    FileCase("compiled, before the prefix", _names(lambda name: f"_orig_mod.{name}")),
    FileCase("compiled, after the prefix", _names(lambda name: _after_prefix(name, "_orig_mod."))),
    FileCase("compiled layers", _names(lambda name: name.replace(".self_attn.", "._orig_mod.self_attn."))),
    FileCase("FSDP", _names(lambda name: name.replace("self_attn.", "_fsdp_wrapped_module.self_attn."))),
    FileCase("a wrapper in one layer", _names(lambda name: name.replace("layers.0.", "layers._orig_mod.0."))),
    FileCase("a foreign prefix", _names(lambda name: f"thinker.{name}")),
    FileCase("a foreign prefix of two parts", _names(lambda name: f"actor.module.{name}")),
    FileCase("two foreign prefixes", _names(_two_prefixes)),
    FileCase("names of kohya", _names(_kohya)),
    FileCase(
        "names of MLX",
        _names(
            lambda name: (
                name.removeprefix(PREFIX)
                .removesuffix(".weight")
                .replace("lora_A", "lora_a")
                .replace("lora_B", "lora_b")
            )
        ),
    ),
    FileCase("old merged linear", _merged_linear, GPT2),
    FileCase(
        "names before transformers 4.52",
        _names(lambda name: name.replace("model.model.language_model.", "model.language_model.model.")),
        VISION,
        (("target_modules", r".*language_model.*(q_proj|v_proj)"),),
    ),
    FileCase(
        "names before transformers 4.52, declared as a list",
        _renamed_and_listed("model.model.language_model.", "model.language_model.model."),
        VISION,
        (("target_modules", r".*language_model.*(q_proj|v_proj)"),),
    ),
    FileCase(
        "names before transformers 4.52, declared by the old path",
        _renamed_and_listed(
            "model.model.language_model.",
            "model.language_model.model.",
            r"language_model\.model\..*(q_proj|v_proj)",
        ),
        VISION,
        (("target_modules", r".*language_model.*(q_proj|v_proj)"),),
        needs_base=True,
    ),
    FileCase(
        "names before transformers 4.52, declared by the new path",
        _renamed_and_listed(
            "model.model.language_model.",
            "model.language_model.model.",
            r"model\.language_model\..*(q_proj|v_proj)",
        ),
        VISION,
        (("target_modules", r".*language_model.*(q_proj|v_proj)"),),
    ),
    FileCase(
        "a text adapter on a vision-language base",
        _renamed_and_listed("model.language_model.", "model."),
        VISION,
        (("target_modules", r".*language_model.*(q_proj|v_proj)"),),
        needs_base=True,
    ),
    FileCase(
        "the body's names on a model with a head",
        _names(lambda name: name.replace("model.bert.", "model.")),
        ENCODER,
        needs_base=True,
    ),
    FileCase(
        "separate experts",
        _separate_experts,
        QWEN3_MOE,
        (("target_modules", ["gate_proj", "up_proj", "down_proj"]),),
        reference="own",
    ),
)

_TARGETS = (
    FileCase("targets narrower than the tensors", _config(target_modules=["q_proj"])),
    FileCase("targets wider than the tensors", _config(target_modules=[*_QV, "o_proj"])),
    FileCase(
        "targets wider, with random factors",
        _config(target_modules=[*_QV, "o_proj"], init_lora_weights=False),
        needs_base=True,
    ),
    FileCase("targets that match nothing", _config(target_modules=["absent"])),
    FileCase("an expression that matches nothing", _config(target_modules="absent.*")),
    FileCase("an expression of a name", _config(target_modules="q_proj")),
    FileCase("two names in one target", _config(target_modules=["q_proj, v_proj"])),
    FileCase("targets that are not layers", _config(target_modules=".*self_attn.*"), needs_base=True),
    FileCase("a norm beside the targets", _config(target_modules=[*_QV, "input_layernorm"]), needs_base=True),
    FileCase("no targets, PEFT's default", _config(target_modules=None)),
    FileCase(
        "no targets, other modules",
        _config(target_modules=None),
        options=(("target_modules", ["k_proj"]),),
        needs_base=True,
    ),
    FileCase("empty targets", _config(target_modules=[])),
    FileCase("targets as a map", _config(target_modules={"q_proj": 1})),
    FileCase("trained modules are excluded", _config(exclude_modules=["v_proj"])),
    FileCase("trained modules are excluded by expression", _config(exclude_modules=r".*\.0\..*")),
    FileCase("trained layers are left out", _config(layers_to_transform=[1])),
    FileCase(
        "a layers pattern that matches nothing", _config(layers_to_transform=[0, 1], layers_pattern="absent")
    ),
    FileCase("a layer more than the base", _another_layer, needs_base=True, reference="none"),
    FileCase(
        "parameters that are not declared",
        _config(target_parameters=None, rank_pattern={}, alpha_pattern={}),
        QWEN3_MOE,
        (("target_modules", ["q_proj"]), ("target_parameters", ["mlp.experts.down_proj"])),
    ),
)

_FIELDS = (
    FileCase("no alpha", without("lora_alpha")),
    FileCase("no rank", without("r")),
    FileCase("another rank", _config(r=8)),
    FileCase("a rank pattern that no tensor has", _config(rank_pattern={"q_proj": 8})),
    FileCase("rank pattern null", _config(rank_pattern=None)),
    FileCase("alpha pattern null", _config(alpha_pattern=None)),
    FileCase("alpha as text", _config(lora_alpha="16")),
    FileCase("a bias that PEFT does not know", _config(bias="some")),
    FileCase("bias of B without tensors", _config(lora_bias=True)),
    FileCase("a task that PEFT does not know", _config(task_type="CAUSAL")),
    FileCase("a task in lower case", _config(task_type="causal_lm")),
    FileCase("method in lower case", _config(peft_type="lora")),
    FileCase("no method", without("peft_type")),
    FileCase("an option that PEFT does not know", _config(use_moslora=True)),
    FileCase("an initialisation that PEFT does not know", _config(init_lora_weights="better")),
    FileCase("LoRA-GA without its gradients", _config(init_lora_weights="lora_ga")),
    FileCase("CorDA without its statistics", _config(init_lora_weights="corda")),
    FileCase("EVA without its options", _config(init_lora_weights="eva")),
    FileCase("LoftQ without its options", _config(init_lora_weights="loftq")),
    FileCase("DoRA flag lost", _config(use_dora=False), options=(("use_dora", True),)),
    FileCase("DoRA flag without vectors", _config(use_dora=True)),
    FileCase("DoRA vectors lost", _keep(lambda name: "magnitude" not in name), options=(("use_dora", True),)),
    FileCase(
        "DoRA vectors as weights",
        _names(lambda name: f"{name}.weight" if name.endswith("magnitude_vector") else name),
        options=(("use_dora", True),),
    ),
    FileCase(
        "saved modules under the wrapper's name",
        _names(lambda name: name.replace("lm_head.", "lm_head.modules_to_save.")),
        options=(("modules_to_save", ["lm_head"]),),
    ),
    FileCase("saved modules without weights", _config(modules_to_save=["lm_head"]), needs_base=True),
    FileCase("saved modules that the base lacks", _config(modules_to_save=["score"])),
    FileCase(
        "saved modules lost", _config(modules_to_save=None), options=(("modules_to_save", ["lm_head"]),)
    ),
    FileCase("saved head with running means", _config(), NORMALISED_HEAD),
    FileCase("token rows without weights", _config(trainable_token_indices=[1, 2])),
    FileCase(
        "token rows lost",
        _config(trainable_token_indices=None),
        options=(("trainable_token_indices", [1, 2]),),
    ),
    FileCase(
        "repeated layers lost",
        _config(layer_replication=None),
        options=(("layer_replication", [(0, 2), (1, 2)]),),
        needs_base=True,
    ),
    FileCase("an activated adapter without its task", _config(alora_invocation_tokens=[1], task_type=None)),
    FileCase("Arrow options", _config(arrow_config={"top_k": 1})),
    FileCase("QA-LoRA flag", _config(use_qalora=True)),
    FileCase("KaSA options without its values", _config(kasa_config={})),
)

_TENSORS = (
    FileCase("A and B swapped", _names(_swap_factors)),
    FileCase("transposed", _values(lambda _, value: value.T)),
    FileCase("one A missing", _keep(lambda name: "layers.0.self_attn.q_proj.lora_A" not in name)),
    FileCase("one B missing", _keep(lambda name: "layers.0.self_attn.q_proj.lora_B" not in name)),
    FileCase("one layer missing", _keep(lambda name: "layers.0." not in name), reference="own"),
    FileCase("every B missing", _keep(lambda name: "lora_B" not in name)),
    FileCase("no tensors", lambda _, __: {}),
    FileCase("empty factors", _values(lambda _, value: value[:0])),
    FileCase("flat factors", _values(lambda _, value: value.flatten())),
    FileCase("one number is NaN", _values(_nan)),
    FileCase("bytes", _values(lambda _, value: value.to(torch.int8))),
    FileCase("float8", _values(lambda _, value: value.to(torch.float8_e4m3fn))),
    FileCase("doubles", _values(lambda _, value: value.double())),
    FileCase("half precision", _values(lambda _, value: value.half()), reference="own"),
    FileCase("brain floats", _values(lambda _, value: value.bfloat16()), reference="own"),
    FileCase("zeros", _values(lambda _, value: value * 0), reference="own"),
    FileCase("an unknown tensor beside", _add(step=torch.zeros(1))),
    FileCase("optimiser state beside", _add(optimizer__state__0__exp_avg=torch.zeros(4))),
    FileCase(
        "a weight of the base beside",
        _add(base_model__model__lm_head__weight=torch.ones(64, 32)),
        reference="own",
    ),
    FileCase("a weight of no module beside", _add(base_model__model__absent__weight=torch.ones(4, 4))),
    FileCase(
        "BD-LoRA options lost",
        _config(use_bdlora=None),
        options=(
            ("target_modules", ["o_proj"]),
            ("use_bdlora", {"target_modules_bd_a": ["o_proj"], "nblocks": 2}),
        ),
        needs_base=True,
    ),
)

FILE_CASES = (*_MARKED, *_TARGETS, *_FIELDS, *_TENSORS)
