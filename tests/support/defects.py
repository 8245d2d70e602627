"""A generator of defects: a good adapter, one thing wrong with it, and the codes that must be found.

The codes are written from the table of known defects, not from what the rules say.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .adapters import AdapterFiles, entry, safetensors_bytes

BROKEN, NOT_FUSABLE, ACCEPTED = "broken, not fusable", "sound, not fusable", "sound, fusable"
BROKEN_FOR_USE = "broken for use, fusable"
Change = Callable[[AdapterFiles], object]


@dataclass(frozen=True)
class Defect:
    """A change of a good adapter, with the expected verdict and codes."""

    name: str
    verdict: str
    codes: list[str]
    change: Change


def field(name: str, value: object) -> Change:
    """Set a field of the config."""
    return lambda files: files.config.__setitem__(name, value)


def without(name: str) -> Change:
    """Remove a field of the config."""
    return lambda files: files.config.pop(name)


def raw_config(data: bytes) -> Change:
    """Replace the config's bytes."""
    return lambda files: setattr(files, "raw_config", data)


def raw_weights(data: bytes) -> Change:
    """Replace the weights' bytes."""
    return lambda files: setattr(files, "raw_weights", data)


def rename(old: str, new: str) -> Change:
    """Rename tensors."""
    return lambda files: files.rename(old, new)


