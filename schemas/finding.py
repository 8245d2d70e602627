"""Findings of an inspection of an adapter, and the two verdicts that follow from them.

``broken`` means that every use goes wrong; ``not fusable`` that the adapter is sound and this format
cannot carry it. A note or a warning changes neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

from .document import Document


class Severity(StrEnum):
    """The weight of a finding."""

    REFUSE = "refuse"
    WARN = "warn"
    NOTE = "note"


class Effect(StrEnum):
    """The verdict that a refusal changes."""

    BROKEN = "broken"
    NOT_FUSABLE = "not fusable"
    # A policy refuses it; the adapter itself may be sound and fusable.
    POLICY = "policy"
    NONE = "none"


class Place(Document):
    """The place of a finding: a file, and in it a tensor or a field."""

    file: str | None = None
    tensor: str | None = None
    field: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.tensor or self.field) if part) or "the adapter"


class Finding(Document):
    """One thing an inspection found, with the reason and the way out."""

    code: Annotated[str, StringConstraints(pattern=r"^MR[0-9]{3}$")]
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
    def of(cls, findings: Iterable[Finding]) -> Verdict:
        """Return the verdicts: sound unless a refusal is `broken`, fusable unless there is any refusal."""
        refusals = [finding for finding in findings if finding.severity is Severity.REFUSE]
        broken = any(finding.effect is Effect.BROKEN for finding in refusals)
        blocked = broken or any(finding.effect is Effect.NOT_FUSABLE for finding in refusals)
        return cls(sound=not broken, fusable=not blocked)

    def __str__(self) -> str:
        return ("sound" if self.sound else "broken") + (", fusable" if self.fusable else ", not fusable")
