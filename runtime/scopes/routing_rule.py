"""The rule that a bundle routes by: its scope, top_k and temperature, and when no member serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from ...kernels.routing import Routing, select_top_k
from ...schemas.bundle import MAX_TEMPERATURE, MIN_TEMPERATURE, BundleConfig
from ...schemas.errors import UsageError
from ...schemas.gate_choices import SCOPES, Answers, Scope, check_answers, check_scope
from .numbered_lines import LineTexts
from .request_gate import RequestRule


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """A bundle's rule of routing: its config's rule, or the one that `route_as` set.

    ``request`` is the rule of the request gates, and ``evidence`` names the modules whose gates are read for
    a decision ahead without them; None for all. ``answers`` is who decides for the lines of an answer, and
    ``line_texts`` what tokens mean for lines, where the bundle states it.
    """

    scope: Scope
    top_k: int
    temperature: float
    abstain: float | None
    request: RequestRule | None = None
    evidence: tuple[str, ...] | None = None
    answers: Answers = "by-text"
    line_texts: LineTexts | None = None

    @classmethod
    def of(cls, bundle: BundleConfig) -> Self:
        """Return the bundle's own rule."""
        found = bundle.gate.request
        request = None
        if found is not None:
            request = RequestRule(
                len(bundle.members), found.modules, found.centre, found.spread, found.quantiles
            )
        gate = bundle.gate
        return cls(
            gate.scope,
            bundle.top_k,
            bundle.temperature,
            gate.abstain,
            request,
            gate.evidence,
            answers="by-text" if gate.answers is None else gate.answers.rule,
            line_texts=None if gate.answers is None else LineTexts.of(gate.answers),
        )

    def is_sure(self, confidence: float) -> bool:
        """Return whether members serve a request of this confidence, which is otherwise left to the base."""
        return self.abstain is None or confidence >= self.abstain

    def route(self, logits: Tensor, confidence: Tensor) -> Routing:
        """Return the routing [..., k] of decisions with logits [..., L]; weights 0 leave the base alone."""
        routing = select_top_k(logits, self.top_k, temperature=self.temperature)
        if self.abstain is None:
            return routing
        return Routing(routing.selection, routing.weights * (confidence >= self.abstain).unsqueeze(-1))

    @property
    def lines(self) -> LineTexts | None:
        """What tokens mean for lines, if answers are in order."""
        return self.line_texts if self.answers == "in-order" else None

    @property
    def by_request_gates(self) -> RequestRule | None:
        """The rule of the request gates, if they decide in this scope."""
        return self.request if SCOPES[self.scope].decides_requests else None

    @property
    def observes_answers(self) -> bool:
        """Whether the plain base also reads the answer, and not the prompt alone."""
        return SCOPES[self.scope].observes_answers

    @property
    def decides_ahead(self) -> bool:
        """Whether members are chosen from a pass of the plain base, before the routed pass."""
        return SCOPES[self.scope].decides_ahead


def _check_answers(rule: RoutingRule) -> None:
    check_answers(rule.answers, rule.scope)
    if rule.answers == "in-order" and rule.line_texts is None:
        raise UsageError(
            "the bundle does not state which tokens number a line, so its answers cannot be in order",
            hint="fit it with `meteora-registry gate fit --scope segment --answers in-order`",
        )


def changed_rule(rule: RoutingRule, changes: Mapping[str, Any], *, members: int) -> RoutingRule:
    """Return the rule with some of its fields changed, for a bundle of this many members.

    A threshold that is not among the changes is dropped if the new scope has no decisions, and the order of
    answers if it does not follow them.

    Raises:
        UsageError: a value is out of range, a threshold is given for a scope without decisions, or answers in
            order for one that does not follow them or for a bundle that does not know its lines.
    """
    changed = replace(rule, **changes)
    check_scope(changed.scope)
    if not changed.decides_ahead and "abstain" not in changes:
        changed = replace(changed, abstain=None)
    if not changed.observes_answers and "answers" not in changes:
        changed = replace(changed, answers="by-text")
    _check_answers(changed)
    if not 1 <= changed.top_k <= members:
        raise UsageError(f"top_k is {changed.top_k}, expected 1 to the number of members, {members}")
    if not MIN_TEMPERATURE <= changed.temperature <= MAX_TEMPERATURE:
        raise UsageError(
            f"the temperature is {changed.temperature}, expected {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        )
    if changed.abstain is None:
        return changed
    if not changed.decides_ahead:
        raise UsageError(f"the scope `{changed.scope}` decides token by token and cannot abstain")
    if not 0 < changed.abstain <= 1:
        raise UsageError(f"abstain is {changed.abstain}, expected above 0 and at most 1")
    return changed
