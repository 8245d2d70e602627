"""Scope ``segment``: the member may change inside a sequence, but not from token to token.

The plain base reads the sequence beside the routed model, and its gates give each token's evidence for every
member. A sticky chain over the members turns that into a decision. Each token keeps the member of the token
before it; with probability ``SWITCH_PROBABILITY`` s it is drawn anew from a prior, so P(j | i) = (1 - s) [i =
j] + s prior_j. The recursions are the forward-backward algorithm, in probabilities that are normalised at
every token.

Within the prompt every token is decided from the whole prompt: a segment's first tokens, which fit any
member, take the one that the later tokens call for. In the answer a token is decided from the tokens so far,
and a switch goes to a member in proportion to its tokens in the prompt, each count plus one: the prompt holds
the tasks that the answer answers. On composite prompts of three and five questions this reaches 96.1 and 96.3
% of the oracle, where deciding by token reaches 77 % at best (docs/gates.md).

The probabilities of a token's members are treated as its gate: the top_k highest are chosen and weighted by
softmax of their logarithms at the temperature.

With answers in order (``in_order.py``) an item of the prompt's list decides for the tokens of its answer, in
place of the chain, which continues from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from .decision import Decision, Stretch
from .in_order import OrderedAnswers
from .passes import RoutingPass, TokenPass, decided_pass
from .routing_rule import RoutingRule

# The mean over all gates counts as this many independent gates at one token. They read the same residual
# stream, so it is far fewer than there are. With this value scope `segment` reaches 96.1 % of the oracle on
# three questions in one prompt and 96.3 % on five (docs/gates.md).
INDEPENDENT_GATES = 1.0
_LEAST_PROBABILITY = 1e-30


@dataclass(frozen=True, slots=True)
class SegmentDecision:
    """The members that serve each token of each sequence so far.

    Attributes:
        rule: the rule that decided.
        log_posterior: float32 [B, T, L], the gates' evidence, a mean over modules.
        own: bool [B, T], False for padding.
        prompt: bool [B, T], the tokens that were decided with all of the prompt in view.
        filtered: [B, T, L], the members' probabilities by the tokens up to each.
        probability: [B, T, L], the probabilities that decide.
        prior: [B, L], the members' chances at a switch in the answer.
        order: the items that serve answers in order; None where no answer is.
    """

    rule: RoutingRule
    log_posterior: Tensor
    own: Tensor
    prompt: Tensor
    filtered: Tensor
    probability: Tensor
    prior: Tensor
    order: OrderedAnswers | None = None

    @classmethod
    def decide(cls, rule: RoutingRule, log_posterior: Tensor, stretch: Stretch) -> Self:
        """Decide for sequences that begin, from the evidence [B, T, L] of their tokens."""
        device = log_posterior.device
        own, prompt = stretch.own.to(device), stretch.prompt.to(device)
        likelihood = likelihood_of(log_posterior)
        uniform = torch.full_like(likelihood[:, 0], 1 / likelihood.shape[-1])
        filtered = filter_chain(uniform, likelihood, prompt, uniform)
        smoothed = smooth_chain(filtered, likelihood, prompt, uniform)
        prior = normalise((smoothed * prompt.unsqueeze(-1)).sum(dim=1) + 1)
        lines = rule.lines
        order = None if lines is None else OrderedAnswers.begin(lines, log_posterior, stretch)
        # Where there are labels, the answer is here too, and is decided as it would be while decoding.
        answer = own & ~prompt
        answered = filtered[:, -1:]
        if answer.any():
            answered = filter_chain(filtered[:, -1], likelihood, answer, prior, order)
        is_prompt = prompt.unsqueeze(-1)
        return cls(
            rule=rule,
            log_posterior=log_posterior,
            own=own,
            prompt=prompt,
            filtered=torch.where(is_prompt, filtered, answered),
            probability=_held(torch.where(is_prompt, smoothed, answered), order),
            prior=prior,
            order=order,
        )

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        return self.prior.shape[0]

    def select(self, rows: Tensor) -> Self:
        """Return the decisions of other rows."""
        rows = rows.to(self.prior.device)
        return replace(
            self,
            log_posterior=self.log_posterior[rows],
            own=self.own[rows],
            prompt=self.prompt[rows],
            filtered=self.filtered[rows],
            probability=self.probability[rows],
            prior=self.prior[rows],
            order=None if self.order is None else self.order.select(rows),
        )

    def advance(self, past_tokens: int | None, log_posterior: Tensor | None, stretch: Stretch) -> Self:
        """Decide for more tokens of the answer, behind the first ``past_tokens``."""
        if log_posterior is None:
            raise RuntimeError("a segment is decided token by token, but there is no evidence for these")
        every = torch.ones(log_posterior.shape[:2], dtype=torch.bool, device=log_posterior.device)
        kept = slice(past_tokens)
        start = self.filtered[:, kept][:, -1]
        order = None if self.order is None else self.order.advance(past_tokens, stretch)
        latest = None if order is None else order.latest(every.shape[1])
        filtered = filter_chain(start, likelihood_of(log_posterior), every, self.prior, latest)
        return replace(
            self,
            log_posterior=torch.cat([self.log_posterior[:, kept], log_posterior], dim=1),
            own=torch.cat([self.own[:, kept], every], dim=1),
            prompt=torch.cat([self.prompt[:, kept], ~every], dim=1),
            filtered=torch.cat([self.filtered[:, kept], filtered], dim=1),
            probability=torch.cat([self.probability[:, kept], filtered], dim=1),
            order=order,
        )

    def serves_as(self, other: Self, tokens: int) -> bool:
        """Return False: a longer prompt moves the boundaries of its segments."""
        return False

    def begin(self, stretch: Stretch, past_tokens: int | None, by_token: TokenPass) -> RoutingPass:
        """Return the decisions for the tokens behind the first ``past_tokens``; None for the latest."""
        tokens = stretch.own.shape[1]
        latest = slice(-tokens, None) if past_tokens is None else slice(past_tokens, past_tokens + tokens)
        logits = self.probability[:, latest].clamp(min=_LEAST_PROBABILITY).log()
        return decided_pass(self.rule.route(logits, self.confidence[:, latest]))

    def describe(self, members: tuple[str, ...], tokens: int) -> tuple[Decision, ...]:
        """Return one decision for each stretch of tokens with the same most likely member and item."""
        winners, starts = self.winners.tolist(), self.starts.tolist()
        own, confidence = self.own.tolist(), self.confidence.tolist()
        return tuple(
            self._describe_segment(members, row, start, end, winners[row][start], confidence[row][end - 1])
            for row in range(self.sequences)
            for start, end in _spans(starts[row], own[row])
        )

    def _describe_segment(
        self, members: tuple[str, ...], row: int, start: int, end: int, winner: int, confidence: float
    ) -> Decision:
        is_sure = self.rule.is_sure(confidence)
        item = 0 if self.order is None else int(self.order.numbers[row, start])
        if self.order is None or not item:
            evidence = self.log_posterior[row, start:end].mean(dim=0).softmax(dim=-1)
        else:
            evidence = self.order.items[row, item - 1].softmax(dim=-1)
        return Decision(
            sequence=row,
            start=start,
            end=end,
            members=(members[winner],) if is_sure else (),
            weights=(1.0,) if is_sure else (),
            confidence=confidence,
            evidence=tuple(evidence.tolist()),
            item=item or None,
        )

    @property
    def winners(self) -> Tensor:
        """Int64 [B, T], the most likely member of each token."""
        return self.probability.argmax(dim=-1)

    @property
    def starts(self) -> Tensor:
        """Int64 [B, T], where each token's segment begins."""
        winners = self.winners
        places = torch.arange(winners.shape[1], device=winners.device)
        is_first = torch.ones_like(winners, dtype=torch.bool)
        is_first[:, 1:] = winners[:, 1:] != winners[:, :-1]
        if self.order is not None:
            is_first[:, 1:] |= self.order.numbers[:, 1:] != self.order.numbers[:, :-1]
        return torch.where(is_first, places, 0).cummax(dim=1).values

    @property
    def confidence(self) -> Tensor:
        """Float32 [B, T], the geometric mean posterior of the member over its segment.

        In the prompt over the segment's whole part there, in the answer over its tokens so far. Of an answer
        in order that of its item, over the item's tokens.
        """
        winners, starts = self.winners, self.starts
        evidence = self.log_posterior.gather(-1, winners.unsqueeze(-1)).squeeze(-1)
        evidence = torch.where(self.own, evidence, 0.0)
        so_far = _since(evidence, starts) / _since(self.own.to(evidence.dtype), starts).clamp(min=1)
        places = torch.arange(winners.shape[1], device=winners.device).expand_as(winners)
        is_last = torch.ones_like(self.own)
        is_last[:, :-1] = (starts[:, 1:] != starts[:, :-1]) | ~self.prompt[:, 1:]
        ends = torch.where(is_last, places, places.shape[1] - 1).flip(1).cummin(dim=1).values.flip(1)
        # Rounding can leave a little more than 1.
        found = so_far.gather(1, torch.where(self.prompt, ends, places)).exp().clamp(max=1)
        if self.order is None:
            return found
        return torch.where(self.order.is_held, self.order.logits.amax(dim=-1).exp().clamp(max=1), found)