def first(ending: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Change the first tensor of that ending."""

    def apply(files: AdapterFiles) -> None:
        name = files.names(ending)[0]
        files.tensors[name] = change(files.tensors[name])

    return apply


def every(ending: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Change every tensor of that ending."""

    def apply(files: AdapterFiles) -> None:
        for name in files.names(ending):
            files.tensors[name] = change(files.tensors[name])

    return apply


def add(name: str, tensor: torch.Tensor) -> Change:
    """Add a tensor."""
    return lambda files: files.tensors.__setitem__(name, tensor)


def remove(ending: str, *, count: int = 1) -> Change:
    """Remove the first tensors of that ending."""
    return lambda files: [files.tensors.pop(name) for name in files.names(ending)[:count]]


def only(files_with: dict[str, bytes], *absent: str) -> Change:
    """Add files and leave others out."""

    def apply(files: AdapterFiles) -> None:
        files.extra |= files_with
        files.absent |= set(absent)

    return apply


def put(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """Return a copy with its first element replaced."""
    changed = tensor.clone()
    changed.view(-1)[0] = value
    return changed


def both(*changes: Change) -> Change:
    """Return several changes."""
    return lambda files: [change(files) for change in changes]


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
HTML = b"<!DOCTYPE html>\n<html><title>Sign in</title></html>"
LAYER = "base_model.model.model.layers.0.self_attn."
PREFIX = "base_model.model."

_RANKS = [
    Defect(f"rank-{name}", BROKEN, ["MR111"], change)
    for name, change in {
        "missing": without("r"),
        "zero": field("r", 0),
        "text": field("r", "4"),
        "fraction": field("r", 4.0),
        "true": field("r", True),
        "negative": field("r", -4),
    }.items()
]
_ALPHAS = [
    Defect(f"alpha-{name}", BROKEN, ["MR112"], change)
    for name, change in {
        "missing": without("lora_alpha"),
        "zero": field("lora_alpha", 0),
        "text": field("lora_alpha", "8"),
        "huge": field("lora_alpha", 10**400),
    }.items()
]
_VARIANTS = [
    Defect(name, NOT_FUSABLE, ["MR126"], field(name, value))
    for name, value in {
        "alora_invocation_tokens": [1, 2],
        "layer_replication": [[0, 2]],
        "use_bdlora": {"nblocks": 2},
        "use_qalora": True,
        "monteclora_config": {"num_samples": 2},
        "megatron_config": {"a": 1},
    }.items()
]
_INITIALISATIONS = [
    Defect(f"initialisation-{name}", NOT_FUSABLE, ["MR123"], field("init_lora_weights", name))
    for name in ("pissa", "pissa_niter_16", "olora", "lora_ga", "OLoRA")
]
_UNLOADABLE = [
    Defect(name, BROKEN, codes, change)
    for name, codes, change in (
        ("bias-unknown", ["MR108"], field("bias", "some")),
        ("initialisation-corda", ["MR108"], field("init_lora_weights", "corda")),
        ("initialisation-loftq", ["MR108", "MR123"], field("init_lora_weights", "loftq")),
        ("arrow_config", ["MR108", "MR126"], field("arrow_config", {"top_k": 1})),
        (
            "alora-without-task",
            ["MR108", "MR126"],
            both(field("alora_invocation_tokens", [1]), field("task_type", None)),
        ),
        ("kasa_config", ["MR126", "MR330"], field("kasa_config", {})),
    )
]

CONFIG_DEFECTS = [
    *_RANKS,
    *_ALPHAS,
    *_VARIANTS,
    *_INITIALISATIONS,
    *_UNLOADABLE,
    Defect("alpha-negative", NOT_FUSABLE, ["MR120"], field("lora_alpha", -8)),
    Defect("pattern-alpha-negative", NOT_FUSABLE, ["MR120"], field("alpha_pattern", {"q_proj": -4})),
    Defect("pattern-null", BROKEN, ["MR113"], field("rank_pattern", None)),
    Defect("rank-unlike-tensors", BROKEN, ["MR119"], field("r", 5)),
    Defect("rank-pattern-unlike-tensors", BROKEN, ["MR119"], field("rank_pattern", {"q_proj": 2})),
    Defect("dora", BROKEN, ["MR121", "MR330"], field("use_dora", True)),
    Defect("rslora-text", BROKEN, ["MR107"], field("use_rslora", "false")),
    Defect("pattern-without-match", ACCEPTED, ["MR117"], field("rank_pattern", {"q_prj": 4})),
    Defect("alpha-pattern-without-match", ACCEPTED, ["MR117"], field("alpha_pattern", {"q_prj": 4})),
    Defect("pattern-list", BROKEN, ["MR113"], field("rank_pattern", ["q_proj"])),
    Defect("pattern-rank-text", BROKEN, ["MR113"], field("rank_pattern", {"q_proj": "4"})),
    Defect("pattern-alpha-zero", BROKEN, ["MR113"], field("alpha_pattern", {"q_proj": 0})),
    Defect("pattern-broken", BROKEN, ["MR114"], field("alpha_pattern", {"(q_proj": 4})),
    Defect("pattern-look-ahead", NOT_FUSABLE, ["MR115"], field("alpha_pattern", {"(?!v).*q_proj": 4})),
    Defect("pattern-too-long", NOT_FUSABLE, ["MR115"], field("alpha_pattern", {"q|" * 2000: 4})),
    Defect("pattern-hostile", ACCEPTED, ["MR116", "MR117"], field("alpha_pattern", {"(a+)+$": 4})),
    Defect("targets-hostile", BROKEN, ["MR116", "MR134"], field("target_modules", "(a|a+)+$")),
    Defect("targets-broken", BROKEN, ["MR114"], field("target_modules", "(q_proj")),
    Defect("bias-all", NOT_FUSABLE, ["MR122"], field("bias", "all")),
    Defect("bias-lora-only", NOT_FUSABLE, ["MR122"], field("bias", "lora_only")),
    Defect("lora-bias", NOT_FUSABLE, ["MR122"], field("lora_bias", True)),
    Defect("modules-to-save", NOT_FUSABLE, ["MR129"], field("modules_to_save", ["lm_head"])),
    Defect("classifier", NOT_FUSABLE, ["MR130"], field("task_type", "SEQ_CLS")),
    Defect("token-indices", BROKEN, ["MR128", "MR330"], field("trainable_token_indices", [1, 2])),
    Defect("initialisation-unknown", BROKEN, ["MR125"], field("init_lora_weights", "magic")),
    Defect(
        "target-parameters", NOT_FUSABLE, ["MR127"], field("target_parameters", ["mlp.experts.gate_up_proj"])
    ),
    Defect("targets-narrower", BROKEN, ["MR134"], field("target_modules", ["q_proj"])),
    Defect("targets-wider", ACCEPTED, ["MR135"], field("target_modules", ["q_proj", "v_proj", "o_proj"])),
    Defect("targets-empty", BROKEN, ["MR131", "MR134"], field("target_modules", [])),
    Defect("targets-of-a-name", BROKEN, ["MR134"], field("target_modules", "q_proj")),
    Defect("targets-excluded", BROKEN, ["MR134"], field("exclude_modules", ["v_proj"])),
    Defect("layers-left-out", BROKEN, ["MR134"], field("layers_to_transform", [1])),
    Defect("modules-saved-and-adapted", BROKEN, ["MR129", "MR134"], field("modules_to_save", ["self_attn"])),
    Defect("targets-null", ACCEPTED, ["MR131"], field("target_modules", None)),
    Defect("targets-number", BROKEN, ["MR133"], field("target_modules", 7)),
    Defect(
        "targets-two-in-one",
        BROKEN,
        ["MR132", "MR134", "MR135"],
        field("target_modules", ["q_proj", "v_proj, o_proj"]),
    ),
    Defect(
        "layers-beside-text",
        BROKEN,
        ["MR138"],
        both(field("target_modules", ".*(q|v)_proj"), field("layers_to_transform", [0, 1])),
    ),
    Defect("type-missing", BROKEN, ["MR101"], without("peft_type")),
    Defect("type-unknown", BROKEN, ["MR102"], field("peft_type", "SUPERLORA")),
    Defect("type-lower-case", BROKEN, ["MR102"], field("peft_type", "lora")),
    Defect("type-adalora", NOT_FUSABLE, ["MR103"], field("peft_type", "ADALORA")),
    Defect("type-bundle", NOT_FUSABLE, ["MR104"], field("peft_type", "METEORA")),
    Defect(
        "mlx-config", BROKEN, ["MR101"], both(without("peft_type"), field("lora_parameters", {"rank": 8}))
    ),
    Defect("unknown-field", ACCEPTED, ["MR105"], field("enable_lora", [True])),
    Defect("task-unknown", BROKEN, ["MR106"], field("task_type", "CHAT")),
    Defect("task-null", ACCEPTED, [], field("task_type", None)),
    Defect("base-null", ACCEPTED, ["MR141"], field("base_model_name_or_path", None)),
    Defect("base-path", ACCEPTED, ["MR142"], field("base_model_name_or_path", "/content/drive/llama")),
    Defect("base-windows-path", ACCEPTED, ["MR142"], field("base_model_name_or_path", "D:\\models\\llama")),
    Defect(
        "base-mirror", ACCEPTED, ["MR143"], field("base_model_name_or_path", "unsloth/llama-3.2-1b-bnb-4bit")
    ),
    Defect("base-renamed", ACCEPTED, ["MR144"], field("base_model_name_or_path", "THUDM/chatglm-6b")),
    Defect("config-missing", BROKEN, ["MR001"], only({}, CONFIG)),
    Defect("config-no-json", BROKEN, ["MR013"], raw_config(b"{'r': 8}")),
    Defect("config-key-twice", BROKEN, ["MR013"], raw_config(b'{"r": 8, "r": 16}')),
    Defect("config-nan", BROKEN, ["MR013"], raw_config(b'{"lora_alpha": NaN}')),
    Defect("config-deep", BROKEN, ["MR013"], raw_config(b'{"r":' + b"[" * 100 + b"]" * 100 + b"}")),
    Defect("config-list", BROKEN, ["MR014"], raw_config(b"[]")),
    Defect("config-lfs", BROKEN, ["MR011"], raw_config(LFS)),
    Defect("config-html", BROKEN, ["MR011"], raw_config(HTML)),
    Defect("config-huge", BROKEN, ["MR012"], raw_config(b" " * ((1 << 20) + 1))),
    Defect("config-empty", BROKEN, ["MR013"], raw_config(b"")),
]

WEIGHT_DEFECTS = [
    *(
        Defect(f"prefix-{name}", BROKEN_FOR_USE, ["MR303"], rename(PREFIX, prefix))
        for name, prefix in {
            "none": "",
            "module": "module.base_model.model.",
            "compiled": "_orig_mod.base_model.model.",
            "fsdp": "_fsdp_wrapped_module.base_model.model.",
            "doubled": "base_model.model.base_model.model.",
            "foreign": "thinker.base_model.model.",
        }.items()
    ),
    Defect("adapter-name", ACCEPTED, ["MR313"], rename(".weight", ".default.weight")),
    Defect("adapter-name-inside", BROKEN, ["MR329"], rename(".weight", ".sft.weight")),
    Defect("name-without-weight", BROKEN, ["MR329"], rename(".weight", "")),
    Defect("base-layer-inside", BROKEN, ["MR329"], rename(".lora_", ".base_layer.lora_")),
    Defect(
        "saved-under-the-wrapper",
        BROKEN,
        ["MR323", "MR329"],
        add("lm_head.modules_to_save.weight", torch.ones(2)),
    ),
    Defect(
        "prefixes-two",
        BROKEN,
        ["MR303", "MR304"],
        both(rename(PREFIX + "model.layers.0", "policy." + PREFIX + "model.layers.0")),
    ),
    Defect("prefix-unknown", BROKEN, ["MR304"], rename(PREFIX + "model", "base_model")),
    Defect("path-unusable", BROKEN, ["MR304"], rename("self_attn", "self attn\x1b[31m")),
    Defect("kohya", BROKEN, ["MR302"], rename(PREFIX + "model.layers.", "lora_unet_")),
    Defect("lora-down", BROKEN, ["MR302", "MR306"], rename("lora_A", "lora_down")),
    Defect("comfyui", BROKEN, ["MR302"], rename(PREFIX, "diffusion_model.")),
    Defect(
        "mlx-names",
        BROKEN,
        ["MR302"],
        both(rename("lora_A.weight", "lora_a"), rename("lora_B.weight", "lora_b")),
    ),
    Defect("a-alone", BROKEN, ["MR306"], remove("lora_B.weight")),
    Defect("b-alone", BROKEN, ["MR306"], remove("lora_A.weight")),
    Defect("ranks-disagree", BROKEN, ["MR308"], first("lora_A.weight", lambda a: a[:2])),
    Defect(
        "swapped",
        BROKEN,
        ["MR119", "MR308"],
        both(rename("lora_A", "x"), rename("lora_B", "lora_A"), rename(".x.", ".lora_B.")),
    ),
    Defect("transposed", BROKEN, ["MR119", "MR308"], every("weight", lambda tensor: tensor.T)),
    Defect("one-dimension", BROKEN, ["MR307"], every("weight", lambda tensor: tensor.reshape(-1))),
    Defect("zero-size", BROKEN, ["MR307"], every("weight", lambda tensor: torch.zeros(0))),
    Defect("zero-rows", BROKEN, ["MR307"], every("lora_A.weight", lambda tensor: torch.zeros(0, 32))),
    Defect("merged-linear", BROKEN, ["MR308"], every("lora_B.weight", lambda tensor: tensor[:, :, None])),
    Defect("convolution", NOT_FUSABLE, ["MR309"], every("weight", lambda tensor: tensor[:, :, None, None])),
    Defect(
        "layer-missing",
        ACCEPTED,
        ["MR312"],
        both(remove("0.self_attn.v_proj.lora_A.weight"), remove("0.self_attn.v_proj.lora_B.weight")),
    ),
    Defect("nan", BROKEN, ["MR401"], first("lora_A.weight", lambda a: put(a, float("nan")))),
    Defect("infinity", BROKEN, ["MR401"], first("lora_B.weight", lambda b: put(b, float("inf")))),
    Defect(
        "negative-infinity-bf16",
        BROKEN,
        ["MR401"],
        every("weight", lambda t: put(t, float("-inf")).bfloat16()),
    ),
    Defect("overflow", BROKEN, ["MR402"], every("weight", lambda t: t * 1e25)),
    Defect("overflow-fp16", BROKEN, ["MR402"], every("weight", lambda t: (t * 1e3).half())),
    Defect("overflow-in-half-only", ACCEPTED, ["MR403"], every("weight", lambda t: t * 1e3)),
    Defect("untrained", ACCEPTED, ["MR404"], every("lora_B.weight", torch.zeros_like)),
    Defect("float64", ACCEPTED, ["MR311"], every("weight", torch.Tensor.double)),
    Defect("mixed-dtypes", ACCEPTED, [], every("lora_A.weight", torch.Tensor.bfloat16)),
    Defect("float8", BROKEN, ["MR310"], every("weight", lambda t: t.to(torch.float8_e4m3fn))),
    Defect("int8", BROKEN, ["MR310"], every("weight", lambda t: t.to(torch.int8))),
    Defect("weights-lfs", BROKEN, ["MR201"], raw_weights(LFS)),
    Defect("weights-html", BROKEN, ["MR202"], raw_weights(HTML)),
    Defect("weights-pickle-inside", BROKEN, ["MR203"], raw_weights(pickle.dumps({"a": 1}))),
    Defect("weights-empty", BROKEN, ["MR204"], raw_weights(b"")),
    Defect("weights-absurd-length", BROKEN, ["MR205"], raw_weights(b"\xff" * 99)),
    Defect("weights-no-json", BROKEN, ["MR206"], raw_weights(safetensors_bytes(b"{not json}"))),
    Defect("weights-name-twice", BROKEN, ["MR206"], raw_weights(safetensors_bytes(b'{"a":1,"a":1}'))),
    Defect(
        "weights-tensors",
        BROKEN,
        ["MR211"],
        raw_weights(safetensors_bytes(b"{" + b",".join(b'"%d":1' % n for n in range(50_002)) + b"}")),
    ),
    Defect("weights-entry", BROKEN, ["MR207"], raw_weights(safetensors_bytes({"a": 1}))),
    Defect(
        "weights-size",
        BROKEN,
        ["MR208"],
        raw_weights(safetensors_bytes({"a": entry("F32", [2], 0, 4)}, b"0123")),
    ),
    Defect(
        "weights-hole",
        BROKEN,
        ["MR209"],
        raw_weights(safetensors_bytes({"a": entry("U8", [2], 2, 4)}, b"0123")),
    ),
    Defect(
        "weights-truncated",
        BROKEN,
        ["MR210"],
        lambda files: setattr(files, "raw_weights", files.weights()[:-1]),
    ),
    Defect(
        "weights-trailing",
        BROKEN,
        ["MR210"],
        lambda files: setattr(files, "raw_weights", files.weights() + b"\0"),
    ),
    Defect("no-lora", BROKEN, ["MR301"], raw_weights(safetensors_bytes({}))),
    Defect(
        "full-model",
        BROKEN,
        ["MR301"],
        lambda files: setattr(files, "tensors", {"model.norm.weight": torch.ones(4)}),
    ),
    Defect(
        "factor-twice",
        BROKEN,
        ["MR303", "MR305"],
        lambda files: add(files.names("lora_A.weight")[0].removeprefix(PREFIX), torch.ones(4, 32))(files),
    ),
    Defect(
        "factor-named-otherwise",
        BROKEN,
        ["MR301", "MR328"],
        both(rename(".lora_", ".low_rank_"), rename(".weight", "")),
    ),
    Defect("unknown-tensor", NOT_FUSABLE, ["MR328"], add("mystery", torch.ones(3))),
    Defect(
        "magnitudes", BROKEN, ["MR321", "MR330"], add(LAYER + "q_proj.lora_magnitude_vector", torch.ones(32))
    ),
    Defect("bias-in-file", NOT_FUSABLE, ["MR322"], add(LAYER + "q_proj.bias", torch.ones(32))),
    Defect("lora-bias-in-file", NOT_FUSABLE, ["MR322"], add(LAYER + "q_proj.lora_B.bias", torch.ones(32))),
    Defect("full-weight-in-file", NOT_FUSABLE, ["MR323"], add(LAYER + "o_proj.weight", torch.ones(32, 32))),
    Defect("resized-vocabulary", NOT_FUSABLE, ["MR323"], add(PREFIX + "lm_head.weight", torch.ones(65, 32))),
    Defect(
        "embedding",
        NOT_FUSABLE,
        ["MR324"],
        add(PREFIX + "model.embed_tokens.lora_embedding_A", torch.ones(4, 64)),
    ),
    Defect(
        "output-layer",
        BROKEN,
        ["MR134", "MR324"],
        both(
            add(PREFIX + "lm_head.lora_A.weight", torch.ones(4, 32)),
            add(PREFIX + "lm_head.lora_B.weight", torch.ones(64, 4)),
        ),
    ),
    Defect(
        "token-rows",
        NOT_FUSABLE,
        ["MR325"],
        add(PREFIX + "model.embed_tokens.token_adapter.trainable_tokens_delta", torch.ones(2, 32)),
    ),
    Defect("experts", BROKEN, ["MR134", "MR135", "MR326"], rename("self_attn.q_proj", "mlp.experts.0.w1")),
    Defect("kasa-in-file", BROKEN, ["MR327", "MR330"], add(LAYER + "q_proj.lora_diag", torch.ones(4))),
]

FILE_DEFECTS = [
    Defect("weights-missing", BROKEN, ["MR003"], only({}, WEIGHTS)),
    Defect("weights-in-mlx-file", BROKEN, ["MR003"], only({"adapters.safetensors": b"x"}, WEIGHTS)),
    Defect("pickle-only", BROKEN, ["MR004"], only({"adapter_model.bin": b"\x80\x02."}, WEIGHTS)),
    Defect("pickle-too", ACCEPTED, ["MR007"], only({"adapter_model.bin": b"\x80\x02."})),
    Defect(
        "sharded",
        BROKEN,
        ["MR005"],
        only({WEIGHTS + ".index.json": b'{"weight_map": {"a": "m-1.safetensors"}}'}, WEIGHTS),
    ),
    Defect(
        "index-outside",
        BROKEN,
        ["MR005", "MR006"],
        only({WEIGHTS + ".index.json": b'{"weight_map": {"a": "../secret"}}'}, WEIGHTS),
    ),
    Defect(
        "index-absolute",
        BROKEN,
        ["MR006"],
        only({WEIGHTS + ".index.json": b'{"weight_map": {"a": "/etc/passwd"}}'}),
    ),
    Defect(
        "in-subfolder",
        BROKEN,
        ["MR001"],
        only({"checkpoint-500/adapter_config.json": b"{}"}, CONFIG, WEIGHTS),
    ),
    Defect("several", ACCEPTED, ["MR009"], only({"checkpoint-500/adapter_config.json": b"{}"})),
    Defect("code-beside", ACCEPTED, ["MR008"], only({"modeling.py": b"import os", "data.zip": b"PK"})),
    Defect("folder-in-place", BROKEN, ["MR002"], only({WEIGHTS + "/x": b""}, WEIGHTS)),
]

DEFECTS = [*CONFIG_DEFECTS, *WEIGHT_DEFECTS, *FILE_DEFECTS]
