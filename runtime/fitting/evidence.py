"""The choice of the gates that segments are decided by: a few of the base's early layers.

The plain base reads every token of a text beside the routed model, and no layer behind the last gate that
counts. A token's gates read one residual stream, so a few of them tell nearly what all of them tell
(docs/gates.md). Which ones is judged as they are used: on samples that the fit did not read, each behind
those of other members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ...kernels.routing import gate_logits
from ...schemas.gate_choices import FittedKind
from ...schemas.trace import ModulePlace
from ..scopes.decision import Stretch
from ..scopes.routing_rule import RoutingRule
from ..scopes.segment import SegmentDecision
from .inputs import ModuleInput, run, watched
from .request_gates import MAX_INPUTS, candidate_inputs, spreads
from .sequences import Batch

# A choice may decide this part of the tokens less rightly than all gates do.
_TOLERANCE = 0.005


@dataclass(frozen=True, slots=True)
class ChosenEvidence:
    """The modules whose gates are read; None for all.

    Attributes:
        modules: in the order of the base.
        tokens: how many tokens of held-out texts were decided, in the prompt and in the answer.
        right: for how many the gates chose their own member.
        right_by_all: for how many all gates of the bundle did.
    """

    modules: tuple[str, ...] | None
    tokens: int
    right: int
    right_by_all: int


def candidate_gates(inputs: Sequence[ModuleInput], config: PretrainedConfig) -> list[str]:
    """Return the modules whose gates segments may be decided by: one of each early layer.

    It is the last of its layer that reads as many features as the first, such as the input of the MLP: the
    whole layer runs anyway, and what the attention found helps.
    """
    last: dict[str, ModuleInput] = {}
    for each in inputs:
        layer = ModulePlace.of(each.source).layer
        if each.features == last.get(layer, each).features:
            last[layer] = each
    return [each.source for each in candidate_inputs([*last.values()], config)]


def choose_evidence(
    base: PreTrainedModel,
    gates: Mapping[str, tuple[Tensor, Tensor]],
    candidates: Sequence[str],
    batches: Sequence[Batch],
    *,
    kind: FittedKind,
    eps: float,
) -> ChosenEvidence:
    """Choose the earliest candidates that decide held-out texts nearly as all gates do.

    Args:
        base: the plain base.
        gates: every gate's rows and bias, by module.
        candidates: the modules to choose among, in the order of the base.
        batches: the texts, labelled with the members' places; without any all gates are read.
        kind: of the gates.
        eps: of the gates.
    """
    choices = spreads(len(candidates), MAX_INPUTS)
    # All gates are the last choice.
    right = torch.zeros(len(choices) + 1, dtype=torch.int64)
    for batch in batches:
        found, by_all = _read(base, gates, candidates, batch, kind, eps)
        chosen = [found[list(each)].mean(dim=0) for each in choices]
        right += _count_right(torch.stack([*chosen, by_all]), batch)
    tokens = 2 * sum(int((batch.labels >= 0).sum()) for batch in batches)
    *of_choices, of_all = right.tolist()
    least = of_all - _TOLERANCE * tokens
    for choice, found_right in zip(choices, of_choices, strict=True):
        if tokens and found_right >= least:
            modules = tuple(candidates[place] for place in choice)
            return ChosenEvidence(modules, tokens, found_right, of_all)
    return ChosenEvidence(None, tokens, of_all, of_all)


def _read(
    base: PreTrainedModel,
    gates: Mapping[str, tuple[Tensor, Tensor]],
    candidates: Sequence[str],
    batch: Batch,
    kind: FittedKind,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the evidence of each of G candidates, [G, B, T, L], and the mean of that of all gates."""
    found: dict[str, Tensor] = {}
    total = torch.zeros(())

    def read(path: str, x: Tensor) -> None:
        nonlocal total
        rows, bias = (tensor.to(x.device) for tensor in gates[path])
        evidence = torch.log_softmax(gate_logits(x, rows, bias, kind=kind, eps=eps), dim=-1)
        evidence = evidence.reshape(*batch.ids.shape, -1).cpu()
        total = total + evidence
        if path in candidates:
            found[path] = evidence

    with watched(base, gates, read):
        run(base, gates, batch.ids.to(base.device), batch.mask.to(base.device))
    return torch.stack([found[path] for path in candidates]), total / len(gates)


def _count_right(evidence: Tensor, batch: Batch) -> Tensor:
    """Return how many tokens each of N evidences [N, B, T, L] gives to their own member, int64 [N].

    Counted twice: decided as a prompt's tokens are, and as an answer's.
    """
    count = evidence.shape[0]
    own, labels = batch.mask.bool().repeat(count, 1), batch.labels.repeat(count, 1)
    rule = RoutingRule("segment", top_k=1, temperature=1.0, abstain=None)
    decided = SegmentDecision.decide(rule, evidence.flatten(0, 1), Stretch(own, own, has_prompt=True))
    right = sum(
        (chosen.argmax(dim=-1) == labels).sum(dim=1) for chosen in (decided.probability, decided.filtered)
    )
    return torch.as_tensor(right).reshape(count, -1).sum(dim=1)
