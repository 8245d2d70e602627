"""Tensor names: the module and factor that a name denotes, and the kinds of the other names.

PEFT writes ``base_model.model.<module>.lora_A.weight``. Wrappers (DDP, torch.compile, FSDP) and old
versions of PEFT leave known marks in a name, and a model that was a part of another one a prefix; these are
taken out, exactly. A name that is not a factor has one of a few known kinds, or is unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from ..schemas.bundle import TENSOR_PREFIX

# Marks that wrappers insert anywhere in a path, as whole parts of it.
WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# DistributedDataParallel and DeepSpeed put this in front of everything; within a path it may be real.
_DDP_PREFIX = "module."
# The name under which PEFT holds an adapter by default; its own files do not carry it.
_ADAPTER_PART = "default"
_ADAPTER = re.compile(rf"(\.lora_(?:[AB]|embedding_[AB]|magnitude_vector))\.{_ADAPTER_PART}(?=\.|$)")
ADAPTER_MARK = f".{_ADAPTER_PART}"
NO_PREFIX = "no prefix"
# Appended to the text before PEFT's own prefix, so that it differs from the other marks.
FOREIGN_PREFIX = ". before the prefix"

_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<factor>[AB])(?P<adapter>\.default)?\.weight")
# What PEFT calls a module that it wrapped; once for each further parameter that it wrapped there.
_WRAPPED = ".base_layer"
# The ends of the names of what variants of LoRA keep besides A and B: KaSA and MonteCLoRA.
_VARIANT = re.compile(r".+\.(lora_diag|lora_monteclora_sampler\..+)")
_EMBEDDING_FACTOR = re.compile(r"(?P<path>.+)\.lora_embedding_(?P<factor>[AB])(\.default)?(\.weight)?")
_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
MAX_PATH_CHARACTERS = 512

# Names that only one tool writes, and the tool.
_FOREIGN = (
    (re.compile(r"lora_(unet|te\d?|transformer)_.*"), "kohya"),
    (re.compile(r".*[._]lora[._](down|up)\.weight"), "kohya or old diffusers"),
    (re.compile(r"diffusion_model\..*"), "ComfyUI"),
    (re.compile(r"(unet|text_encoder(_2)?|transformer\.(single_)?transformer_blocks)\..*"), "diffusers"),
    (re.compile(r".*\.lora_[ab]"), "MLX"),
    (re.compile(r".*\.(hada_w[12]_[ab]|lokr_w[12].*|oft_blocks|dora_scale)"), "LyCORIS"),
    (re.compile(r".*\.(meteora_(A|B|gate|gate_bias)|moe_gate\.weight)"), "MeteoRA bundle"),
)


# All of them in one expression, so that most names cost one match.
_ANY_FOREIGN = re.compile("|".join(f"(?:{pattern.pattern})" for pattern, _ in _FOREIGN))


class TensorKind(StrEnum):
    """The kind of a tensor, by its name alone; ``FACTOR`` is an A or a B of a linear module."""

    FACTOR = "factor"
    EMBEDDING_FACTOR = "embedding factor"
    MAGNITUDE = "DoRA magnitude"
    FACTOR_BIAS = "bias of a LoRA factor"
    VARIANT = "part of a LoRA variant"
    # It looks like LoRA's, and is a name that PEFT neither writes nor reads.
    MISNAMED = "misnamed LoRA tensor"
    # What VeLoRA keeps for its backward pass; the forward pass does not use it.
    TRAINING_STATE = "training state"
    TOKENS = "trained token rows"
    FULL_WEIGHT = "full weight"
    FULL_BIAS = "full bias"
    SAVED = "part of a saved module"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class FactorKey:
    """A module's path in the base model, the factor, and the marks taken out of the name to get there.

    ``depth`` is how often PEFT wrapped the module again after this factor: the parameters of one module are
    wrapped one around the other. ``is_inside`` is whether a module around this one is adapted, too.
    """

    path: str
    factor: Literal["A", "B"]
    marks: tuple[str, ...] = ()
    depth: int = 0
    is_inside: bool = False


def parse_key(name: str) -> FactorKey | None:
    """Return the module and factor that a tensor name denotes, if it is a LoRA factor of a plain module."""
    match = _FACTOR.fullmatch(name)
    if not match:
        return None
    stripped, marks = strip_marks(match["path"])
    if match["adapter"]:
        marks = (*marks, ADAPTER_MARK)
    factor: Literal["A", "B"] = "A" if match["factor"] == "A" else "B"
    if _WRAPPED not in stripped:
        return FactorKey(stripped, factor, marks)
    depth = 0
    while stripped.endswith(_WRAPPED):
        stripped, depth = stripped.removesuffix(_WRAPPED), depth + 1
    inside = stripped.replace(f"{_WRAPPED}.", ".")
    return FactorKey(inside, factor, marks, depth, is_inside=inside != stripped)


def strip_marks(path: str) -> tuple[str, tuple[str, ...]]:
    """Return a module path without the prefix of PEFT and the marks of wrappers, and those marks."""
    marks: list[str] = []
    if any(part in path for part in WRAPPER_PARTS):
        parts = path.split(".")
        marks += [f"{part}." for part in WRAPPER_PARTS if part in parts]
        path = ".".join(part for part in parts if part not in WRAPPER_PARTS)
    if path.startswith(_DDP_PREFIX):
        marks.append(_DDP_PREFIX)
        path = path.removeprefix(_DDP_PREFIX)
    if not path.startswith(TENSOR_PREFIX):
        before, found, after = path.partition(f".{TENSOR_PREFIX}")
        if not found:
            return path, (*marks, NO_PREFIX)
        path = TENSOR_PREFIX + after
        marks.append(f"{before}{FOREIGN_PREFIX}")
    path = path.removeprefix(TENSOR_PREFIX)
    while path.startswith(TENSOR_PREFIX):
        marks.append(f"doubled {TENSOR_PREFIX}")
        path = path.removeprefix(TENSOR_PREFIX)
    if path.startswith(_DDP_PREFIX):
        marks.append(_DDP_PREFIX)
        path = path.removeprefix(_DDP_PREFIX)
    return path, tuple(marks)


def is_module_path(path: str) -> bool:
    """Return whether a path can be one of a module: dotted words of bounded length."""
    return len(path) <= MAX_PATH_CHARACTERS and _PATH.fullmatch(path) is not None


def name_format(name: str) -> str | None:
    """Return the tool that writes such names, if it is a known one other than PEFT."""
    if not _ANY_FOREIGN.fullmatch(name):
        return None
    return next(tool for pattern, tool in _FOREIGN if pattern.fullmatch(name))


def normalise(name: str) -> str:
    """Return a tensor's name as PEFT writes it, without marks."""
    if classify(name) is TensorKind.UNKNOWN:
        return name
    return _ADAPTER.sub(r"\1", TENSOR_PREFIX + strip_marks(name)[0])


