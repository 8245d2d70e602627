"""Shrink and expand over the adapters present, each with the tokens that chose it.

Slots are sorted by adapter, each group is one small product, and adapters nobody chose cost nothing. A loop
in Python, or `torch.nn.functional.grouped_mm` over blocks, which loops inside torch and copies all features
at once. For the CPU, and for the gradients of the experts themselves. Shapes are those of ``layout.py``, the
block form of z is that of ``slots.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, grouped_mm

from .operands import accumulation_dtype, multipliable
from .slots import Slots


@dataclass(frozen=True, slots=True)
class Group:
    """One adapter's rows in the storage, its slots, and their tokens; `everyone` if those are 0 .. T - 1."""

    rows: slice
    slots: Tensor
    tokens: Tensor
    everyone: bool

    def of_tokens(self, v: Tensor) -> Tensor:
        """Return this group's rows of `v` [T, d], without a copy where it has all of them."""
        return v if self.everyone else v.index_select(0, self.tokens)

    def add(self, total: Tensor, values: Tensor) -> None:
        """Add `values` to this group's rows of `total` [T, d]."""
        if self.everyone:
            total += values
        else:
            total.index_add_(0, self.tokens, values.to(total.dtype))


def groups(slots: Slots) -> Iterator[Group]:
    """Yield the groups that have both slots and rows, by adapter."""
    layout, T = slots.layout, slots.selection.shape[0]
    sorted_tokens = slots.tokens[slots.order]
    sizes = list(slots.counts.values())
    members = zip(
        slots.counts, torch.split(slots.order, sizes), torch.split(sorted_tokens, sizes), strict=True
    )
    for i, own, tokens in members:
        if layout.ranks[i]:
            everyone = len(own) == T and torch.equal(tokens, slots.tokens[:: slots.selection.shape[1]])
            yield Group(slice(layout.offsets[i], layout.offsets[i + 1]), own, tokens, everyone)


def shrink_grouped(v: Tensor, W: Tensor, slots: Slots) -> Tensor:
    """Return z in block form, [S, g] in the accumulation dtype, of ``v [T, d]`` and ``W [N, d]``."""
    g = slots.layout.block_rank
    z = v.new_empty(slots.blocks.numel(), g, dtype=accumulation_dtype(v.dtype))
    for group in groups(slots):
        weight = multipliable(W[group.rows])
        values = (multipliable(group.of_tokens(v)) @ weight.T).to(z.dtype)
        z[_places(group, slots)] = values.view(-1, g)
    return z


def expand_grouped(z: Tensor, W: Tensor, slots: Slots, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given.

    The sum over slots is kept in the accumulation dtype.
    """
    in_place = out is not None and out.dtype == z.dtype
    total = out if out is not None and in_place else z.new_zeros(slots.selection.shape[0], W.shape[1])
    for group in groups(slots):
        weight = multipliable(W[group.rows])
        values = z[_places(group, slots)].view(-1, weight.shape[0])
        group.add(total, values.to(weight.dtype) @ weight)
    if out is None:
        return total.to(W.dtype)
    return out if in_place else out.add_(total)


def outer_products(z: Tensor, v: Tensor, slots: Slots) -> Tensor:
    """Return [N, d]: per adapter the sum over its slots of ``z_j^T v_t``, in the dtype of `v`.

    The gradients of the experts: with ``z = w s u`` and ``v = x`` it is dA, with ``z = w s z`` and ``v = dO``
    it is dBt. By groups and not by a masked product, so that a NaN in one token's gradient stays away from
    the adapters it did not choose.
    """
    result = v.new_zeros(slots.layout.rows, v.shape[1])
    for group in groups(slots):
        chosen = multipliable(group.of_tokens(v))
        values = z[_places(group, slots)].view(chosen.shape[0], -1)
        result[group.rows] = (values.T.to(chosen.dtype) @ chosen).to(v.dtype)
    return result


def fits_grouped_mm(g: int, features: int, dtype: torch.dtype) -> bool:
    """Return whether `grouped_mm` takes blocks [g, features] of that dtype: 16-byte strides, and not fp16."""
    aligned = all(extent * dtype.itemsize % 16 == 0 for extent in (g, features))
    return g > 0 and aligned and dtype in (torch.float32, torch.bfloat16)


def shrink_grouped_mm(v: Tensor, W: Tensor, slots: Slots) -> Tensor:
    """Return what `shrink_grouped` does, the loop being `torch.nn.functional.grouped_mm` over blocks."""
    stacked = slots.stacked(W)
    order, ends = _sorted_blocks(slots)
    gathered = v.index_select(0, slots.block_tokens[order])
    sorted_z = grouped_mm(gathered, stacked.transpose(1, 2), offs=ends)
    z = sorted_z.new_empty(sorted_z.shape, dtype=accumulation_dtype(v.dtype))
    return z.index_copy_(0, order, sorted_z.to(z.dtype))


def expand_grouped_mm(z: Tensor, W: Tensor, slots: Slots, out: Tensor | None) -> Tensor:
    """Return what `expand_grouped` does, the loop being `torch.nn.functional.grouped_mm` over blocks.

    Each block's product is rounded to the dtype of `W`, their sum is not.
    """
    k = slots.selection.shape[1]
    order, ends = _sorted_blocks(slots)
    sorted_out = grouped_mm(z.to(W.dtype).index_select(0, order), slots.stacked(W), offs=ends)
    places = torch.empty_like(order)
    places[order] = torch.arange(places.numel(), device=z.device)
    if slots.layout.equal_ranks:
        result = embedding_bag(places.view(-1, k), sorted_out, mode="sum")
    else:
        result = embedding_bag(places, sorted_out, slots.first_blocks[::k].contiguous(), mode="sum")
    return result if out is None else out.add_(result)


def _places(group: Group, slots: Slots) -> Tensor:
    """Return where a group's blocks stand in the block form, slot after slot."""
    if slots.layout.equal_ranks:
        return group.slots
    per_slot = (group.rows.stop - group.rows.start) // slots.layout.block_rank
    steps = torch.arange(per_slot, device=group.slots.device)
    return (slots.first_blocks[group.slots].unsqueeze(-1) + steps).flatten()


def _sorted_blocks(slots: Slots) -> tuple[Tensor, Tensor]:
    """Return the order that sorts the blocks, and int32 [N / g] where each one's run ends in it."""
    number = slots.layout.rows // slots.layout.block_rank
    order = slots.order if slots.layout.equal_ranks else slots.blocks.argsort(stable=True)
    return order, torch.bincount(slots.blocks, minlength=number).cumsum(0).to(torch.int32)
