"""Scopes ``prompt`` and ``prompt+token``: one decision for each request, from the plain base's view of it.

The evidence of all gates is averaged over modules and the prompt's own tokens, and that average is treated as
a token's logits are: the top_k highest are chosen and weighted by softmax at the temperature. With ``prompt``
the decision serves the answer too, which reaches 99.9 % of the oracle; with ``prompt+token`` every module
decides for each token of the answer, which reaches 99.5 % (docs/gates.md). If the confidence of the
decision is below ``abstain``, a request is served by the base alone to its end.

The confidence is the geometric mean over modules and tokens of the best member's posterior. Where a bundle
has request gates, they give the evidence in place of all gates, and the confidence too: see
``request_gate.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ...kernels.routing import FixedRouting, Gate, Routing, fixed_routings
from ...schemas.bundle import TemplateTokens
from .decision import Decision, Stretch
from .passes import AgreedPass, DecidedPass, RoutingPass, TokenPass, as_routing, fit_tokens
from .routing_rule import RoutingRule

# Far above what rounding does to a weight, far below what shows in an answer.
_SAME_WEIGHT = 1e-6


@dataclass(frozen=True, slots=True)
class PromptDecision:
    """The members that serve each request of a batch.

    Attributes:
        rule: the rule that decided.
        routings: one for each request; the weights are 0 if it is left to the base.
        confidence: float32 [B], the geometric mean posterior of the most likely member. With request gates,
            the share of the members' own prompts that are less like them.
        evidence: float32 [B, L], how likely each member is by the mean log posteriors; the classes of a
            request gate that are not members have the rest of 1.
        prompt_tokens: int64 [B], the index of the answer's first token.
    """

    rule: RoutingRule
    routings: tuple[FixedRouting, ...]
    confidence: Tensor
    evidence: Tensor
    prompt_tokens: Tensor

    @classmethod
    def decide(cls, rule: RoutingRule, log_posterior: Tensor, stretch: Stretch) -> Self:
        """Decide for each sequence from the evidence [B, T, L] of its prompt.

        For a sequence without a prompt all members are equally likely.
        """
        counted = stretch.prompt if stretch.counted is None else stretch.counted
        logits = mean_over(log_posterior, counted)
        request = rule.by_request_gates
        if request is None:
            # Rounding can leave a little more than 1.
            confidence = logits.amax(dim=-1).exp().clamp(max=1)
            evidence = logits.softmax(dim=-1)
        else:
            confidence, evidence = request.confidence(logits), request.evidence(logits)
            logits = logits[:, : request.members]
        places = torch.arange(1, stretch.prompt.shape[1] + 1, device=stretch.prompt.device)
        prompt_tokens = (places * stretch.prompt).amax(dim=1)
        routings = fixed_routings(rule.route(logits, confidence))
        return cls(rule, routings, confidence, evidence, prompt_tokens)

    @property
    def sequences(self) -> int:
        """The number of requests."""
        return self.confidence.shape[0]

    def select(self, rows: Tensor) -> Self:
        """Return the decisions of other rows."""
        rows = rows.to(self.confidence.device)
        return replace(
            self,
            routings=tuple(self.routings[row] for row in rows.tolist()),
            confidence=self.confidence[rows],
            evidence=self.evidence[rows],
            prompt_tokens=self.prompt_tokens[rows.to(self.prompt_tokens.device)],
        )

    def advance(self, past_tokens: int | None, log_posterior: Tensor | None, stretch: Stretch) -> Self:
        """Return the decisions unchanged: the prompt decided."""
        return self

    def serves_as(self, other: Self, tokens: int) -> bool:
        """Return whether the first ``tokens`` tokens are served as by another decision of the same rule."""
        pairs = list(zip(self.routings, other.routings, strict=True))
        if any(ours.adapters != theirs.adapters for ours, theirs in pairs):
            return False
        # Tokens of an answer were decided by their own gates, those of a prompt are not.
        is_all_prompt = self.rule.scope == "prompt" or bool((other.prompt_tokens >= tokens).all())
        return is_all_prompt and all(
            abs(one - two) <= _SAME_WEIGHT
            for ours, theirs in pairs
            for one, two in zip(ours.weights, theirs.weights, strict=True)
        )

    def begin(self, stretch: Stretch, past_tokens: int | None, by_token: TokenPass) -> RoutingPass:
        """Return the decision for every token, or for those of the prompt alone."""
        if self.rule.scope == "prompt+token":
            if not stretch.has_prompt and not any(self._abstained):
                return by_token
            # No text has the padding, so it need not ask a gate.
            abstained = torch.tensor(self._abstained, device=stretch.own.device).unsqueeze(1)
            is_decided = stretch.prompt | ~stretch.own | abstained
            if not is_decided.all():
                return AnswerPass(self._for_tokens(stretch), is_decided, by_token)
        agreed = set(self.routings)
        return AgreedPass(agreed.pop()) if len(agreed) == 1 else DecidedPass(self._for_tokens(stretch))

    def describe(self, members: tuple[str, ...], tokens: int) -> tuple[Decision, ...]:
        """Return one decision for each request; with ``prompt+token`` it ends with the prompt."""
        answers_too = self.rule.scope == "prompt"
        abstained, ends, routings = self._abstained, self.prompt_tokens.tolist(), self.routings
        return tuple(
            Decision(
                sequence=row,
                start=0,
                end=tokens if answers_too or abstained[row] else ends[row],
                members=() if abstained[row] else tuple(members[index] for index in routings[row].adapters),
                weights=() if abstained[row] else routings[row].weights,
                confidence=confidence,
                evidence=tuple(evidence),
            )
            for row, (confidence, evidence) in enumerate(
                zip(self.confidence.tolist(), self.evidence.tolist(), strict=True)
            )
        )

    @property
    def _abstained(self) -> list[bool]:
        """Whether the base alone serves each request."""
        return [not any(routing.weights) for routing in self.routings]

    def _for_tokens(self, stretch: Stretch) -> Routing:
        tokens, device = stretch.own.shape[1], self.confidence.device
        rows = [routing.for_tokens((tokens,), device) for routing in self.routings]
        return Routing(
            torch.stack([row.selection for row in rows]), torch.stack([row.weights for row in rows])
        )


def mean_over(log_posterior: Tensor, own: Tensor) -> Tensor:
    """Return the mean evidence of each sequence's own tokens, float32 [B, L]; uniform if it has none."""
    own = own.to(log_posterior.device)
    count = own.sum(dim=1, keepdim=True)
    total = torch.where(own.unsqueeze(-1), log_posterior, 0.0).sum(dim=1)
    uniform = -math.log(log_posterior.shape[-1])
    return torch.where(count > 0, total / count.clamp(min=1), uniform)