def _held(probability: Tensor, order: OrderedAnswers | None) -> Tensor:
    """Return the probabilities [B, T, L], those of its item for every token that one serves."""
    if order is None:
        return probability
    return torch.where(order.is_held.unsqueeze(-1), order.logits.softmax(dim=-1), probability)


def likelihood_of(log_posterior: Tensor) -> Tensor:
    """Return each member's likelihood of a token, up to a factor; gates count as ``INDEPENDENT_GATES``."""
    tempered = INDEPENDENT_GATES * log_posterior
    return (tempered - tempered.amax(dim=-1, keepdim=True)).exp()


def _since(values: Tensor, starts: Tensor) -> Tensor:
    """Return the sum of values [B, T] from each token's start to the token."""
    total = values.cumsum(dim=1)
    return total - (total - values).gather(1, starts)


def _spans(starts: list[int], own: list[bool]) -> list[tuple[int, int]]:
    """Return where the segments of one sequence begin and end, without padding."""
    spans: dict[int, tuple[int, int]] = {}
    for place, (start, is_own) in enumerate(zip(starts, own, strict=True)):
        if is_own:
            spans[start] = (spans.get(start, (place, place))[0], place + 1)
    return list(spans.values())


# The chance before each token that another member's text begins: once in a hundred tokens, a short answer.
SWITCH_PROBABILITY = 0.01


