"""The measured variants: our dispatcher, each of our formulations, and re-implemented published ones.

The re-implementations are plain torch, written for this comparison from the papers' formulae: a loop over all
members with B as a strided slice of ``[D, L R]`` (the layout in which MeteoRA's authors store it, every
member padded to one R), a loop over the members present, the gather of every slot's A and B with two batched
products, and two products over all members. One plain LoRA and the base GEMM stand for the floor.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import linear

from benchmarks.kernel_points import RAGGED, Point
from meteora_registry.kernels.layout import Layout, layout_of
from meteora_registry.kernels.products import CPU_EXPANDS, CPU_SHRINKS
from meteora_registry.kernels.routed_lora import routed_lora, routed_lora_
from meteora_registry.kernels.routing import Routing
from meteora_registry.kernels.slots import Slots

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Formulations of ours that the dispatcher chooses from, as (shrink, expand).
OURS = (
    ("dense", "dense"),
    ("dense", "bag"),
    ("sampled", "bag"),
    ("grouped", "bag"),
    ("grouped", "grouped"),
)
CONCENTRATED_SHARE = 0.9
CONCENTRATED_MEMBERS = 3

Forward = Callable[[], Tensor]
# Not in every torch that the project takes.
grouped_mm: Callable[..., Tensor] | None = getattr(functional, "grouped_mm", None)


@dataclass(frozen=True)
class Problem:
    """One point's tensors; the padded copies are what the official layout stores."""

    point: Point
    x: Tensor
    W: Tensor
    A: Tensor
    Bt: Tensor
    layout: Layout
    selection: Tensor
    weights: Tensor
    padded_a: Tensor
    padded_b: Tensor

    @property
    def rank(self) -> int:
        """Return the rank that the padded layout gives every member."""
        return self.layout.max_rank

    # Made once: a copy from a Python list within a call is one that no CUDA graph can hold.
    @functools.cached_property
    def ranks(self) -> Tensor:
        """Return every member's rank, on the device."""
        return torch.tensor(self.layout.ranks, device=self.x.device)

    @functools.cached_property
    def slot_scaling(self) -> Tensor:
        """Return ``s_i`` per slot, on the device."""
        return torch.tensor(self.layout.scaling, device=self.x.device)[self.selection]

    @property
    def factors(self) -> Tensor:
        """Return ``w_j s_i`` per slot, in the experts' dtype."""
        return (self.weights * self.slot_scaling).to(self.x.dtype)


def problem_of(point: Point, device: str) -> Problem:
    """Return a point's operands, the same for the same point."""
    generator = torch.Generator().manual_seed(0)
    dtype = DTYPES[point.dtype]

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)

    ranks = point.rank_list
    layout = layout_of([0, *itertools.accumulate(ranks)], [2.0] * point.L)
    A, Bt = normal(layout.rows, point.h, scale=point.h**-0.5), normal(layout.rows, point.D)
    selection = selection_of(point, generator)
    weights = torch.softmax(torch.randn(point.T, point.k, generator=generator), dim=-1)
    return Problem(
        point,
        normal(point.T, point.h),
        normal(point.D, point.h, scale=point.h**-0.5),
        A,
        Bt,
        layout,
        selection.to(device),
        weights.to(device),
        padded(A, layout),
        padded(Bt, layout).T.contiguous(),
    )


def padded(rows: Tensor, layout: Layout) -> Tensor:
    """Return the members' rows with every member padded to the largest rank, [L R, d]."""
    if layout.equal_ranks:
        return rows.clone()
    parts = torch.split(rows, list(layout.ranks))
    wide = rows.new_zeros(layout.adapters, layout.max_rank, rows.shape[1])
    for member, part in zip(wide, parts, strict=True):
        member[: part.shape[0]] = part
    return wide.flatten(0, 1)


def selection_of(point: Point, generator: torch.Generator) -> Tensor:
    """Return k different members per token.

    `uniform`: any; `concentrated`: nine tokens in ten choose among three; `one`: all tokens the same k.
    """
    scores = torch.rand(point.T, point.L, generator=generator)
    if point.routing == "concentrated":
        scores[: int(point.T * CONCENTRATED_SHARE), :CONCENTRATED_MEMBERS] += 1
    elif point.routing == "one":
        scores = scores[:1].expand(point.T, -1)
    return scores.topk(point.k).indices.contiguous()


def variants_of(problem: Problem) -> dict[str, Forward]:
    """Return every forward of a point, by provider; each returns the routed output [T, D]."""
    named = {
        "meteora": lambda: ours(problem),
        "official_loop": lambda: official_loop(problem),
        "present_loop": lambda: present_loop(problem),
        "gathered_bmm": lambda: gathered_bmm(problem),
        "dense": lambda: dense(problem),
    }
    if grouped_mm is not None and problem.layout.equal_ranks:
        named["grouped_mm"] = lambda: grouped(problem)
    if problem.x.device.type == "cpu":
        for shrink, expand in OURS:
            named[f"{shrink}+{expand}"] = functools.partial(formulation, problem, shrink, expand)
    return named


