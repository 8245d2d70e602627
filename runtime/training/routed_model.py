"""A bundle with new gates on its base, in memory: only the gates are trained."""

from __future__ import annotations

import warnings
from dataclasses import fields

from peft import PeftModel
from peft.utils.save_and_load import set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...bundle import Bundle
from ...fuser.refit import NewGates, refitted_config
from ...fuser.tensor_files import TensorFile
from ...schemas.bundle import (
    FACTORS,
    TENSOR_GATE,
    TENSOR_GATE_BIAS,
    TENSOR_PREFIX,
    WEIGHTS_FILE,
    tensor_name,
)
from ..peft_config import MeteoraConfig

_ADAPTER = "default"


def routed_model(base: PreTrainedModel, bundle: Bundle, new: NewGates) -> PeftModel:
    """Put a bundle's factors on the base, with other gates, which alone require gradients.

    Raises:
        BundleRefused: the base does not fit the bundle.
        SourceUnreadable: the bundle's weights cannot be read.
    """
    config = refitted_config(bundle.config, new)
    known = {entry.name for entry in fields(MeteoraConfig)}
    value = {key: each for key, each in config.model_dump(mode="json").items() if key in known}
    peft_config = MeteoraConfig(**value | {"inference_mode": False})
    # The fit has opened the bundle, and the result is verified as a whole.
    peft_config.is_checked = True
    with warnings.catch_warnings():
        # PEFT asks transformers for it at every load.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = PeftModel(base, peft_config, adapter_name=_ADAPTER)
    set_peft_model_state_dict(model, _tensors_of(bundle, new), adapter_name=_ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = _is_trained(name)
    return model


def _tensors_of(bundle: Bundle, new: NewGates) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    with TensorFile(bundle.folder / WEIGHTS_FILE, bundle.header) as file:
        for path in bundle.config.target_modules:
            names = [tensor_name(path, tensor) for tensor in FACTORS]
            tensors |= {name: file.read(name) for name in names}
    for path, (rows, bias) in new.values.items():
        tensors[tensor_name(path, TENSOR_GATE)] = rows
        tensors[tensor_name(path, TENSOR_GATE_BIAS)] = bias
    return tensors


def _is_trained(name: str) -> bool:
    return name.endswith((f".{TENSOR_GATE}.{_ADAPTER}", f".{TENSOR_GATE_BIAS}.{_ADAPTER}"))


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a routed model's gates by path and tensor, in the order of the modules."""
    return {
        name.removeprefix(TENSOR_PREFIX).removesuffix(f".{_ADAPTER}"): parameter
        for name, parameter in model.named_parameters()
        if _is_trained(name)
    }
