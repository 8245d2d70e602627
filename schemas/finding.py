"""Findings of an inspection of an adapter, and the two verdicts that follow from them.

``broken`` means that every use goes wrong; ``not fusable`` that the adapter is sound and this format
cannot carry it; ``broken for use`` that loaders go wrong and a fuse does not, because it normalises the
names. A note or a warning changes neither verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

from .document import Document

RULE_CODE_PATTERN = r"^MR[0-9]{3}$"


class Severity(StrEnum):
    """The weight of a finding."""

    REFUSE = "refuse"
    WARN = "warn"
    NOTE = "note"


class Effect(StrEnum):
    """The verdict that a refusal changes."""

    BROKEN = "broken"
    NOT_FUSABLE = "not fusable"
    # Loaders drop or misread tensors whose modules are beyond doubt, so a fuse takes them.
    BROKEN_FOR_USE = "broken for use"
    # Loaders drop tensors that the config does not declare; a fuse takes them if it is asked to.
    UNDECLARED = "broken unless its tensors are trusted"
    # The engine refuses it, or silently leaves a part of it out; with PEFT it works.
    NOT_SERVED = "not served by vLLM"
    # A policy refuses it; the adapter itself may be sound and fusable.
    POLICY = "policy"
    NONE = "none"


EFFECTS_ON_USE = frozenset({Effect.BROKEN, Effect.BROKEN_FOR_USE, Effect.UNDECLARED})


def effects_on_fuse(*, trust_tensors: bool) -> frozenset[Effect]:
    """Return the effects that keep an adapter out of a bundle."""
    always = frozenset({Effect.BROKEN, Effect.NOT_FUSABLE})
    return always if trust_tensors else always | {Effect.UNDECLARED}


class Place(Document):
    """The place of a finding: a file, and in it a tensor or a field."""

    file: str | None = None
    tensor: str | None = None
    field: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.tensor or self.field) if part) or "the adapter"


class Finding(Document):
    """One thing an inspection found, with the reason and the way out."""

    code: Annotated[str, StringConstraints(pattern=RULE_CODE_PATTERN)]
    title: str
    severity: Severity
    effect: Effect
    place: Place
    found: str
    expected: str
    why: str
    remedy: str

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"{self.code} {self.severity}: {self.title} ({self.place}): "
            f"found {self.found}, expected {self.expected}; {self.remedy}"
        )


class Verdict(Document):
    """The verdicts that follow from the findings."""

    sound: bool
    fusable: bool

    @classmethod
    def of(cls, findings: Iterable[Finding], *, trust_tensors: bool = False) -> Verdict:
        """Return the verdicts that follow from the refusals.

        With ``trust_tensors`` modules that the config does not declare can be fused all the same.
        """
        effects = {finding.effect for finding in findings if finding.severity is Severity.REFUSE}
        return cls(
            sound=effects.isdisjoint(EFFECTS_ON_USE),
            fusable=effects.isdisjoint(effects_on_fuse(trust_tensors=trust_tensors)),
        )

    @property
    def word(self) -> str:
        """One word for it: what can be fused, what works by itself, or what is broken."""
        return "fusable" if self.fusable else "sound" if self.sound else "broken"

    def __str__(self) -> str:
        if self.fusable and not self.sound:
            return "broken for use, fusable"
        return ("sound" if self.sound else "broken") + (", fusable" if self.fusable else ", not fusable")
