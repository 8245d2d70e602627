"""One call's routing as the torch formulations read it: slots, their blocks, their order by adapter.

Ranks are cut into *blocks* of g rows, g being the greatest rank that divides them all
(``Layout.block_rank``): ragged ranks become equal ones over a storage ``[N / g, g, d]``, and a rare adapter
of a large rank costs its own blocks instead of stretching every slot. What stands between the two products of
routed LoRA is the *block form* of z: ``[S, g]``, slot after slot, each slot having its adapter's ``R_i / g``
blocks; with equal ranks that is ``[T k, R]``. Every view of a routing is computed once, when first asked for.
The number of blocks and of slots per adapter are read on the host. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from collections import Counter
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
    def members(self) -> list[list[int]]:
        """The adapters of each token."""
        chosen: list[list[int]] = self.selection.tolist()
        return chosen

    @cached_property
    def counts(self) -> dict[int, int]:
        """The number of slots of each adapter that has any, by ascending adapter.

        Raises:
            ValueError: if a slot names an adapter that does not exist.
        """
        if self.selection.numel() <= FEW_SLOTS:
            chosen = Counter(i for token in self.members for i in token)
            _check_range([min(chosen), max(chosen)], self.layout.adapters)
            return dict(sorted(chosen.items()))
        flat = self.selection.flatten()
        _check_range(torch.stack(flat.aminmax()).tolist(), self.layout.adapters)
        counts = torch.bincount(flat, minlength=self.layout.adapters).tolist()
        return {i: count for i, count in enumerate(counts) if count}

    @cached_property
    def order(self) -> Tensor:
        """The slots sorted by adapter, ties by slot: int64 [T * k]."""
        return self.selection.flatten().argsort(stable=True)

    @cached_property
    def tokens(self) -> Tensor:
        """The token of each slot: int64 [T * k]."""
        return torch.arange(self.selection.numel(), device=self.device) // self.selection.shape[1]

    @cached_property
    def block_counts(self) -> Tensor:
        """The number of blocks of each slot: int64 [T * k]."""
        ranks = layout_tensors(self.layout, self.device, torch.float32).ranks
        return ranks[self.selection.flatten()] // self.layout.block_rank

    @cached_property
    def first_blocks(self) -> Tensor:
        """The place of each slot's first block among all blocks: int64 [T * k]."""
        if self.layout.equal_ranks:
            return torch.arange(self.selection.numel(), device=self.device)
        return self.block_counts.cumsum(0) - self.block_counts

    @cached_property
    def block_slots(self) -> Tensor:
        """The slot of each block: int64 [S]."""
        if self.layout.equal_ranks:
            return self.first_blocks
        return torch.repeat_interleave(self.block_counts)

    @cached_property
    def block_tokens(self) -> Tensor:
        """The token of each block: int64 [S]."""
        return self.tokens if self.layout.equal_ranks else self.tokens[self.block_slots]

    @cached_property
    def within(self) -> Tensor:
        """The place of each block in its slot, ragged ranks only: int64 [S]."""
        place = torch.arange(self.block_slots.numel(), device=self.device)
        return place - self.first_blocks[self.block_slots]

    @cached_property
    def blocks(self) -> Tensor:
        """The block of the storage behind each block: int64 [S]."""
        flat = self.selection.flatten()
        if self.layout.equal_ranks:
            return flat
        starts = layout_tensors(self.layout, self.device, torch.float32).starts
        return (starts[flat] // self.layout.block_rank)[self.block_slots] + self.within

    def stacked(self, W: Tensor) -> Tensor:
        """Return the storage W [N, d] as its blocks, [N / g, g, d]."""
        return W.view(-1, self.layout.block_rank, W.shape[1])

    def weighted(self, z: Tensor) -> Tensor:
        """Return z in block form times ``w_j s_i`` of its slot."""
        factors = self.weights.to(z.dtype) * self.scaling(z.dtype)
        return z * self._per_block(factors.flatten()).unsqueeze(-1)

    def scaling(self, dtype: torch.dtype) -> Tensor:
        """Return ``s_i`` of each slot, [T, k]."""
        return layout_tensors(self.layout, self.device, dtype).scaling[self.selection]

    def compact(self, z: Tensor) -> Tensor:
        """Return z in block form as [T, k, max R], zero past an adapter's rank: a shape known beforehand."""
        shape = (*self.selection.shape, self.layout.max_rank)
        if self.layout.equal_ranks:
            return z.view(shape)
        wide = z.new_zeros(shape)
        wide.view(self.selection.numel(), -1, self.layout.block_rank)[self.block_slots, self.within] = z
        return wide

    def block_form(self, z: Tensor) -> Tensor:
        """Return compact z [T, k, max R] in block form, [S, g]."""
        if self.layout.equal_ranks:
            return z.flatten(0, 1)
        wide = z.view(self.selection.numel(), -1, self.layout.block_rank)
        return wide[self.block_slots, self.within]

    def _per_block(self, of_slot: Tensor) -> Tensor:
        return of_slot if self.layout.equal_ranks else of_slot[self.block_slots]


def _check_range(extremes: list[int], adapters: int) -> None:
    for found in extremes:
        if not 0 <= found < adapters:
            raise ValueError(
                f"`selection` names adapter {found}, expected 0 to {adapters - 1}, the adapters known here"
            )
