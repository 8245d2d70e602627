"""The report of a validation of one or many adapters: the document behind every output format."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from .document import Count, Document
from .finding import EFFECTS_ON_USE, Effect, Finding, Severity, Verdict, effects_on_fuse


class Purpose(StrEnum):
    """The purpose of the adapters: use by themselves, in a bundle, or in a vLLM engine."""

    USE = "use"
    FUSE = "fuse"
    VLLM = "vllm"


class Outcome(StrEnum):
    """The outcome of a validation.

    ``INCONCLUSIVE`` means that there is no reason to refuse the adapter and that a check that was asked for
    could not be made.
    """

    ACCEPTED = "accepted"
    REFUSED = "refused"
    INCONCLUSIVE = "inconclusive"
    UNREADABLE = "unreadable"


class AdapterReport(Document):
    """One adapter: its outcome, what was found, and what was asked for and could not be checked.

    ``known`` are the findings that a baseline has: they count for the verdict, and not for the outcome.
    """

    name: str
    outcome: Outcome
    verdict: Verdict | None
    findings: tuple[Finding, ...]
    known: tuple[Finding, ...] = ()
    unchecked: tuple[str, ...] = ()
    error: str | None = None


class Selection(Document):
    """The choice of the adapters that changed since a commit; with ``reason`` all were taken.

    ``removed`` are folders that had an adapter then, or have changed files of one, and have none now.
    """

    commit: str
    unchanged: Count
    removed: tuple[str, ...] = ()
    reason: str | None = None


class Report(Document):
    """A validation; ``together`` holds the findings against fusing these adapters with each other.

    ``known_together`` are those of them that a baseline has, ``selection`` is None if all adapters were
    asked for. ``not_asked`` names checks that the request did not ask for; with ``trust_tensors`` modules
    that a config does not declare count as the adapter's own.
    """

    meteora_report: Literal[1] = 1
    purpose: Purpose
    fail_on: Severity
    trust_tensors: bool = False
    adapters: tuple[AdapterReport, ...]
    together: tuple[Finding, ...] = ()
    known_together: tuple[Finding, ...] = ()
    selection: Selection | None = None
    not_asked: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of all: unreadable over refused over inconclusive over accepted."""
        outcomes = {adapter.outcome for adapter in self.adapters}
        if any(self.counts_against(finding) for finding in self.together):
            outcomes.add(Outcome.REFUSED)
        worst = (Outcome.UNREADABLE, Outcome.REFUSED, Outcome.INCONCLUSIVE)
        return next((each for each in worst if each in outcomes), Outcome.ACCEPTED)

    def counts_against(self, finding: Finding) -> bool:
        """Return whether a finding refuses an adapter here."""
        return counts_against(finding, self.purpose, self.fail_on, trust_tensors=self.trust_tensors)


def counts_against(
    finding: Finding, purpose: Purpose, fail_on: Severity, *, trust_tensors: bool = False
) -> bool:
    """Return whether a finding refuses an adapter for this purpose; ``fail_on`` warn counts warnings too."""
    if finding.severity is Severity.REFUSE:
        refusing = _refusing_effects(purpose, trust_tensors=trust_tensors)
        return finding.effect is Effect.POLICY or finding.effect in refusing
    return finding.severity is Severity.WARN and fail_on is Severity.WARN


def _refusing_effects(purpose: Purpose, *, trust_tensors: bool) -> frozenset[Effect]:
    if purpose is Purpose.FUSE:
        return effects_on_fuse(trust_tensors=trust_tensors)
    return EFFECTS_ON_USE | {Effect.NOT_SERVED} if purpose is Purpose.VLLM else EFFECTS_ON_USE
