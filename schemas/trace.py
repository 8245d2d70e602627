"""A routing trace: which members served each token of one text, in every module.

Tokens are in the order in which they went through the model, the prompt's first. A token's routing is
that of the pass that **read** it; the last token of an answer was written and never read, so it may have
none. Modules that share one routing (a module that takes another's, or a decision for the whole prompt)
share one table, so a trace costs what its distinct decisions cost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from .bundle import ModulePath
from .document import Count, Document, PositiveCount, leaving_out
from .names import Name

MAX_TRACE_TOKENS = 8192
# Tables times tokens times slots: about 20 MB of JSON.
MAX_TRACE_ENTRIES = 4_000_000
# In a selection: the slot went to no member, so that the base's own output was used.
NO_MEMBER = -1

_NUMBER = re.compile(r"(?:^|\.)\d+(?=\.)")
Weight = Annotated[FiniteFloat, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class ModulePlace:
    """The place of a module: its layer, the path up to its first number, and its kind, the path after it.

    ``model.layers.3.self_attn.q_proj`` is the kind ``self_attn.q_proj`` of the layer ``model.layers.3``;
    a module outside the layers has the layer ``""``.
    """

    layer: str
    kind: str

    @classmethod
    def of(cls, path: str) -> Self:
        """Return the place that a module's path states."""
        number = _NUMBER.search(path)
        return cls("", path) if number is None else cls(path[: number.end()], path[number.end() + 1 :])

    @property
    def order(self) -> tuple[str, int]:
        """The key that sorts layers as the model runs them: by stack, then by number and not by digits."""
        stack, _, number = self.layer.rpartition(".")
        return (stack, int(number)) if number else ("", -1)


class TraceToken(Document):
    """One token: its id in the vocabulary, the text that it added, and whether the model wrote it.

    The text is empty where a character takes several tokens, for all but the last of them.
    """

    id: Count
    text: str
    generated: bool


class TraceModule(Document):
    """A module and the index of its table in ``routings``."""

    path: ModulePath
    routing: Count


class TraceRouting(Document):
    """The members that served each token, best first, and their weights: ``[tokens][slots]`` both.

    A slot that went to no member has selection -1 and weight 0.
    """

    selection: tuple[tuple[Annotated[int, Field(ge=NO_MEMBER, lt=1 << 31)], ...], ...]
    weights: tuple[tuple[Weight, ...], ...]


class TraceDecision(Document):
    """One decision of a scope that decides ahead: for the tokens from ``start`` to before ``end``.

    ``members`` are those that serve, best first; none if the tokens were left to the base.
    """

    start: Count
    end: Count
    members: tuple[Name, ...]
    confidence: Weight


class Trace(Document):
    """The members of a bundle that served each token of a prompt and its answer."""

    meteora_trace: Literal[1]
    bundle: str
    base: str | None
    scope: str
    top_k: PositiveCount
    temperature: FiniteFloat = Field(gt=0)
    gate_fitted: bool
    members: tuple[Name, ...] = Field(min_length=1)
    tokens: tuple[TraceToken, ...] = Field(min_length=1, max_length=MAX_TRACE_TOKENS)
    modules: tuple[TraceModule, ...] = Field(min_length=1)
    routings: tuple[TraceRouting, ...] = Field(min_length=1)
    decisions: tuple[TraceDecision, ...] = ()

    # A trace of a scope without decisions keeps the bytes it had before they were kept.
    _leave_out = leaving_out("decisions")

    @model_validator(mode="after")
    def _check_tables_fit(self) -> Self:
        for module in self.modules:
            if module.routing >= len(self.routings):
                raise ValueError(
                    f"`{module.path}` has routing {module.routing}, expected one of {len(self.routings)}"
                )
        for routing in self.routings:
            self._check_table(routing)
        return self

    def _check_table(self, routing: TraceRouting) -> None:
        rows = (len(routing.selection), len(routing.weights))
        if rows != (len(self.tokens), len(self.tokens)):
            raise ValueError(f"a routing has {rows[0]} and {rows[1]} rows for {len(self.tokens)} tokens")
        for selection, weights in zip(routing.selection, routing.weights, strict=True):
            if len(selection) != len(weights):
                raise ValueError(f"a token has {len(selection)} members and {len(weights)} weights")
            if selection and max(selection) >= len(self.members):
                raise ValueError(f"a token has member {max(selection)} of {len(self.members)}")

    @property
    def prompt_length(self) -> int:
        """The number of tokens of the prompt."""
        return sum(not token.generated for token in self.tokens)
