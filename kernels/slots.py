"""One call's routing as the torch formulations read it: slots, their rows, their order by adapter.

Between the two products of routed LoRA z has the *row form*: one value per slot and row of its adapter, slot
after slot, flat ``[S]`` with ``S = sum of R_i over all slots``. Ragged ranks need no padding in it, so that
an adapter of a large rank costs only the tokens that chose it: one of rank 64 among 27 of rank 8 takes 0.99
to 1.28 times as long in the forward as 28 of rank 8 (docs/kernels.md). With equal ranks it is ``[T, k, R]``.
Every view of a routing is computed once, when first needed. The adapters that the slots name are read, and
checked, on the host. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .layout import Layout, layout_tensors
from .routing import Routing

# Up to here counting in Python is quicker than the tensor operations that count.
FEW_SLOTS = 64

Value = TypeVar("Value")


class once(Generic[Value]):  # noqa: N801 - a decorator, named like property
    """`functools.cached_property` without the lock that it takes before Python 3.12."""

    def __init__(self, compute: Callable[[Slots], Value]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, slots: Slots, _: type[Slots] | None = None) -> Value:
        value = slots.__dict__[self.name] = self.compute(slots)
        return value


class Slots:
    """The T * k slots of a routing, numbered token by token."""

    def __init__(self, layout: Layout, routing: Routing) -> None:
        self.layout = layout
        self.selection = routing.selection
        self.weights = routing.weights
        self.device = routing.selection.device
        self.are_few = routing.selection.numel() <= FEW_SLOTS

    @once
    def named(self) -> list[int]:
        """Return the adapter of each slot, on the host; for few slots.

        Raises:
            ValueError: if a slot names an adapter that does not exist.
        """
        named: list[int] = self.selection.flatten().tolist()
        check_range(min(named), max(named), self.layout.adapters)
        return named

    @once
    def counts(self) -> dict[int, int]:
        """Return the number of slots of each adapter that has any, by ascending adapter.

        Raises:
            ValueError: as `named`.
        """
        if self.are_few:
            return {i: self.named.count(i) for i in sorted(set(self.named))}
        flat = self.selection.flatten()
        least, greatest = torch.stack(flat.aminmax()).tolist()
        check_range(least, greatest, self.layout.adapters)
        numbers = torch.bincount(flat, minlength=self.layout.adapters).tolist()
        return {i: number for i, number in enumerate(numbers) if number}

    @once
    def usage(self) -> tuple[int, int, int]:
        """Return the adapters present, the ranks of all slots together, and of those adapters together.

        Raises:
            ValueError: as `named`.
        """
        ranks, size = self.layout.ranks, self.selection.numel()
        present = set(self.named) if self.are_few else self.counts
        if self.layout.equal_ranks:
            return len(present), size * ranks[0], len(present) * ranks[0]
        if self.are_few:
            of_slots = sum(map(ranks.__getitem__, self.named))
        else:
            of_slots = sum(count * ranks[i] for i, count in self.counts.items())
        return len(present), of_slots, sum(map(ranks.__getitem__, present))

    def check(self) -> None:
        """Refuse slots that name an adapter that does not exist.

        Raises:
            ValueError: as `named`.
        """
        _ = self.usage

    @once
    def slot_ranks(self) -> Tensor:
        """Return the rank of each slot's adapter: int64 [T * k]."""
        ranks = layout_tensors(self.layout, self.device, torch.float32).ranks
        return ranks.take(self.selection).flatten()

    @once
    def first_rows(self) -> Tensor:
        """Return the place of each slot's first row in the row form: int64 [T * k]."""
        if self.are_few:
            ends = itertools.accumulate(map(self.layout.ranks.__getitem__, self.named), initial=0)
            return self._from_host(list(ends)[:-1])
        return self.slot_ranks.cumsum(0) - self.slot_ranks

    @once
    def row_slots(self) -> Tensor:
        """Return the slot of each row: int64 [S]."""
        if self.are_few:
            ranks = map(self.layout.ranks.__getitem__, self.named)
            return self._from_host([slot for slot, rank in enumerate(ranks) for _ in range(rank)])
        return torch.repeat_interleave(self.slot_ranks)

    @once
    def row_tokens(self) -> Tensor:
        """Return the token of each row: int64 [S]."""
        return self.row_slots // self.selection.shape[1]

    @once
    def wide_selection(self) -> Tensor:
        """Return the selection once per row of the adapters, equal ranks only: int64 [T, k, R]."""
        return self.selection.unsqueeze(-1).expand(-1, -1, self.layout.max_rank)

    @once
    def token_starts(self) -> Tensor:
        """Return the place of each token's first row in the row form: int64 [T]."""
        k = self.selection.shape[1]
        if self.layout.equal_ranks:
            per_token = k * self.layout.max_rank
            return torch.arange(
                0, self.selection.numel() * self.layout.max_rank, per_token, device=self.device
            )
        return self.first_rows[::k].contiguous()

    @once
    def rows(self) -> Tensor:
        """Return the row of the storage behind each row: int64 [S]."""
        known = layout_tensors(self.layout, self.device, torch.float32)
        if self.layout.equal_ranks:
            by_adapter = known.rows.view(self.layout.adapters, -1)
            return by_adapter.index_select(0, self.selection.flatten()).flatten()
        if self.are_few:
            starts = self.layout.offsets
            return self._from_host([row for i in self.named for row in range(starts[i], starts[i + 1])])
        shifts = known.starts.take(self.selection).flatten() - self.first_rows
        return shifts.take(self.row_slots) + torch.arange(self.row_slots.numel(), device=self.device)

    @once
    def within(self) -> Tensor:
        """Return the place of each row in its slot: int64 [S]."""
        return torch.arange(self.row_slots.numel(), device=self.device) - self.first_rows.take(self.row_slots)

    @once
    def order(self) -> Tensor:
        """Return the slots sorted by adapter, ties by slot: int64 [T * k]."""
        return self.selection.flatten().argsort(stable=True)

    def _from_host(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def weighted(self, z: Tensor) -> Tensor:
        """Return z in row form times ``w_j s_i`` of its slot."""
        scaling = layout_tensors(self.layout, self.device, z.dtype).scaling.take(self.selection)
        factors = self.weights * scaling
        if self.layout.equal_ranks:
            return (z.view(*self.selection.shape, -1) * factors.unsqueeze(-1)).flatten()
        return z * factors.take(self.row_slots)

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
        """Return z in row form with its slots in the order of `order`."""
        if self.layout.equal_ranks:
            return z.view(-1, self.layout.max_rank).index_select(0, self.order).flatten()
        return z.index_select(0, self.row_order)

    def by_slot(self, sorted_z: Tensor) -> Tensor:
        """Return in row form what `by_adapter` sorted."""
        if self.layout.equal_ranks:
            rows = sorted_z.view(-1, self.layout.max_rank)
            return torch.empty_like(rows).index_copy_(0, self.order, rows).flatten()
        return torch.empty_like(sorted_z).index_copy_(0, self.row_order, sorted_z)

    @once
    def row_order(self) -> Tensor:
        """Return the rows of the row form in the order that `order` gives their slots: int64 [S]."""
        return self.selection.take(self.row_slots).argsort(stable=True)


def check_range(least: int, greatest: int, adapters: int) -> None:
    """Refuse adapters that do not exist, given the least and the greatest.

    Raises:
        ValueError: naming one.
    """
    if least < 0 or greatest >= adapters:
        raise ValueError(
            f"`selection` names adapter {least if least < 0 else greatest}, expected 0 to {adapters - 1}, "
            "the adapters known here"
        )
