"""The slots of a routing, spread over the flat storage and back.

Between the two products of routed LoRA stands z ``[T, k, R]``, R the largest rank: what each slot of each
token got from its adapter's A, zero past that adapter's own rank. Every formulation of a *shrink* (d
features to z) ends in it and every formulation of an *expand* (z to d features) starts from it, so that
they combine freely, forward and backward. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout, layout_tensors


@dataclass(frozen=True, slots=True)
class SlotRows:
    """The storage rows behind each token's slots, [T, k * R], and which of those entries are not real.

    `beyond` marks the entries past an adapter's own rank; None when all ranks are equal.
    """

    rows: Tensor
    beyond: Tensor | None

    def pick(self, values: Tensor) -> Tensor:
        """Return `values` [T, N] at the slots' rows, zero past an adapter's rank."""
        picked = values.gather(1, self.rows)
        return picked if self.beyond is None else picked.masked_fill_(self.beyond, 0)

    def put(self, values: Tensor, columns: int) -> Tensor:
        """Return zeros [T, columns] with `values` added at the slots' rows; equal slots add up."""
        if self.beyond is not None:
            values = values.masked_fill(self.beyond, 0)
        return values.new_zeros(values.shape[0], columns).scatter_add_(1, self.rows, values)


def slot_rows(layout: Layout, selection: Tensor) -> SlotRows:
    """Return the rows behind `selection` [T, k], every slot stretched to the largest rank."""
    known = layout_tensors(layout, selection.device, torch.float32)
    steps = torch.arange(layout.max_rank, device=selection.device)
    rows = known.starts[selection].unsqueeze(-1) + steps
    if layout.equal_ranks:
        return SlotRows(rows.flatten(1), None)
    beyond = steps >= known.ranks[selection].unsqueeze(-1)
    return SlotRows(rows.masked_fill_(beyond, 0).flatten(1), beyond.flatten(1))


def slot_factors(layout: Layout, selection: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``w_j * s_i`` per slot, [T, k], in `dtype`."""
    return weights.to(dtype) * slot_scaling(layout, selection, dtype)


def slot_scaling(layout: Layout, selection: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``s_i`` per slot, [T, k], in `dtype`."""
    return layout_tensors(layout, selection.device, dtype).scaling[selection]
