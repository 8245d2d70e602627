"""Bundles on bases whose weights accelerate keeps elsewhere, in the processor's memory or on disk.

Its hooks bring the tensors of a module back for each call, from a map of their values. PEFT adds a loaded
adapter to that map by the names of LoRA's layers alone, so a bundle's tensors are added here. They stay in
memory beside a base on disk.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..schemas.bundle import TENSOR_PREFIX
from ..schemas.errors import BundleRefused
from .layer import MeteoraLayer


def is_offloaded(layer: MeteoraLayer) -> bool:
    """Return whether the base layer's weights are elsewhere."""
    return layer.base_device.type == "meta"


def execution_device(layer: MeteoraLayer) -> torch.device:
    """Return the device that the base layer computes on."""
    if not is_offloaded(layer):
        return layer.base_device
    found = (getattr(hook, "execution_device", None) for hook in _hooks_of(layer.get_base_layer()))
    return torch.device(next((device for device in found if device is not None), "cpu"))


def placement(base: nn.Module) -> dict[str, Any]:
    """Return the arguments that let PEFT leave each part of a base where its `device_map` put it."""
    placed: Mapping[str, Any] = getattr(base, "hf_device_map", None) or {}
    names = {f"{TENSOR_PREFIX}{path}".rstrip("."): device for path, device in placed.items()}
    return {"device_map": names} if names else {}


def refuse_offloaded(layers: Mapping[str, MeteoraLayer], adapter_name: str) -> None:
    """Refuse layers of an offloaded base, where transformers loads: it leaves their adapters without values.

    Raises:
        BundleRefused: there are some.
    """
    away = [path for path, layer in layers.items() if is_offloaded(layer)]
    if away:
        raise BundleRefused(
            f"{len(away)} of the {len(layers)} modules of bundle `{adapter_name}` are offloaded in the base, "
            f"such as `{away[0]}`, and transformers loads no adapter there",
            hint="load the bundle with `PeftModel.from_pretrained(base, FOLDER)`",
        )


def keep_values(layer: MeteoraLayer, adapter_name: str, values: Mapping[str, Tensor]) -> None:
    """Keep the values of a bundle's tensors in a layer until accelerate's hooks are there to ask for them."""
    layer.meteora_offloaded[adapter_name] = {tensor: value.cpu() for tensor, value in values.items()}


def supply_hooks(layer: MeteoraLayer, adapter_name: str) -> None:
    """Let accelerate's hooks on a layer's tensors find the values that were kept for them."""
    for tensor, value in layer.meteora_offloaded.pop(adapter_name, {}).items():
        for hook in _hooks_of(getattr(layer, tensor)):
            if getattr(hook, "offload", False):
                hook.weights_map = ChainMap({adapter_name: value}, hook.weights_map)


def _hooks_of(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    # Several hooks are one that has them in a list.
    yield from getattr(hook, "hooks", () if hook is None else (hook,))
