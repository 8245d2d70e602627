"""One call's routing as the torch formulations read it: slots, their rows, their order by adapter.

What stands between the two products of routed LoRA is the *row form* of z: one value per slot and row of
its adapter, slot after slot, flat ``[S]`` with ``S = sum of R_i over all slots``. Ragged ranks need no
padding in it, so that an adapter of a large rank costs those who chose it alone; with equal ranks it is
``[T, k, R]``. Every view of a routing is computed once, when first asked for. The adapters that the slots
name are read, and checked, on the host. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .layout import Layout, layout_tensors
from .routing import Routing

# Up to here counting in Python is quicker than one tensor operation and the copy of its result.
FEW_SLOTS = 64


class Slots:
    """The T * k slots of a routing, numbered token by token."""

    def __init__(self, layout: Layout, routing: Routing) -> None:
        self.layout = layout
        self.selection = routing.selection
        self.weights = routing.weights
        self.device = routing.selection.device

    @cached_property
    def named(self) -> list[int]:
        """The adapter of each slot, on the host; for few slots.

        Raises:
            ValueError: if a slot names an adapter that does not exist.
        """
        named: list[int] = self.selection.flatten().tolist()
        _check_range(min(named), max(named), self.layout.adapters)
        return named

    @cached_property
    def counts(self) -> dict[int, int]:
        """The number of slots of each adapter that has any, by ascending adapter.

        Raises:
            ValueError: as `named`.
        """
        if self.selection.numel() <= FEW_SLOTS:
            return {i: self.named.count(i) for i in sorted(set(self.named))}
        flat = self.selection.flatten()
        _check_range(*torch.stack(flat.aminmax()).tolist(), self.layout.adapters)
        numbers = torch.bincount(flat, minlength=self.layout.adapters).tolist()
        return {i: number for i, number in enumerate(numbers) if number}

    def check(self) -> None:
        """Refuse slots that name an adapter that does not exist.

        Raises:
            ValueError: as `named`.
        """
        _ = self.counts

    @cached_property
    def slot_rows(self) -> Tensor:
        """The rank of each slot's adapter: int64 [T * k]."""
        ranks = layout_tensors(self.layout, self.device, torch.float32).ranks
        return ranks[self.selection.flatten()]

    @cached_property
    def first_rows(self) -> Tensor:
        """The place of each slot's first row in the row form: int64 [T * k]."""
        return self.slot_rows.cumsum(0) - self.slot_rows

    @cached_property
    def row_slots(self) -> Tensor:
        """The slot of each row: int64 [S]."""
        return torch.repeat_interleave(self.slot_rows)

    @cached_property
    def row_tokens(self) -> Tensor:
        """The token of each row: int64 [S]."""
        T, k = self.selection.shape
        if not self.layout.equal_ranks:
            return self.row_slots // k
        tokens = torch.arange(T, device=self.device).unsqueeze(1)
        return tokens.expand(T, k * self.layout.max_rank).flatten().contiguous()

    @cached_property
    def rows(self) -> Tensor:
        """The row of the storage behind each row: int64 [S]."""
        if self.layout.equal_ranks:
            steps = torch.arange(self.layout.max_rank, device=self.device)
            return (self.selection * self.layout.max_rank).unsqueeze(-1).add(steps).flatten()
        starts = layout_tensors(self.layout, self.device, torch.float32).starts
        shift = starts[self.selection.flatten()] - self.first_rows
        return shift[self.row_slots] + torch.arange(self.row_slots.numel(), device=self.device)

    @cached_property
    def within(self) -> Tensor:
        """The place of each row in its slot: int64 [S]."""
        return torch.arange(self.row_slots.numel(), device=self.device) - self.first_rows[self.row_slots]

    @cached_property
    def order(self) -> Tensor:
        """The slots sorted by adapter, ties by slot: int64 [T * k]."""
        return self.selection.flatten().argsort(stable=True)

    def weighted(self, z: Tensor) -> Tensor:
        """Return z in row form times ``w_j s_i`` of its slot."""
        scaling = layout_tensors(self.layout, self.device, z.dtype).scaling[self.selection]
        factors = (self.weights.to(z.dtype) * scaling).flatten()
        if self.layout.equal_ranks:
            return (z.view(-1, self.layout.max_rank) * factors.unsqueeze(1)).flatten()
        return z * factors[self.row_slots]

    def compact(self, z: Tensor) -> Tensor:
        """Return z in row form as [T, k, max R], zero past an adapter's rank: a shape known beforehand."""
        shape = (*self.selection.shape, self.layout.max_rank)
        if self.layout.equal_ranks:
            return z.view(shape)
        wide = z.new_zeros(shape)
        wide.view(-1, self.layout.max_rank)[self.row_slots, self.within] = z
        return wide

    def row_form(self, z: Tensor) -> Tensor:
        """Return compact z [T, k, max R] in row form."""
        if self.layout.equal_ranks:
            return z.flatten()
        return z.view(-1, self.layout.max_rank)[self.row_slots, self.within]

    def by_adapter(self, z: Tensor) -> Tensor:
        """Return z in row form with its slots sorted as `order` says."""
        if self.layout.equal_ranks:
            return z.view(-1, self.layout.max_rank).index_select(0, self.order).flatten()
        return z.index_select(0, self.row_order)

    def by_slot(self, sorted_z: Tensor) -> Tensor:
        """Return in row form what `by_adapter` sorted."""
        if self.layout.equal_ranks:
            rows = sorted_z.view(-1, self.layout.max_rank)
            return torch.empty_like(rows).index_copy_(0, self.order, rows).flatten()
        return torch.empty_like(sorted_z).index_copy_(0, self.row_order, sorted_z)

    @cached_property
    def row_order(self) -> Tensor:
        """The rows of the row form in the order that `order` gives their slots: int64 [S]."""
        return self.selection.flatten()[self.row_slots].argsort(stable=True)


def _check_range(least: int, greatest: int, adapters: int) -> None:
    for found in (least, greatest):
        if not 0 <= found < adapters:
            raise ValueError(
                f"`selection` names adapter {found}, expected 0 to {adapters - 1}, the adapters known here"
            )
