"""Answers in the form of OpenAI's objects, with the decision of the bundle in a field of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from ..runtime.scopes.decision import Decision, longest_of
from ..schemas.gate_choices import SCOPES, Scope
from ..schemas.names import PLAIN_BASE
from .requests import GenerationRequest

FinishReason = Literal["stop", "length"]
DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Routed:
    """The member or the base that answered one prompt.

    Attributes:
        member: the member; None for the base. Where tokens decide, the one with the largest share.
        confidence: of the decision; None where none was made.
        forced: whether the request named who answers.
        scope: of the bundle.
        decisions: every decision for the request, in scopes that make them.
        shares: the share of the tokens that each took, in scopes that decide by token; None elsewhere.
    """

    member: str | None
    confidence: float | None
    forced: bool
    scope: Scope
    decisions: Sequence[Mapping[str, Any]] = ()
    shares: Mapping[str, float] | None = None

    @classmethod
    def by_decisions(cls, decisions: Sequence[Decision], scope: Scope, *, padding: int = 0) -> Self:
        """Return who answers by the decisions for one prompt; of several the longest counts.

        Args:
            decisions: in their order.
            scope: of the bundle.
            padding: the tokens before the prompt that are not its own.
        """
        longest = longest_of(decisions)
        return cls(
            None if longest is None else next(iter(longest.members), None),
            None if longest is None else longest.confidence,
            forced=False,
            scope=scope,
            decisions=[_describe(each, scope, padding) for each in decisions],
        )

    @property
    def field(self) -> dict[str, Any]:
        """The value of the field `meteora`."""
        found: dict[str, Any] = {
            "member": self.member,
            "confidence": self.confidence,
            "forced": self.forced,
            "scope": self.scope,
        }
        if self.shares is not None:
            return found | {"shares": dict(self.shares)}
        return found | {"decisions": [dict(each) for each in self.decisions]}


def _describe(decision: Decision, scope: Scope, padding: int) -> Mapping[str, object]:
    found: dict[str, object] = {
        "members": list(decision.members),
        "weights": list(decision.weights),
        "confidence": decision.confidence,
    }
    if not SCOPES[scope].observes_answers:
        return found
    # Of segments also the tokens, and the item of the prompt's list that they answer.
    found |= {"start": max(decision.start - padding, 0), "end": decision.end - padding}
    return found if decision.item is None else found | {"item": decision.item}


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer to one prompt: its text, why it ended, and its tokens' scores if they were asked for."""

    text: str
    reason: FinishReason
    scores: Mapping[str, Any] | None = None


def decision_headers(routed: Sequence[Routed]) -> dict[str, str]:
    """Return the headers that name who answered; several prompts are listed in their order."""
    confidences = ["-" if each.confidence is None else f"{each.confidence:.4f}" for each in routed]
    return {
        "x-meteora-member": ", ".join(PLAIN_BASE if each.member is None else each.member for each in routed),
        "x-meteora-confidence": ", ".join(confidences),
    }


def decision_field(routed: Sequence[Routed]) -> Any:
    """Return the field `meteora`: an object, or a list of them for several prompts."""
    return routed[0].field if len(routed) == 1 else [each.field for each in routed]


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the count of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def completion(
    request: GenerationRequest,
    choices: Sequence[Choice],
    routed: Sequence[Routed],
    counted: Mapping[str, int],
) -> dict[str, Any]:
    """Return a whole answer: a choice for each prompt."""
    return _head(request, is_chunk=False) | {
        "choices": [
            _choice(request, place, {"content": each.text, "role": "assistant"}, each.reason, is_chunk=False)
            | {"logprobs": each.scores}
            for place, each in enumerate(choices)
        ],
        "usage": counted,
        "meteora": decision_field(routed),
    }


def first_chunk(request: GenerationRequest, routed: Sequence[Routed]) -> dict[str, Any]:
    """Return the beginning of a stream: no text yet, and who answers."""
    choices = [
        _choice(request, place, {"content": "", "role": "assistant"}, None, is_chunk=True)
        for place in range(len(routed))
    ]
    return _chunk(request, choices) | {"meteora": decision_field(routed)}


def text_chunk(request: GenerationRequest, place: int, text: str) -> dict[str, Any]:
    """Return a piece of one choice's text."""
    return _chunk(request, [_choice(request, place, {"content": text}, None, is_chunk=True)])


def last_chunk(request: GenerationRequest, place: int, reason: FinishReason) -> dict[str, Any]:
    """Return the end of one choice."""
    return _chunk(request, [_choice(request, place, {}, reason, is_chunk=True)])


def usage_chunk(request: GenerationRequest, counted: Mapping[str, int]) -> dict[str, Any]:
    """Return the chunk behind all others that counts the tokens."""
    return _chunk(request, []) | {"usage": counted}


def _chunk(request: GenerationRequest, choices: list[dict[str, Any]]) -> dict[str, Any]:
    found = _head(request, is_chunk=True) | {"choices": choices}
    # A client that asked for the count expects the field in every chunk.
    return found | {"usage": None} if request.form.includes_usage else found


def _head(request: GenerationRequest, *, is_chunk: bool) -> dict[str, Any]:
    if request.is_chat:
        prefix, kind = "chatcmpl", "chat.completion.chunk" if is_chunk else "chat.completion"
    else:
        prefix, kind = "cmpl", "text_completion"
    return {
        "id": f"{prefix}-{request.id}",
        "object": kind,
        "created": request.created,
        "model": request.target.model,
    }


def _choice(
    request: GenerationRequest,
    place: int,
    message: Mapping[str, str],
    reason: FinishReason | None,
    *,
    is_chunk: bool,
) -> dict[str, Any]:
    if request.is_chat:
        content: dict[str, Any] = {"delta" if is_chunk else "message": message}
    else:
        content = {"text": message.get("content", "")}
    return {"index": place, **content, "logprobs": None, "finish_reason": reason}