def outside_template(ids: Tensor, prompt: Tensor, template: TemplateTokens) -> Tensor:
    """Return the prompts' tokens that the chat template did not put there, bool [B, T], as ``prompt`` is."""
    counted = torch.zeros_like(prompt)
    for row, own in enumerate(prompt):
        places = own.nonzero().squeeze(1)
        start, end = template.span_of(ids[row].to(places.device)[places].tolist())
        counted[row, places[start:end]] = True
    return counted


@dataclass(frozen=True, slots=True)
class AnswerPass(RoutingPass):
    """A pass in which some tokens are decided and the gates decide for the others.

    ``is_decided`` is bool [B, T]; ``decided`` [B, T, k] is the routing of those tokens.
    """

    decided: Routing
    is_decided: Tensor
    by_token: TokenPass

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Routing:
        """Return the gate's own routing, with the decided tokens put in."""
        choice = self.by_token.choose(path, x, gate)
        if isinstance(choice, Gate):
            found = choice.route(x)
            self.by_token.report(path, found, x)
        else:
            found = as_routing(choice, x)
        decided = fit_tokens(self.decided, x, path)
        is_decided = self.is_decided.to(x.device).reshape(*x.shape[:-1], 1)
        return Routing(
            torch.where(is_decided, decided.selection, found.selection),
            torch.where(is_decided, decided.weights, found.weights),
        )