def classify(name: str) -> TensorKind:
    """Return the kind of a tensor, by its name."""
    return read_name(name)[0]


def read_name(name: str) -> tuple[TensorKind, FactorKey | None]:
    """Return the kind of a tensor, by its name, with the module and factor of a factor."""
    key = parse_key(name)
    if key and name.startswith(TENSOR_PREFIX):
        return TensorKind.FACTOR, key
    if name_format(name):
        return TensorKind.FOREIGN, None
    return (TensorKind.FACTOR, key) if key else (_classify_other(name), None)


def _classify_other(name: str) -> TensorKind:
    if _EMBEDDING_FACTOR.fullmatch(name):
        return TensorKind.EMBEDDING_FACTOR
    if "lora_magnitude_vector" in name:
        return TensorKind.MAGNITUDE
    if re.search(r"\.lora_[AB](\.default)?\.bias$", name):
        return TensorKind.FACTOR_BIAS
    if "trainable_tokens" in name:
        return TensorKind.TOKENS
    if ".lora_velora_" in name:
        return TensorKind.TRAINING_STATE
    if _VARIANT.fullmatch(name):
        return TensorKind.VARIANT
    if ".lora_" in name:
        return TensorKind.MISNAMED
    if name.endswith(".bias"):
        return TensorKind.FULL_BIAS
    if name.endswith((".weight", ".gamma", ".beta")):
        return TensorKind.FULL_WEIGHT
    return TensorKind.UNKNOWN
