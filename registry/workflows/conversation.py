"""``generate`` and ``chat``: one prompt, or the turns of a conversation, answered by a bundle in pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...bundle import Bundle
from ...runtime import AnswerStream, Decision, LoadedBundle
from ...runtime.chat_prompt import ChatPrompts
from ...runtime.fitting import open_base
from ...runtime.loaded_bundle import CallChoice
from ...runtime.scopes.decision import longest_of
from ...schemas.errors import UsageError
from ...schemas.gate_choices import SCOPES, Scope
from ...schemas.names import PLAIN_BASE
from .inference import load_for_command


def load_to_answer(
    folder: Path, base: str, *, with_template: bool, member: str | None = None
) -> LoadedBundle:
    """Load a bundle on its base; what can be refused before the base's weights are loaded is.

    Raises:
        SourceUnreadable: bundle or base cannot be read.
        BundleRefused: it is not a bundle, or was made for another base.
        UsageError: a chat template is needed, and the base has none; or there is no such member to force.
    """
    forced_choice(Bundle.open(folder).config.names, member)
    opened = open_base(base)
    if with_template and opened.tokenizer.chat_template is None:
        raise UsageError(
            f"the base `{base}` has no chat template, so it takes no conversations",
            hint="give it one text as it is: `meteora-registry generate BUNDLE PROMPT --no-template`",
        )
    return load_for_command(folder, opened)


def forced_choice(members: tuple[str, ...], name: str | None) -> CallChoice:
    """Return the choice of a call that a member, or the plain base, answers; None leaves it to the bundle.

    Raises:
        UsageError: the bundle has no such member.
    """
    if name is None:
        return {}
    if name in members:
        return {"member": name}
    if name == PLAIN_BASE:
        return {"member": None}
    listed = ", ".join(f"`{each}`" for each in members)
    raise UsageError(f"the bundle has no member `{name}`, it has {listed}; `{PLAIN_BASE}` is the base alone")


def begin_answer(
    loaded: LoadedBundle,
    message: str,
    *,
    system: str | None,
    with_template: bool,
    member: str | None,
    max_new_tokens: int,
) -> AnswerStream:
    """Return the answer to one prompt in pieces; ``member`` as for ``forced_choice``.

    Raises:
        UsageError: the template refuses the prompt, or it is longer than the base takes.
    """
    with ChatPrompts(loaded.tokenizer) as prompts:
        conversation = Conversation(loaded, prompts, system=system, max_new_tokens=max_new_tokens)
        conversation.force(member)
        return conversation.ask(message) if with_template else conversation.complete(message)


class Conversation:
    """The turns of a conversation with a bundle, and who is to answer.

    A message becomes a part of it when its answer is kept.

    Attributes:
        loaded: the bundle on its base.
        forced: the member that answers, or ``PLAIN_BASE``; None while the bundle decides.
    """

    def __init__(
        self, loaded: LoadedBundle, prompts: ChatPrompts, *, system: str | None, max_new_tokens: int
    ) -> None:
        self.loaded = loaded
        self.forced: str | None = None
        self._prompts = prompts
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[dict[str, str]] = []
        self._max_new_tokens = max_new_tokens

    def force(self, name: str | None) -> None:
        """Let a member answer from now on; None lets the bundle decide again.

        Raises:
            UsageError: the bundle has no such member.
        """
        forced_choice(self.loaded.config.names, name)
        self.forced = name

    def ask(self, message: str) -> AnswerStream:
        """Return the answer to a message, in pieces.

        Raises:
            UsageError: the template refuses the conversation, or it is longer than the base takes.
        """
        return self.complete(self._prompts.write([*self._system, *self._turns, _turn("user", message)]))

    def complete(self, prompt: str) -> AnswerStream:
        """Return the answer to a prompt as it is, in pieces.

        Raises:
            UsageError: it is longer than the base takes.
        """
        choice = forced_choice(self.loaded.config.names, self.forced)
        return self.loaded.stream(prompt, max_new_tokens=self._max_new_tokens, **choice)

    def keep(self, message: str, answer: str) -> None:
        """Make a message and its answer a part of the conversation."""
        self._turns += [_turn("user", message), _turn("assistant", answer)]

    def forget(self) -> None:
        """Begin anew, with the same system prompt; a forced member stays."""
        self._turns.clear()


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@dataclass(frozen=True, slots=True)
class Served:
    """The members that gave an answer.

    Attributes:
        member: the member; None for the base. Of several decisions the longest counts, as in the answers of
            `serve`; where tokens decide, the largest share.
        confidence: of that decision; None where none was made.
        forced: whether the one that answered was named.
        scope: of the bundle.
        decisions: those that the answer was written under, in their order.
        shares: each member's share of the answer; `base` has what no member took.
    """

    member: str | None
    confidence: float | None
    forced: bool
    scope: Scope
    decisions: tuple[Decision, ...]
    shares: Mapping[str, float]

    @classmethod
    def of(cls, stream: AnswerStream, scope: Scope, *, forced: bool) -> Served:
        """Return who gave the answer of a stream that was read."""
        shares = stream.shares
        # The last token of the prompt is the one that the answer's first comes from.
        decisions = tuple(each for each in stream.answer.decisions if each.end >= stream.prompt_tokens)
        longest = longest_of(decisions)
        largest = max(shares, key=lambda member: shares[member])
        return cls(
            member=largest if longest is None else next(iter(longest.members), None),
            confidence=None if longest is None else longest.confidence,
            forced=forced,
            scope=scope,
            decisions=decisions,
            shares={member or PLAIN_BASE: share for member, share in shares.items()},
        )

    @property
    def decides_by_token(self) -> bool:
        """Whether the gates decided for each token, so that there is no decision to name."""
        return not self.forced and not SCOPES[self.scope].decides_ahead
