"""Routing: which adapters serve each token, and with what weight.

On purpose apart from the kernels that multiply factors. A `Routing` can come from a linear's own gate, from
the gate of another linear that shares its decision, or from a fixed choice: the kernels treat all alike.
Logits are fp32 in a model of any dtype: bf16 logits of 28 adapters tie often enough to change which adapter a
token takes. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .gate_kinds import GATE_KINDS


@dataclass(frozen=True, slots=True)
class Routing:
    """The k adapters of each token and their weights: int64 and float32, both [..., k]."""

    selection: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class FixedRouting:
    """A routing that is the same for every token, known to the host: k adapters and their weights."""

    adapters: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def to(cls, adapter: int) -> Self:
        """Return the routing that sends every token to one adapter with weight 1."""
        return cls((adapter,), (1.0,))

    def for_tokens(self, leading_shape: Sequence[int], device: torch.device | str) -> Routing:
        """Return the same as tensors for tokens of this shape, [..., k]."""
        shape = (*leading_shape, len(self.adapters))
        return Routing(
            torch.tensor(self.adapters, dtype=torch.int64, device=device).expand(shape),
            torch.tensor(self.weights, dtype=torch.float32, device=device).expand(shape),
        )


@dataclass(frozen=True, slots=True)
class Gate:
    """All that turns a token into a routing: the arguments of `gate_logits` and `select_top_k` in one.

    Attributes:
        weight: float32 [L, h].
        bias: float32 [L], or None.
        kind: one of `GATE_KINDS`.
        top_k: how many adapters serve each token.
        temperature: of the softmax over the kept logits.
        eps: read by the kind `normalised` alone.
    """

    weight: Tensor
    bias: Tensor | None
    kind: str
    top_k: int
    temperature: float = 1.0
    eps: float = 1e-6

    @property
    def fields(self) -> tuple[Tensor, Tensor | None, str, int, float, float]:
        """Return all attributes in their order: an operator of torch takes no value of a class."""
        return self.weight, self.bias, self.kind, self.top_k, self.temperature, self.eps

    def takes(self, top_k: int, temperature: float) -> bool:
        """Return whether the gate takes so many adapters, at this temperature."""
        return self.top_k == top_k and self.temperature == temperature

    def route(self, x: Tensor) -> Routing:
        """Return the routing of x [..., h]."""
        logits = gate_logits(x, self.weight, self.bias, kind=self.kind, eps=self.eps)
        return select_top_k(logits, self.top_k, temperature=self.temperature)

    def route_on_host(self, x: Tensor) -> FixedRouting:
        """Return the routing of one token x [h], as `route` does; nothing is checked."""
        logits = GATE_KINDS[self.kind].of_one(self.weight, x.float(), self.bias, self.eps)
        return _best(logits.tolist(), self.top_k, self.temperature)


def gate_logits(
    x: Tensor, gate: Tensor, bias: Tensor | None = None, *, kind: str, eps: float = 1e-6
) -> Tensor:
    """Return the gate's float32 logits [..., L], computed in fp32 under any autocast.

    With ``G`` the gate and ``b`` the bias (0 without one): `linear` is ``G x + b``, `absolute` is
    ``|G x| + b``, `normalised` is ``G x / (||x|| + eps) + b``.

    Args:
        x: [..., h], any floating dtype.
        gate: float32 [L, h].
        bias: float32 [L], or None.
        kind: one of `GATE_KINDS`.
        eps: read by `normalised` alone.

    Raises:
        ValueError: if the kind is unknown or a dtype or shape does not fit.
    """
    check_gate(x, gate, bias, kind)
    with torch.autocast(device_type=x.device.type, enabled=False):
        x = x.float()
        logits = GATE_KINDS[kind].finish(torch.nn.functional.linear(x, gate), x, eps)
        return logits if bias is None else logits + bias


def select_top_k(logits: Tensor, top_k: int, *, temperature: float = 1.0) -> Routing:
    """Return the k highest logits' adapters, best first, weighted by ``softmax(logits / temperature)``.

    Equal logits go to the lowest index first, which `torch.topk` does not promise; `_best` here and `_top_k`
    of the Triton kernels follow the same rule. The softmax runs over the kept k alone, so k = 1 gives exactly
    1.0 and its gradient is exactly zero. Differentiable in `logits` through the weights.

    Args:
        logits: float32 [..., L].
        top_k: adapters per token, 1 to L.
        temperature: above 0.

    Raises:
        ValueError: if `top_k`, the temperature or the dtype does not fit.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`logits` is {logits.dtype}, expected torch.float32; half types tie too often")
    check_top_k(logits.shape, top_k, temperature)
    kept, selection = torch.sort(logits, dim=-1, descending=True, stable=True)
    weights = torch.softmax(kept[..., :top_k] / temperature, dim=-1)
    return Routing(selection[..., :top_k].contiguous(), weights)


