"""Shrink and expand in torch operations, in four formulations.

- *grouped*: slots are sorted by adapter and each adapter present takes one small product; adapters that no
  token chose cost nothing. Also for the gradients of the factors themselves.
- *dense*: one product over all adapters. Each token's rows are picked out of the product and put back into
  zeros, not multiplied by a mask, so that an Inf or NaN in an adapter's z stays away from the tokens that did
  not select it (0 * Inf is NaN).
- *sampled* and *bag*, the row forms: two operators of torch's embeddings, whose "words" are the rows of the
  storage. `expand_bag` sums weighted rows of W per token; `shrink_sampled` is what torch calls that sum's
  gradient for the weights, the product of each row with its token's features. Both read each row in place, in
  one pass summed in fp32, and neither copies a feature: this pair is the fastest at 41 of the 54 measured
  points that are not of rank 64 throughout (docs/kernels.md).
- *masked*: both products over all adapters, and the weights of those that a token did not select are zeros in
  between. Nothing is sorted, gathered or counted, so it is the fastest for few adapters. On one thread, with
  16 to 256 tokens, 576 to 4096 features, k = 2 and rank 8, it took 0.62 to 0.88 of the time of the pairs
  above with 8 adapters, and 0.8 to 2.2 of it with 28 (no rows are kept).
- *views*: one slot at a time from input to output, as views of the storage, for a single decoded token. There
  caches are cold and every tensor operation counts: a linear of 4096 x 4096 with 28 adapters of rank 8 and
  k = 2 takes 0.117 ms in fp32, where gathering and batched products take 0.349.

Shapes are those of ``layout.py``, the row form of z is that of ``slots.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .layout import Layout, layout_tensors
from .operands import accumulation_dtype, multipliable, multiplied_dtype
from .routing import Routing
from .slots import Slots, check_range


@dataclass(frozen=True, slots=True)
class Group:
    """One adapter with the tokens that chose it.

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


def shrink_dense(v: Tensor, W: Tensor, slots: Slots) -> Tensor:
    """Return z in row form, in the accumulation dtype, of ``v [T, d]`` and ``W [N, d]``."""
    of_all = multipliable(v) @ multipliable(W).T
    if slots.layout.equal_ranks:
        z = of_all.view(v.shape[0], -1, slots.layout.max_rank).gather(1, slots.wide_selection).flatten()
    else:
        z = of_all[slots.row_tokens, slots.rows]
    return z.to(accumulation_dtype(v.dtype))


def expand_dense(z: Tensor, W: Tensor, slots: Slots, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given."""
    weight = multipliable(W)
    T, N = slots.selection.shape[0], weight.shape[0]
    spread, z = weight.new_zeros(T, N), z.to(weight.dtype)
    # Accumulating, since a token may select an adapter twice.
    if slots.layout.equal_ranks:
        wide = slots.wide_selection
        spread.view(T, -1, wide.shape[2]).scatter_add_(1, wide, z.view(wide.shape))
    else:
        spread.index_put_((slots.row_tokens, slots.rows), z, accumulate=True)
    if out is not None and out.dtype == weight.dtype:
        return out.addmm_(spread, weight)
    result = spread @ weight
    return result.to(W.dtype) if out is None else out.add_(result)


# The operators' `mode`, and the map from rows to tokens, which they make of the tokens' starts.
SUM = 0
NO_MAP = torch.empty(0, dtype=torch.int64, device="cpu")


def routed_views(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing, out: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Return the routed output [T, D] in the dtype of `x`, and z of each slot, [R_i].

    The output is added into `out` where one is given. Products and sum are in the accumulation dtype; weight
    and scaling are multiplied in double.

    Raises:
        ValueError: if a slot names an adapter that does not exist.
    """
    dtype, z = accumulation_dtype(x.dtype), []
    widen = x.dtype != dtype
    total = x.new_zeros(x.shape[0], Bt.shape[1], dtype=dtype) if out is None or widen else out
    tokens = x.to(dtype) if widen else x
    choices = zip(routing.selection.tolist(), routing.weights.tolist(), strict=True)
    for token, (adapters, shares) in enumerate(choices):
        check_range(min(adapters), max(adapters), layout.adapters)
        features, result = tokens[token], total[token]
        for adapter, share in zip(adapters, shares, strict=True):
            rows = slice(layout.offsets[adapter], layout.offsets[adapter + 1])
            down, up = A[rows], Bt[rows]
            if widen:
                down, up = down.to(dtype), up.to(dtype)
            z.append(torch.mv(down, features))
            result.addmv_(up.T, z[-1], alpha=share * layout.scaling[adapter])
    if widen:
        total = total.to(x.dtype) if out is None else out.add_(total)
    return total, z


def routed_masked(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing, out: Tensor | None
) -> Tensor:
    """Return the routed output [T, D] in the dtype of `x`, added into `out` where one is given.

    Raises:
        ValueError: if a slot names an adapter that does not exist.
    """
    least, greatest = torch.aminmax(routing.selection)
    check_range(int(least), int(greatest), layout.adapters)
    known = layout_tensors(layout, x.device, x.dtype)
    shares = (routing.weights * known.scaling.take(routing.selection)).to(x.dtype)
    # Accumulating, since a token may select an adapter twice.
    of_adapters = x.new_zeros(x.shape[0], layout.adapters).scatter_add_(1, routing.selection, shares)
    of_rows = of_adapters.index_select(1, known.owners)
    # Filled and not only multiplied: an Inf in z stays away from the tokens that did not select its adapter.
    z = torch.mm(x, A.T).mul_(of_rows).masked_fill_(of_rows == 0, 0.0)
    return torch.mm(z, Bt) if out is None else out.addmm_(z, Bt)


def shrink_sampled(v: Tensor, W: Tensor, slots: Slots) -> Tensor:
    """Return z in row form, in the accumulation dtype, of ``v [T, d]`` and ``W [N, d]``."""
    # What autograd itself calls for the weights of `embedding_bag`; torch gives it no public name. It
    # checks no index.
    slots.check()
    z: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        v, W, slots.rows, slots.token_starts, NO_MAP, SUM
    )
    return z.to(accumulation_dtype(v.dtype))


def expand_bag(z: Tensor, W: Tensor, slots: Slots, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given."""
    result: Tensor = torch.embedding_bag(
        W, slots.rows, slots.token_starts, mode=SUM, per_sample_weights=z.to(W.dtype)
    )[0]
    return result if out is None else out.add_(result)
