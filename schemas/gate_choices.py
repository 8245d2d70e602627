"""The choices that a gate's config has: its kind, its initialisation, and what one decision serves.

Documents are checked against the names here; what each name computes is registered where it is computed, and
a test compares the two: kinds in ``kernels/gate_kinds.py``, initialisations in ``fuser/gates.py``, scopes in
``runtime/router.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

from .errors import UsageError

GateKind = Literal["linear", "absolute", "normalised"]
# The kinds that are linear in the gate, so that a gate of the kind has a closed form.
FittedKind = Literal["linear", "normalised"]

# How prompts are read: as their lines give them, as a user types them, in the base's chat template, or both.
PromptForm = Literal["given", "plain", "chat", "both"]


def forms_of(form: PromptForm) -> tuple[PromptForm, ...]:
    """Return the forms in which prompts are judged: with ``both`` each prompt in two."""
    return ("plain", "chat") if form == "both" else (form,)


InitialGate = Literal["arrow", "normal"]
# The kind of a gate that still has the values of its initialisation.
INITIAL_GATE_KINDS: dict[InitialGate, GateKind] = {"arrow": "absolute", "normal": "linear"}

# The share of own prompts that a fit lets a decision about requests leave to the base.
DEFAULT_ABSTAIN = 0.05
# So many samples of a member are read at most.
DEFAULT_SAMPLES = 32

Scope = Literal["token", "layer", "prompt", "prompt+token", "segment"]
# Who decides for the numbered lines of an answer: their own text, or the item of the prompt with that number.
Answers = Literal["by-text", "in-order"]


@dataclass(frozen=True, slots=True)
class ScopeTraits:
    """The traits of a scope, apart from how it routes.

    Attributes:
        summary: one sentence for a bundle's card.
        decides_ahead: whether members are chosen from a pass of the plain base, before the routed pass. Such
            a scope decides for several tokens at once, and so can decide that no member serves them.
        decides_requests: whether it makes one decision for a request, from its prompt alone; request gates
            can make it.
        observes_answers: whether the plain base also reads the answer, and not the prompt alone.
        fits_first_tokens: whether a fit counts the first tokens of every sample.
        fits_concatenated: whether a fit also reads samples behind those of other members.
    """

    summary: str
    decides_ahead: bool = False
    decides_requests: bool = False
    observes_answers: bool = False
    fits_first_tokens: bool = True
    fits_concatenated: bool = False


SCOPES: dict[Scope, ScopeTraits] = {
    "token": ScopeTraits(
        "Each linear layer picks the top {top_k} of {count} adapters for each token", fits_first_tokens=False
    ),
    "layer": ScopeTraits("Each layer picks the top {top_k} of {count} adapters for each token"),
    "prompt": ScopeTraits(
        "One decision about the prompt picks the top {top_k} of {count} adapters for all that follows",
        decides_ahead=True,
        decides_requests=True,
    ),
    "prompt+token": ScopeTraits(
        "One decision picks among {count} adapters for the prompt; from there on each linear layer picks "
        "the top {top_k} for each token",
        decides_ahead=True,
        decides_requests=True,
        fits_first_tokens=False,
    ),
    "segment": ScopeTraits(
        "One decision for each segment of the text picks the top {top_k} of {count} adapters",
        decides_ahead=True,
        observes_answers=True,
        fits_concatenated=True,
    ),
}
DECISION_SCOPES: frozenset[Scope] = frozenset(
    scope for scope, traits in SCOPES.items() if traits.decides_ahead
)


def check_scope(scope: str) -> Scope:
    """Return the scope of this name.

    Raises:
        UsageError: there is none.
    """
    if scope not in SCOPES:
        listed = ", ".join(f"`{known}`" for known in SCOPES)
        raise UsageError(f"the scope is `{scope}`, expected one of {listed}")
    return scope


def check_answers(answers: str, scope: Scope) -> Answers:
    """Return the rule for answers of this name, for a scope.

    Raises:
        UsageError: there is none, or the scope does not follow answers.
    """
    if answers not in get_args(Answers):
        listed = ", ".join(f"`{known}`" for known in get_args(Answers))
        raise UsageError(f"`answers` is `{answers}`, expected one of {listed}")
    if answers == "in-order" and not SCOPES[scope].observes_answers:
        raise UsageError(f"answers in order go with the scope `segment`, found `{scope}`")
    return cast("Answers", answers)
