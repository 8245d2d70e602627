"""First and second moments of the inputs, summed up while the base passes over the data.

For one input x in R^h: the mean of x over each member's tokens, float64, and the sum over members of the
mean of x x^T, float32. Each member is read by itself, so that its part can be kept, added and left out; only
where samples follow those of other members are all of them read together. Each token has the weight one over
its member's number of tokens, so every member counts the same however long its data. A second moment takes
nearly all the memory and all the work, and float32 suffices: it is a sum of a few hundred products, each
exact to float32, and what is solved has a multiple of the identity added to it that is far above their
rounding. The means are subtracted from it, squared, and cost nothing, hence float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...files.progress import UNCOUNTED, Step
from ...kernels.gate_kinds import GATE_KINDS
from ...schemas.errors import BundleRefused
from ...schemas.gate_choices import FittedKind
from .inputs import ModuleInput, run, watched
from .sequences import Batch


@dataclass(frozen=True, slots=True)
class Moments:
    """The moments of one input: ``means`` float64 ``[L, h]``, ``second`` float32 ``[h, h]``."""

    means: Tensor
    second: Tensor

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the moments of disjoint sets of classes together, in this order, on the CPU."""
        total = parts[0].second.cpu().clone()
        for part in parts[1:]:
            total += part.second.cpu()
        return cls(torch.cat([part.means.cpu() for part in parts]), total)


def split_inputs(inputs: Sequence[ModuleInput], max_bytes: int) -> Iterator[tuple[ModuleInput, ...]]:
    """Group the inputs so that a group's second moments have at most ``max_bytes``; a larger one is alone."""
    group: list[ModuleInput] = []
    size = 0
    for each in inputs:
        own = 4 * each.features**2
        if group and size + own > max_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(each)
        size += own
    if group:
        yield tuple(group)


def scaling_of(kind: FittedKind, eps: float) -> Callable[[Tensor], Tensor]:
    """Return what turns a module's input into what a gate of this kind multiplies."""
    scale_input = GATE_KINDS[kind].scale_input
    if scale_input is None:
        raise RuntimeError(f"the gate kind `{kind}` has no closed form; `FittedKind` must not name it")
    return lambda x: scale_input(x, eps)


def collect_moments(
    base: PreTrainedModel,
    inputs: Sequence[ModuleInput],
    batches: Sequence[Batch],
    tokens: Mapping[int, int],
    *,
    scale_input: Callable[[Tensor], Tensor],
    step: Step = UNCOUNTED,
) -> dict[str, Moments]:
    """Sum the moments of these inputs, by source, in one pass of the base over the batches.

    Args:
        base: the plain base.
        inputs: what is watched.
        batches: their labels are the members' places.
        tokens: how many tokens of each member count, by place from 0.
        scale_input: turns inputs [..., h] into those whose moments are summed, see ``scaling_of``.
        step: counts the batches.

    Raises:
        BundleRefused: a module is not called with one vector per token.
    """
    sums = {each.source: _Sums(each.features, tokens, scale_input) for each in inputs}
    for batch in batches:
        _pass_over(base, batch, sums)
        step.advance()
    return {source: each.moments() for source, each in sums.items()}


def _pass_over(base: PreTrainedModel, batch: Batch, sums: Mapping[str, _Sums]) -> None:
    def add(source: str, x: Tensor) -> None:
        sums[source].add(source, x, batch.labels)

    with watched(base, sums, add):
        run(base, sums, batch.ids.to(base.device), batch.mask.to(base.device))


class _Sums:
    """The running sums of one input, on the device where it first arrives."""

    def __init__(
        self, features: int, tokens: Mapping[int, int], scale_input: Callable[[Tensor], Tensor]
    ) -> None:
        self._features = features
        self._weights = torch.tensor([1 / tokens[place] for place in range(len(tokens))], dtype=torch.float64)
        self._scale_input = scale_input
        self._moments: Moments | None = None

    def add(self, path: str, x: Tensor, labels: Tensor) -> None:
        """Add the labelled tokens of a batch: x [B, T, h] or [B * T, h], labels [B, T]."""
        if x.shape[-1] != self._features or x.shape[:-1].numel() != labels.numel():
            raise BundleRefused(
                f"`{path}` is called with {list(x.shape)} for tokens {list(labels.shape)}, expected one "
                f"vector of {self._features} per token: no gate can be fitted for it"
            )
        flat = labels.reshape(-1)
        counted = flat >= 0
        rows = x.reshape(-1, self._features)[counted.to(x.device)].to(torch.float32)
        self._accumulate(self._scale_input(rows), flat[counted])

    def _accumulate(self, rows: Tensor, labels: Tensor) -> None:
        weights = self._weights[labels]
        # A product, not a scattered sum, which would add in another order every time on a GPU.
        members = torch.zeros(len(self._weights), len(labels), dtype=torch.float64)
        members[labels, torch.arange(len(labels))] = weights
        moments = self._on(rows.device)
        moments.means.addmm_(members.to(rows.device), rows.to(torch.float64))
        weighted = rows * weights.to(rows.device, torch.float32)[:, None]
        moments.second.addmm_(weighted.T, rows)

    def _on(self, device: torch.device) -> Moments:
        if self._moments is None:
            self._moments = Moments(
                torch.zeros(len(self._weights), self._features, dtype=torch.float64, device=device),
                torch.zeros(self._features, self._features, device=device),
            )
        return self._moments

    def moments(self) -> Moments:
        """Return the sums so far; of a product's two halves, which differ in rounding, the upper is taken."""
        found = self._on(torch.device("cpu"))
        upper = found.second.triu_()
        return Moments(found.means, upper.add_(upper.triu(1).T))
