"""The steps of one batch: how each row's next token is chosen, and what becomes of it.

transformers calls a processor before, and a criterion after each token of all rows. What a row asked for is
applied to that row alone, so a batch answers as each of its rows would by itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from ..runtime.answer_text import AnswerText
from ..runtime.routing_record import RoutingRecord
from ..schemas.gate_choices import SCOPES, Scope
from ..schemas.names import PLAIN_BASE
from .answers import FinishReason, Routed
from .metrics import Metrics
from .rows import Began, Ended, Row

# Divided by less, scores leave the range of float32; a draw would be the likeliest token in any case.
_LEAST_TEMPERATURE = 1e-5


class RowSampling(LogitsProcessor):
    """A processor that draws the next token of every row that asked for it, and leaves the others alone.

    Each row has a generator of its own, so its neighbours change nothing for it.
    """

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self._drawn = {
            place: _Draw(row, device)
            for place, row in enumerate(rows)
            if row.sampling.temperature >= _LEAST_TEMPERATURE
        }

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [B, V], those of a drawn row without any other token."""
        if not self._drawn:
            return scores
        chosen = scores.clone()
        for place, draw in self._drawn.items():
            token = draw(input_ids[place : place + 1], scores[place : place + 1])
            chosen[place] = -torch.inf
            chosen[place, token] = 0.0
        return chosen


class _Draw:
    def __init__(self, row: Row, device: torch.device) -> None:
        sampling = row.sampling
        self._warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        for warper in self._warpers:
            scores = warper(ids, scores)
        return torch.multinomial(scores.softmax(dim=-1)[0], 1, generator=self._generator)


class Account:
    """The account of who answers each row of a batch so far.

    Args:
        rows: of the batch, all for one target.
        scope: of the bundle.
        record: of the batch's routing; None if the request named who answers.
        mask: bool [B, T], the tokens of the prompts that are not padding.
    """

    def __init__(self, rows: Sequence[Row], scope: Scope, record: RoutingRecord | None, mask: Tensor) -> None:
        self._rows = rows
        self._scope = scope
        self._record = record
        self._mask = mask
        self._decides_ahead = SCOPES[scope].decides_ahead
        members = 0 if record is None else len(record.members)
        # Of every token in every module, by member; the base is last.
        self._shares = torch.zeros(len(rows), members + 1)

    def note_step(self, alive: Sequence[bool]) -> None:
        """Take in the pass behind the last token of the rows that are still answered."""
        if self._record is None:
            return
        if not self._decides_ahead:
            self._count(self._record, torch.tensor(alive)[:, None])
        self._record.forget_modules()

    def _count(self, record: RoutingRecord, alive: Tensor) -> None:
        """Add the shares of the latest tokens of these rows, bool [B, 1]."""
        counted = self._mask & alive
        for routing in record.modules.values():
            selection, weights = routing.selection.cpu(), routing.weights.float().cpu() * counted[..., None]
            served = torch.zeros_like(self._shares)
            served.scatter_add_(1, selection.clamp(min=0).flatten(1), weights.flatten(1))
            served[:, -1] = counted.sum(dim=1) - weights.sum(dim=(1, 2))
            self._shares += served
        # From here on every pass has one token of each row.
        self._mask = torch.ones(len(self._rows), 1, dtype=torch.bool)

    def routed(self, place: int) -> Routed:
        """Return who answers a row."""
        if self._record is None:
            return Routed(self._rows[place].target.member, None, forced=True, scope=self._scope)
        if self._decides_ahead:
            return self._by_decisions(place, self._record)
        return self._by_shares(place, self._record.members)

    def _by_decisions(self, place: int, record: RoutingRecord) -> Routed:
        own = [each for each in record.decisions if each.sequence == place]
        padding = max(len(row.ids) for row in self._rows) - len(self._rows[place].ids)
        return Routed.by_decisions(own, self._scope, padding=padding)

    def _by_shares(self, place: int, members: Sequence[str]) -> Routed:
        found = self._shares[place] / self._shares[place].sum()
        shares = {
            name: round(share, 6) for name, share in zip((*members, PLAIN_BASE), found.tolist(), strict=True)
        }
        first = max(shares, key=lambda name: shares[name])
        member = None if first == PLAIN_BASE else first
        return Routed(member, None, forced=False, scope=self._scope, shares=shares)


class RowsEnd(StoppingCriteria):
    """A criterion that ends each row for its own reasons, and passes its text on."""

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        account: Account,
        metrics: Metrics,
        *,
        end_tokens: frozenset[int],
    ) -> None:
        self._answers = [_Answer(row, tokenizer, end_tokens) for row in rows]
        self._account = account
        self._metrics = metrics

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Take in the last token of input_ids [B, T], and return which rows end, bool [B]."""
        self._account.note_step([not answer.is_over for answer in self._answers])
        for place, token in enumerate(input_ids[:, -1].tolist()):
            self._take(place, self._answers[place], token)
        return torch.tensor([answer.is_over for answer in self._answers], device=input_ids.device)

    def _take(self, place: int, answer: _Answer, token: int) -> None:
        if answer.is_over:
            return
        if not answer.tokens:
            routed = self._account.routed(place)
            self._metrics.count_decision(routed)
            answer.row.emit(Began(routed))
        reason = answer.take(token)
        if reason is not None:
            self._metrics.answer_tokens.inc(answer.tokens)
            answer.row.emit(Ended(reason, answer.tokens, self._account.routed(place)))


class _Answer:
    """The answer of one row so far."""

    def __init__(self, row: Row, tokenizer: PreTrainedTokenizerBase, end_tokens: frozenset[int]) -> None:
        self.row = row
        self.tokens = 0
        self._text = AnswerText(tokenizer, row.stops)
        self._end_tokens = end_tokens
        self._is_complete = False

    @property
    def is_over(self) -> bool:
        return self._is_complete or self.row.is_cancelled

    def take(self, token: int) -> FinishReason | None:
        """Take in a token, and return why the answer is complete, if it is."""
        self.tokens += 1
        piece = self._text.add(token)
        reason: FinishReason | None = None
        if self._text.is_stopped or token in self._end_tokens:
            reason = "stop"
        elif self.tokens >= self.row.max_new_tokens:
            reason = "length"
        if reason is not None:
            self._is_complete = True
            piece += self._text.end()
            # The end of a text can complete what ends it.
            reason = "stop" if self._text.is_stopped else reason
        if piece:
            self.row.emit(piece)
        return reason
