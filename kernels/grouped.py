"""Shrink and expand over the adapters present, each with the tokens that chose it.

Slots are sorted by adapter, each group is one small product, and adapters nobody chose cost nothing. The
groups' sizes are read on the host: a form for the CPU, and for the gradients of the experts themselves.
Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, grouped_mm

from .layout import Layout
from .operands import accumulation_dtype, multipliable


@dataclass(frozen=True, slots=True)
class Groups:
    """The T * k slots sorted by adapter, ties in token order.

    Attributes:
        order: int64 [T * k], the slot at each place of the sorted order.
        tokens: int64 [T * k], that slot's token.
        sizes: slots of each adapter, length L.
    """

    order: Tensor
    tokens: Tensor
    sizes: list[int]


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


def group_slots(layout: Layout, selection: Tensor) -> Groups:
    """Return the slots of `selection` [T, k] grouped by adapter."""
    flat = selection.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=layout.adapters).tolist()
    return Groups(order, order.div(selection.shape[1], rounding_mode="floor"), sizes)


def present_groups(layout: Layout, selection: Tensor) -> Iterator[Group]:
    """Yield the groups that have both slots and rows, by adapter."""
    groups = group_slots(layout, selection)
    all_tokens = torch.arange(selection.shape[0], device=selection.device)
    members = zip(
        torch.split(groups.order, groups.sizes), torch.split(groups.tokens, groups.sizes), strict=True
    )
    for i, (slots, tokens) in enumerate(members):
        if groups.sizes[i] and layout.ranks[i]:
            everyone = len(slots) == len(all_tokens) and torch.equal(tokens, all_tokens)
            yield Group(slice(layout.offsets[i], layout.offsets[i + 1]), slots, tokens, everyone)


def shrink_grouped(v: Tensor, W: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return z [T, k, R] of ``v [T, d]`` and ``W [N, d]``, in the accumulation dtype."""
    z = v.new_zeros(selection.numel(), layout.max_rank, dtype=accumulation_dtype(v.dtype))
    for group in present_groups(layout, selection):
        weight = multipliable(W[group.rows])
        z[group.slots, : weight.shape[0]] = (multipliable(group.of_tokens(v)) @ weight.T).to(z.dtype)
    return z.view(*selection.shape, layout.max_rank)


def expand_grouped(z: Tensor, W: Tensor, layout: Layout, selection: Tensor, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given.

    The sum over slots is kept in the accumulation dtype.
    """
    total = out if out is not None and out.dtype == z.dtype else z.new_zeros(selection.shape[0], W.shape[1])
    flat = z.flatten(0, 1)
    for group in present_groups(layout, selection):
        weight = multipliable(W[group.rows])
        group.add(total, flat[group.slots, : weight.shape[0]].to(weight.dtype) @ weight)
    if out is None:
        return total.to(W.dtype)
    return out if total is out else out.add_(total)


def slot_outer_products(slots: Tensor, v: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return [N, d]: per adapter the sum over its slots of ``slots[t, j]^T v[t]``, in the dtype of `v`.

    The gradients of the experts: with ``slots = w s u`` and ``v = x`` it is dA, with ``slots = w s z`` and
    ``v = dO`` it is dBt. By groups and not by a masked product, so that a NaN in one token's gradient
    stays away from the adapters it did not choose.
    """
    result = v.new_zeros(layout.rows, v.shape[1])
    flat = slots.flatten(0, 1)
    for group in present_groups(layout, selection):
        chosen = multipliable(group.of_tokens(v))
        rank = group.rows.stop - group.rows.start
        result[group.rows] = (flat[group.slots, :rank].T.to(chosen.dtype) @ chosen).to(v.dtype)
    return result


def fits_grouped_mm(W: Tensor, layout: Layout) -> bool:
    """Return whether `shrink_grouped_mm` and `expand_grouped_mm` can take W: equal ranks, aligned rows."""
    aligned = all(extent * W.element_size() % 16 == 0 for extent in (layout.max_rank, W.shape[1]))
    return (
        layout.equal_ranks and layout.max_rank > 0 and aligned and W.dtype in (torch.float32, torch.bfloat16)
    )


def shrink_grouped_mm(v: Tensor, W: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return what `shrink_grouped` does, its loop run by `torch.nn.functional.grouped_mm`."""
    groups = group_slots(layout, selection)
    stacked = W.view(layout.adapters, layout.max_rank, -1)
    sorted_z = grouped_mm(v.index_select(0, groups.tokens), stacked.transpose(1, 2), offs=_ends(groups))
    z = sorted_z.new_empty(sorted_z.shape, dtype=accumulation_dtype(v.dtype))
    return z.index_copy_(0, groups.order, sorted_z.to(z.dtype)).view(*selection.shape, layout.max_rank)


def expand_grouped_mm(z: Tensor, W: Tensor, layout: Layout, selection: Tensor, out: Tensor | None) -> Tensor:
    """Return what `expand_grouped` does, its loop run by `torch.nn.functional.grouped_mm`."""
    groups = group_slots(layout, selection)
    stacked = W.view(layout.adapters, layout.max_rank, -1)
    sorted_z = z.to(W.dtype).flatten(0, 1).index_select(0, groups.order)
    sorted_out = grouped_mm(sorted_z, stacked, offs=_ends(groups))
    places = torch.empty_like(groups.order)
    places[groups.order] = torch.arange(places.numel(), device=z.device)
    result = embedding_bag(places.view_as(selection), sorted_out, mode="sum")
    return result if out is None else out.add_(result)


def _ends(groups: Groups) -> Tensor:
    return torch.tensor(groups.sizes, device=groups.order.device).cumsum(0).to(torch.int32)
