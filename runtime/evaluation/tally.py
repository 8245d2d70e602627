"""A tally of how often the routing chose the right member, by module, layer and place in the text.

A token is right in a module if the member with the largest weight there is that of the token's task. Only
tokens that were read count: the prompt's without padding, and the answer's before its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...kernels.routing import Routing
from ...schemas.evaluation import PositionAccuracy, RoutingAccuracy
from ...schemas.evaluation_run import MAX_POSITIONS, PositionCount, RoutingCounts
from ...schemas.trace import ModulePlace
from ..scopes.decision import Decision
from .confidence import judge_prompts, quartiles_of

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """The tokens of a batch that count: bool ``[B, T]`` for the prompts, padded left, then the answers."""

    prompt: Tensor
    answer: Tensor

    @property
    def places(self) -> Tensor:
        """Each token's place in its prompt or answer from 0, int64 ``[B, T]``; what does not count is 0."""
        counted = [(part.long().cumsum(dim=1) - 1).clamp(min=0) * part for part in (self.prompt, self.answer)]
        return torch.cat(counted, dim=1)

    @property
    def counts(self) -> Tensor:
        """Prompt and answer together, bool ``[B, T]``."""
        return torch.cat([self.prompt, self.answer], dim=1)


def count_routing(
    members: Sequence[str],
    member: str,
    modules: Mapping[str, Routing],
    tokens: ReadTokens,
    decisions: Sequence[Decision] = (),
) -> RoutingCounts:
    """Count the routing of a batch of the task of ``member``.

    Args:
        members: the bundle's.
        member: whose task it is.
        modules: the routing of every module, ``[B, T, k]``.
        tokens: which of them count.
        decisions: about the batch's prompts, in a scope that decides ahead.
    """
    right = members.index(member)
    counts = tokens.counts.cpu()
    is_answer = torch.zeros_like(counts)
    is_answer[:, tokens.prompt.shape[1] :] = True
    places = tokens.places.cpu()
    early = counts & (places < MAX_POSITIONS)
    where = (is_answer.long() * MAX_POSITIONS + places)[early]
    hits: dict[str, int] = {}
    position_hits = np.zeros((2, MAX_POSITIONS), dtype=np.int64)
    weights = np.zeros(len(members))
    for path, routed in modules.items():
        hit = (routed.selection[..., 0].cpu() == right) & counts
        hits[path] = int(hit.sum())
        position_hits += _count(where[hit[early]])
        weights += _weights_of(routed, counts, len(members)) / len(modules)
    judged = judge_prompts(decisions)
    return RoutingCounts(
        tokens=int(counts.sum()),
        hits=hits,
        weights=tuple(weights.tolist()),
        positions=tuple(_positions_of(_count(where), position_hits)),
        confidence=tuple(confidence for confidence, _ in judged),
        left=sum(is_left for _, is_left in judged),
    )


def sum_counts(counts: Sequence[RoutingCounts]) -> RoutingCounts:
    """Return the sum of the counts of one task's sequences, at least one, over the same modules."""
    positions: dict[tuple[bool, int], tuple[int, int]] = {}
    for each in (position for one in counts for position in one.positions):
        tokens, hits = positions.get((each.answer, each.position), (0, 0))
        positions[each.answer, each.position] = tokens + each.tokens, hits + each.hits
    return RoutingCounts(
        tokens=sum(each.tokens for each in counts),
        hits={path: sum(each.hits[path] for each in counts) for path in counts[0].hits},
        weights=tuple(map(sum, zip(*(each.weights for each in counts), strict=True))),
        positions=tuple(
            PositionCount(answer=answer, position=position, tokens=tokens, hits=hits)
            for (answer, position), (tokens, hits) in sorted(positions.items())
        ),
        confidence=tuple(value for each in counts for value in each.confidence),
        left=sum(each.left for each in counts),
    )


def _positions_of(tokens: Counts, hits: Counts) -> Iterator[PositionCount]:
    for answer, position in np.argwhere(tokens):
        yield PositionCount(
            answer=bool(answer),
            position=int(position),
            tokens=int(tokens[answer, position]),
            hits=int(hits[answer, position]),
        )


def _weights_of(routed: Routing, counts: Tensor, members: int) -> npt.NDArray[np.float64]:
    selection, weights = routed.selection.cpu()[counts], routed.weights.cpu().double()[counts]
    served = selection >= 0
    total = torch.zeros(members, dtype=torch.float64)
    found: npt.NDArray[np.float64] = total.index_add(0, selection[served], weights[served]).numpy()
    return found


class RoutingTally:
    """Counts of one mode over all tasks; ``members`` are the bundle's."""

    def __init__(self, members: Sequence[str]) -> None:
        self._members = tuple(members)
        self._hits: dict[str, npt.NDArray[np.float64]] = {}
        self._tokens = np.zeros(len(members))
        self._weights = np.zeros((len(members), len(members)))
        # By prompt (0) or answer (1), and the position there.
        self._position_hits = np.zeros((2, MAX_POSITIONS))
        self._position_tokens = np.zeros((2, MAX_POSITIONS), dtype=np.int64)
        self._confidence: list[float] = []
        self._left = 0

    def add(self, member: str, counts: RoutingCounts) -> None:
        """Add the counts of a batch of the task of ``member``."""
        right = self._members.index(member)
        self._confidence += counts.confidence
        self._left += counts.left
        self._tokens[right] += counts.tokens
        self._weights[right] += counts.weights
        for path, hits in counts.hits.items():
            self._hits.setdefault(path, np.zeros(len(self._members)))[right] += hits
        for each in counts.positions:
            place = int(each.answer), each.position
            self._position_tokens[place] += each.tokens
            self._position_hits[place] += each.hits / len(counts.hits)

    def result(self) -> RoutingAccuracy:
        """Return the accuracies; every task has the same weight except in ``positions``."""
        asked = self._tokens > 0
        modules = {
            path: float((hits[asked] / self._tokens[asked]).mean()) for path, hits in self._hits.items()
        }
        layers: dict[str, list[float]] = {}
        for path, accuracy in modules.items():
            layers.setdefault(ModulePlace.of(path).layer, []).append(accuracy)
        ordered = sorted(layers, key=lambda layer: ModulePlace(layer, "").order)
        return RoutingAccuracy(
            accuracy=_share(np.mean(list(modules.values()))),
            modules=modules,
            layers={layer: _share(np.mean(layers[layer])) for layer in ordered},
            positions=tuple(self._positions()),
            shares={
                member: self._shares_of(place) for place, member in enumerate(self._members) if asked[place]
            },
            left=self._left if self._confidence else None,
            confidence=quartiles_of(self._confidence) if self._confidence else None,
        )

    def _positions(self) -> list[PositionAccuracy]:
        return [
            PositionAccuracy(
                answer=bool(answer),
                position=int(position),
                tokens=int(self._position_tokens[answer, position]),
                accuracy=_share(
                    self._position_hits[answer, position] / self._position_tokens[answer, position]
                ),
            )
            for answer, position in np.argwhere(self._position_tokens)
        ]

    def _shares_of(self, task: int) -> tuple[float, ...]:
        shares = self._weights[task] / self._tokens[task]
        return (*map(_share, shares), _share(1 - shares.sum()))


def _count(where: Tensor) -> Counts:
    counted = np.bincount(where.numpy(), minlength=2 * MAX_POSITIONS)
    return counted.reshape(2, MAX_POSITIONS)


def _share(value: np.floating | float) -> float:
    # Sums of float32 weights may miss 0 and 1 by their last digits.
    return min(max(round(float(value), 6), 0.0), 1.0)
