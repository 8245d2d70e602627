"""What transformers' ``load_adapter`` does not do for a bundle: refuse wrong tensors and keep dtypes.

It injects the tuner, reads the weights file itself and only logs what does not fit; the tuner never sees
the file. So the injected model gets, for its next load alone, a ``_load_pretrained_model`` of its own
that looks at the file first. Were that method gone from some future transformers, the tensors that were
never loaded would still stop the first forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..schemas.errors import BundleRefused, SourceUnreadable
from .tensors import allocate_for, layers_with, restore_dtypes

_HOOKED = "_load_pretrained_model"
# Every element type of safetensors that may meet a refusal which names it.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class CheckedLoad:
    """Stands in for one model's ``_load_pretrained_model`` during one load."""

    def __init__(self, model: nn.Module, adapter_name: str) -> None:
        self.model = model
        self.adapter_name = adapter_name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Check what is to be loaded, let transformers load it, and freeze what is not trained."""
        release(self.model)
        found = kwargs.get("state_dict") or _headers_of(kwargs.get("checkpoint_files") or ())
        allocate_for(self.model, self.adapter_name, found, on_base=False)
        result = getattr(self.model, _HOOKED)(*args, **kwargs)
        # Some architectures name modules that are to be float32 whatever the rest is, and theirs too.
        restore_dtypes(self.model, self.adapter_name, found)
        for layer in layers_with(self.model, self.adapter_name).values():
            layer._freeze_non_trainable_peft_weights(self.adapter_name)
        return result


def check_next_load(model: nn.Module, adapter_name: str) -> None:
    """Have the next load into ``model`` checked, if it is transformers that loads."""
    if hasattr(model, _HOOKED):
        model.__dict__[_HOOKED] = CheckedLoad(model, adapter_name)


def release(model: nn.Module) -> None:
    """Let loads into ``model`` be as they were."""
    model.__dict__.pop(_HOOKED, None)


def _headers_of(files: Iterable[str]) -> Mapping[str, Tensor]:
    return {name: tensor for file in files for name, tensor in _header_of(Path(file)).items()}


def _header_of(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise BundleRefused(
            f"the weights of a bundle are `{path.name}`, expected `adapter_model.safetensors`",
            hint="a pickle is never loaded; get the bundle again",
        )
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: _like(piece.get_shape(), piece.get_dtype()) for name, piece in slices.items()}
    except OSError as error:
        raise SourceUnreadable(f"`{path}` cannot be read: {error.strerror or 'no such file'}") from error
    except SafetensorError as error:
        raise BundleRefused(f"`{path.name}` is no safetensors file: {error}") from error


def _like(shape: list[int], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=_DTYPES.get(dtype, torch.uint8), device="meta")
