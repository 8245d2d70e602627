"""Routed LoRA as two matrix products over all adapters, whatever a token selected.

``z = x A^T`` for every adapter at once, each token's selected ranks picked out, weighted and put back into
zeros, then one product with Bt. Picking and putting back, rather than multiplying by a mask, keeps an
Inf or NaN in an adapter's z away from the tokens that did not select it (0 * Inf is NaN). No step reads a
value on the host, so this form also runs inside a CUDA graph. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout, layout_tensors
from .operands import accumulation_dtype


@dataclass(frozen=True, slots=True)
class SlotRows:
    """The storage rows behind each token's slots, [T, k * max R], and which of them are real.

    `beyond` marks the entries past an adapter's own rank; None when all ranks are equal.
    """

    rows: Tensor
    beyond: Tensor | None

    def pick(self, values: Tensor) -> Tensor:
        """Return `values` [T, N] at the slots' rows, 0 beyond an adapter's rank."""
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


def slot_factors(layout: Layout, selection: Tensor, weights: Tensor) -> Tensor:
    """Return ``w_j * s_i`` per slot, [T, k], in the dtype of `weights`."""
    return weights * layout_tensors(layout, selection.device, weights.dtype).scaling[selection]


def dense_forward(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, selection: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the output [T, D] in the dtype of `x`, and z [T, k, max R] in the accumulation dtype."""
    slots = slot_rows(layout, selection)
    z = slots.pick(x @ A.T).to(accumulation_dtype(x.dtype)).view(*selection.shape, layout.max_rank)
    weighted = (z * slot_factors(layout, selection, weights).unsqueeze(-1)).flatten(1)
    return slots.put(weighted.to(x.dtype), layout.rows) @ Bt, z


def dense_slot_gradient(grad: Tensor, Bt: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return ``u = dO Bt_i^T`` per slot, [T, k, max R] in the accumulation dtype."""
    u = slot_rows(layout, selection).pick(grad @ Bt.T)
    return u.to(accumulation_dtype(grad.dtype)).view(*selection.shape, layout.max_rank)


def dense_input_gradient(du: Tensor, A: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return ``dx = sum_j du_j A_i`` [T, h], with `du` the weighted slot gradient [T, k, max R]."""
    return slot_rows(layout, selection).put(du.flatten(1).to(A.dtype), layout.rows) @ A
