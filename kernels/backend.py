"""Which implementation serves a call: Triton on a GPU that has it, torch operations everywhere else."""

from __future__ import annotations

import functools
import importlib.util
from typing import Protocol

import torch
from torch import Tensor

from . import products
from .layout import Layout
from .routing import Gate, Routing


class Backend(Protocol):
    """What the modules ``products`` and ``gpu_products`` both offer; x is [T, h], out [T, D]."""

    def forward(
        self, x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing, out: Tensor | None = None
    ) -> Tensor:
        """Return the routed output [T, D], added into `out` where one is given."""

    def forward_with_z(
        self, x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        """Return the routed output [T, D], and z [T, k, R] in the accumulation dtype."""

    def gated_forward(
        self, x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, gate: Gate, out: Tensor
    ) -> Routing:
        """Return the gate's routing of x, after adding the output it routes to `out`."""

    def backward(
        self, grad: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        """Return dx [T, h], and ``u = dO Bt_i^T`` per slot, [T, k, R] in the accumulation dtype."""

    def factors_gradient(self, z: Tensor, v: Tensor, layout: Layout, routing: Routing) -> Tensor:
        """Return [N, d] in the dtype of v [T, d]: per adapter ``sum over its slots of w_j s_i z_j^T v_t``.

        With ``z = u`` and ``v = x`` it is dA, with z itself and ``v = dO`` it is dBt.
        """


def backend_for(x: Tensor, layout: Layout) -> Backend:
    """Return the module that serves the call, decided by device, dtype and shapes alone."""
    if not x.is_cuda or not has_triton(x.device):
        return products
    from . import gpu_products

    return gpu_products if gpu_products.serves(x, layout) else products


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Return whether the Triton kernels run on this GPU: NVIDIA since sm80 (bf16), with triton installed."""
    if torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