def floors_of(problem: Problem) -> dict[str, Forward]:
    """Return what stands for the floor: one plain LoRA of the largest rank, the base GEMM.

    With ragged ranks also ours for the same routing with all members of the common rank.
    """
    A, B = problem.padded_a[: problem.rank], problem.padded_b[:, : problem.rank].contiguous()
    floors = {
        "one_lora": lambda: linear(linear(problem.x, A), B) * 2.0,
        "base_gemm": lambda: linear(problem.x, problem.W),
    }
    if problem.point.ranks == RAGGED:
        even = even_problem(problem)
        floors["meteora_even"] = lambda: ours(even)
    return floors


def even_problem(problem: Problem) -> Problem:
    """Return a ragged problem with every member of the least rank; the same tokens, the same routing."""
    point = problem.point
    even = problem_of(dataclasses.replace(point, ranks=min(point.rank_list)), problem.x.device.type)
    return dataclasses.replace(even, x=problem.x, selection=problem.selection, weights=problem.weights)


def ours(p: Problem) -> Tensor:
    """Return what the library's dispatcher computes."""
    return routed_lora(p.x, p.A, p.Bt, p.layout.offsets, p.layout.scaling, p.selection, p.weights)


def ours_in_place(p: Problem, out: Tensor) -> Tensor:
    """Return `out` after the library added to it."""
    return routed_lora_(out, p.x, p.A, p.Bt, p.layout.offsets, p.layout.scaling, p.selection, p.weights)


def formulation(p: Problem, shrink: str, expand: str) -> Tensor:
    """Return the output of one pair of our formulations, whatever the cost model would choose."""
    slots = Slots(p.layout, Routing(p.selection, p.weights))
    return CPU_EXPANDS[expand](slots.weighted(CPU_SHRINKS[shrink](p.x, p.A, slots)), p.Bt, slots, None)


def official_loop(p: Problem) -> Tensor:
    """Loop over all L members; B's slice is strided."""
    out, factors = p.x.new_zeros(p.point.T, p.point.D), p.factors
    for i in range(p.point.L):
        t, j = torch.where(p.selection == i)
        z = linear(p.x[t], p.padded_a[i * p.rank : (i + 1) * p.rank])
        y = linear(z, p.padded_b[:, i * p.rank : (i + 1) * p.rank])
        out = out.index_add(0, t, y * factors[t, j].unsqueeze(-1))
    return out


def present_loop(p: Problem) -> Tensor:
    """Loop over the members that some token selected, each at its own rank."""
    out, factors = p.x.new_zeros(p.point.T, p.point.D), p.factors
    for i in torch.unique(p.selection).tolist():
        t, j = torch.where(p.selection == i)
        rows = slice(p.layout.offsets[i], p.layout.offsets[i + 1])
        z = linear(p.x[t], p.A[rows]) * factors[t, j].unsqueeze(-1)
        out = out.index_add(0, t, z @ p.Bt[rows])
    return out


def gathered_bmm(p: Problem) -> Tensor:
    """Copy every slot's A and B, then two batched products."""
    T, k, R = p.point.T, p.point.k, p.rank
    A = p.padded_a.view(p.point.L, R, -1)[p.selection].view(T, k * R, -1)
    Bt = p.padded_b.view(-1, p.point.L, R).permute(1, 2, 0)[p.selection].reshape(T, k * R, -1)
    z = torch.bmm(A, p.x.unsqueeze(-1)).view(T, k, R) * p.factors.unsqueeze(-1)
    return torch.bmm(z.view(T, 1, k * R), Bt).squeeze(1)


def grouped(p: Problem) -> Tensor:
    """Sort the slots by member and multiply group by group, in torch's grouped product; no host sync."""
    assert grouped_mm is not None
    L, R, k = p.point.L, p.rank, p.point.k
    order = p.selection.flatten().argsort(stable=True)
    members = torch.arange(L, device=p.x.device)
    ends = (p.selection.flatten().unsqueeze(1) == members).sum(0).cumsum(0).to(torch.int32)
    A, Bt = p.A.view(L, R, -1).transpose(1, 2), p.Bt.view(L, R, -1)
    z = grouped_mm(p.x[order // k], A, offs=ends) * p.factors.flatten()[order].unsqueeze(1)
    y = p.x.new_empty(order.numel(), p.point.D).index_copy(0, order, grouped_mm(z, Bt, offs=ends))
    return y.view(p.point.T, k, p.point.D).sum(1)


def copied(problem: Problem) -> Problem:
    """Return the same problem with weights and factors of its own."""
    copies = {name: getattr(problem, name).clone() for name in ("W", "A", "Bt", "padded_a", "padded_b")}
    return dataclasses.replace(problem, **copies)


def dense(p: Problem) -> Tensor:
    """Return two products over all members, z masked between them."""
    share = p.x.new_zeros(p.point.T, p.point.L).scatter_add(1, p.selection, p.factors)
    mask = share.repeat_interleave(p.ranks, dim=1, output_size=p.layout.rows)
    return (p.x @ p.A.T * mask) @ p.Bt