def filter_chain(
    start: Tensor, likelihood: Tensor, active: Tensor, prior: Tensor, order: OrderedAnswers | None = None
) -> Tensor:
    """Return P(member of token t | tokens up to t), [B, T, L].

    Args:
        start: [B, L], the same for the token before the first; uniform where a sequence begins.
        likelihood: [B, T, L], above 0, each token's up to a factor.
        active: bool [B, T]; what holds before a token that is not also holds after it.
        prior: [B, L], the members' chances at a switch.
        order: of the same tokens; those that an item serves have its probabilities, whatever they are like.
    """
    current, found = start, []
    is_held, held = (None, None) if order is None else (order.is_held, order.logits.softmax(dim=-1))
    for token in range(likelihood.shape[1]):
        moved = (1 - SWITCH_PROBABILITY) * current + SWITCH_PROBABILITY * prior
        updated = normalise(moved * likelihood[:, token])
        current = torch.where(active[:, token, None], updated, current)
        if is_held is not None and held is not None:
            current = torch.where(is_held[:, token, None], held[:, token], current)
        found.append(current)
    return torch.stack(found, dim=1)


def smooth_chain(filtered: Tensor, likelihood: Tensor, active: Tensor, prior: Tensor) -> Tensor:
    """Return P(member of token t | all active tokens), [B, T, L]; arguments as for ``filter_chain``.

    ``filtered`` is what that returned. Only active tokens' values mean something.
    """
    behind = torch.ones_like(filtered[:, 0])
    found = []
    for token in reversed(range(filtered.shape[1])):
        found.append(normalise(filtered[:, token] * behind))
        seen = likelihood[:, token] * behind
        redrawn = (prior * seen).sum(dim=-1, keepdim=True)
        updated = normalise((1 - SWITCH_PROBABILITY) * seen + SWITCH_PROBABILITY * redrawn)
        behind = torch.where(active[:, token, None], updated, behind)
    return torch.stack(found[::-1], dim=1)


def normalise(weights: Tensor) -> Tensor:
    """Return the weights divided by their sum over the last dimension."""
    return weights / weights.sum(dim=-1, keepdim=True)