def joined_routings(of_tokens: Sequence[FixedRouting], x: Tensor) -> Routing:
    """Return the routings of x's tokens [..., h] as tensors [..., k]."""
    shape = (*x.shape[:-1], len(of_tokens[0].adapters))
    selection = torch.tensor([each.adapters for each in of_tokens], dtype=torch.int64, device=x.device)
    weights = torch.tensor([each.weights for each in of_tokens], dtype=torch.float32, device=x.device)
    return Routing(selection.view(shape), weights.view(shape))


def fixed_routings(routing: Routing) -> tuple[FixedRouting, ...]:
    """Return the rows of a routing [B, k], on the host."""
    rows = zip(routing.selection.tolist(), routing.weights.tolist(), strict=True)
    return tuple(FixedRouting(tuple(adapters), tuple(weights)) for adapters, weights in rows)


def _best(logits: list[float], top_k: int, temperature: float) -> FixedRouting:
    """Return the k highest logits' adapters as `select_top_k` does, for one token."""
    # With a NaN or +inf among them torch decides: Python's comparisons and `exp` treat those differently.
    if not sum(logits) < math.inf:
        return fixed_routings(select_top_k(torch.tensor([logits]), top_k, temperature=temperature))[0]
    if top_k == 1:
        # The first of the highest.
        return FixedRouting((logits.index(max(logits)),), (1.0,))
    # Stable, so that equal logits go to the lowest index first.
    adapters = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[:top_k]
    highest = logits[adapters[0]]
    shares = [math.exp((logits[adapter] - highest) / temperature) for adapter in adapters]
    total = sum(shares)
    return FixedRouting(tuple(adapters), tuple([share / total for share in shares]))


def check_gate(x: Tensor, gate: Tensor, bias: Tensor | None, kind: str) -> None:
    """Refuse a gate that does not fit x [..., h].

    Raises:
        ValueError: if the kind is unknown or a dtype or shape does not fit.
    """
    if kind not in GATE_KINDS:
        raise ValueError(
            f"gate kind is `{kind}`, expected one of {', '.join(f'`{name}`' for name in GATE_KINDS)}"
        )
    if not x.is_floating_point():
        raise ValueError(f"`x` is {x.dtype}, expected a floating dtype")
    if gate.dtype != torch.float32:
        raise ValueError(
            f"`gate` is {gate.dtype}, expected torch.float32; keep gates out of a model-wide cast"
        )
    if gate.ndim != 2 or x.ndim < 1 or gate.shape[1] != x.shape[-1]:
        raise ValueError(
            f"`gate` is {list(gate.shape)} for `x` {list(x.shape)}, expected [L, h] with h the last of `x`"
        )
    if bias is not None and (bias.dtype != torch.float32 or bias.shape != gate.shape[:1]):
        raise ValueError(
            f"gate bias is {bias.dtype} {list(bias.shape)}, expected torch.float32 [{gate.shape[0]}]"
        )


def check_top_k(logits_shape: Sequence[int], top_k: int, temperature: float) -> None:
    """Refuse a selection that logits [..., L] cannot give.

    Raises:
        ValueError: if `top_k` or the temperature does not fit.
    """
    if not logits_shape or not 1 <= top_k <= logits_shape[-1]:
        raise ValueError(
            f"top_k is {top_k} for logits {list(logits_shape)}, expected 1 to the number of adapters, "
            "the last dimension"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a number above 0")
