"""Operands for routed LoRA: random, but scaled so that no term of the sum vanishes beside another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meteora_registry.kernels.reference import reference_routed_lora
from meteora_registry.kernels.routed_lora import routed_lora
from meteora_registry.kernels.routing import select_top_k


@dataclass
class Operands:
    """The arguments of `routed_lora`, by name."""

    x: Tensor
    A: Tensor
    Bt: Tensor
    offsets: list[int]
    scaling: list[float]
    selection: Tensor
    weights: Tensor

    def routed(self) -> Tensor:
        return routed_lora(**vars(self))

    def reference(self) -> Tensor:
        return reference_routed_lora(**vars(self))

    def to_double(self) -> Operands:
        floats = {name: value.double() for name, value in vars(self).items() if is_floating(value)}
        return Operands(**{**vars(self), **floats})


def is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def operands(
    ranks: Sequence[int],
    *,
    T: int = 5,
    h: int = 16,
    D: int = 24,
    k: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: str = "cpu",
    leading: Sequence[int] | None = None,
) -> Operands:
    """Return operands with a real routing: top-k of random logits, every tie class possible."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    leading = (T,) if leading is None else tuple(leading)
    offsets = [0, *itertools.accumulate(ranks)]
    routing = select_top_k(normal(*leading, len(ranks)), k)
    return Operands(
        x=normal(*leading, h).to(device, dtype),
        A=(normal(offsets[-1], h) / h**0.5).to(device, dtype),
        Bt=normal(offsets[-1], D).to(device, dtype),
        offsets=offsets,
        scaling=[0.5 + 0.25 * index for index in range(len(ranks))],
        selection=routing.selection.to(device),
        weights=routing.weights.to(device),
    )
