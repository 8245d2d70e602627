"""Shrink and expand over the adapters present, each with the tokens that chose it.

Slots are sorted by adapter, each group is one small product, and adapters nobody chose cost nothing. For
the CPU, and for the gradients of the factors themselves. Shapes are those of ``layout.py``, the row form of
z is that of ``slots.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .operands import accumulation_dtype, multipliable, multiplied_dtype
from .slots import Slots


@dataclass(frozen=True, slots=True)
class Group:
    """One adapter with those who chose it.

    Attributes:
        rows: the adapter's rows in the storage.
        slots: the group's slots among the sorted ones.
        z: their values in the sorted row form.
        tokens: their tokens: int64 [n].
        everyone: whether those are 0 .. T - 1.
    """

    rows: slice
    slots: slice
    z: slice
    tokens: Tensor
    everyone: bool

    def of_tokens(self, v: Tensor) -> Tensor:
        """Return this group's rows of `v` [T, d], without a copy where it has all of them."""
        return multipliable(v if self.everyone else v.index_select(0, self.tokens))

    def of_z(self, sorted_z: Tensor) -> Tensor:
        """Return this group's part of z in sorted row form, a view [n, R_i]."""
        return sorted_z[self.z].view(len(self.tokens), self.rows.stop - self.rows.start)


def groups(slots: Slots) -> Iterator[Group]:
    """Yield the groups that have slots, by adapter."""
    layout, (T, k) = slots.layout, slots.selection.shape
    sorted_tokens = slots.order // k
    slot = place = 0
    for i, count in slots.counts.items():
        tokens = sorted_tokens[slot : slot + count]
        everyone = count == T and torch.equal(tokens, torch.arange(T, device=tokens.device))
        size = count * layout.ranks[i]
        yield Group(
            slice(layout.offsets[i], layout.offsets[i + 1]),
            slice(slot, slot + count),
            slice(place, place + size),
            tokens,
            everyone,
        )
        slot, place = slot + count, place + size


def shrink_grouped(v: Tensor, W: Tensor, slots: Slots) -> Tensor:
    """Return z in row form, in the accumulation dtype, of ``v [T, d]`` and ``W [N, d]``."""
    sorted_z = v.new_empty(slots.rows.numel(), dtype=multiplied_dtype(v.dtype))
    for group in groups(slots):
        torch.mm(group.of_tokens(v), multipliable(W[group.rows]).T, out=group.of_z(sorted_z))
    return slots.by_slot(sorted_z).to(accumulation_dtype(v.dtype))


def expand_grouped(z: Tensor, W: Tensor, slots: Slots, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given.

    Each slot's product is rounded to the dtype of `W`, or to fp32 for fp16; their sum is not.
    """
    T, k = slots.selection.shape
    sorted_z = slots.by_adapter(z.to(multiplied_dtype(W.dtype)))
    products = sorted_z.new_empty(T * k, W.shape[1])
    for group in groups(slots):
        torch.mm(group.of_z(sorted_z), multipliable(W[group.rows]), out=products[group.slots])
    places = torch.empty_like(slots.order)
    places[slots.order] = torch.arange(T * k, device=z.device)
    result = embedding_bag(places.view(T, k), products, mode="sum")
    return result.to(W.dtype) if out is None else out.add_(result)


def outer_products(z: Tensor, v: Tensor, slots: Slots) -> Tensor:
    """Return [N, d]: per adapter the sum over its slots of ``z_j^T v_t``, in the dtype of `v`.

    The gradients of the factors: with ``z = w s u`` and ``v = x`` it is dA, with ``z = w s z`` and ``v = dO``
    it is dBt. By groups and not by a masked product, so that a NaN in one token's gradient stays away from
    the adapters it did not choose.
    """
    result, sorted_z = v.new_zeros(slots.layout.rows, v.shape[1]), slots.by_adapter(z)
    for group in groups(slots):
        chosen = group.of_tokens(v)
        result[group.rows] = (group.of_z(sorted_z).T.to(chosen.dtype) @ chosen).to(v.dtype)
    return result
