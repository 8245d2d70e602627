"""The kinds of gates: how each turns a token x into one logit per adapter.

Every kind starts from the products z = G x with the gate's rows and finishes them; the bias is added last. A
kind is registered in ``GATE_KINDS`` once, in its torch forms, and read by ``routing.py``, ``reference.py``
and by what fits gates. Its Triton form is in ``gpu_kernels.py``, which alone may import triton. Shapes are
those of ``layout.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GateKind:
    """One kind of gate.

    Attributes:
        define: the definition, of G [L, h], x [..., h] and eps: the reference by which the other forms are
            judged, so it uses none of them.
        finish: the logits of z [..., L], x and eps; in the dtype of its operands.
        of_one: the logits of G, one token x [h], a bias or None, and eps, in as few operations as that takes:
            in decoding each costs more than its arithmetic.
        reads_length: whether the Triton kernels have to sum ``||x||^2`` too.
        scale_input: what the gate multiplies G with, of x and eps, if the kind is linear in G: then a gate
            can be fitted in closed form on these inputs. None if it is not.
    """

    define: Callable[[Tensor, Tensor, float], Tensor]
    finish: Callable[[Tensor, Tensor, float], Tensor]
    of_one: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    reads_length: bool = False
    scale_input: Callable[[Tensor, float], Tensor] | None = None


def _length_of(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length


def _linear_of_one(G: Tensor, x: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return torch.mv(G, x) if bias is None else torch.addmv(bias, G, x)


def _absolute_of_one(G: Tensor, x: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    logits = torch.mv(G, x).abs_()
    return logits if bias is None else logits.add_(bias)


def _normalised_of_one(G: Tensor, x: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    share = 1 / (math.sqrt(torch.dot(x, x).item()) + eps)
    return torch.mv(G, x).mul_(share) if bias is None else torch.addmv(bias, G, x, alpha=share)


GATE_KINDS: dict[str, GateKind] = {
    "linear": GateKind(
        define=lambda G, x, eps: x @ G.T,
        finish=lambda z, x, eps: z,
        of_one=_linear_of_one,
        scale_input=lambda x, eps: x,
    ),
    "absolute": GateKind(
        define=lambda G, x, eps: (x @ G.T).abs(),
        finish=lambda z, x, eps: z.abs(),
        of_one=_absolute_of_one,
    ),
    "normalised": GateKind(
        define=lambda G, x, eps: (x @ G.T) / (x.norm(dim=-1, keepdim=True) + eps),
        finish=lambda z, x, eps: z / (_length_of(x) + eps),
        of_one=_normalised_of_one,
        reads_length=True,
        scale_input=lambda x, eps: x / (_length_of(x) + eps),
    ),
}
