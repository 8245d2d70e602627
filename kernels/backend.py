"""Which implementation serves a call: Triton on a GPU that has it, torch operations everywhere else."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from . import products
from .layout import Layout


def backend_for(x: Tensor, layout: Layout) -> ModuleType:
    """Return the module that serves the call: ``gpu_products`` or ``products``, whose functions are the same.

    `forward`, `forward_with_z`, `gated_forward`, `backward` and `experts_gradient`; decided by device, dtype
    and shapes alone.
    """
    if x.device.type != "cuda" or not has_triton(x.device):
        return products
    from . import gpu_products

    return gpu_products if gpu_products.serves(x, layout) else products


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Return whether the Triton kernels run on this GPU: NVIDIA since sm80 (bf16), with triton installed."""
    if torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
