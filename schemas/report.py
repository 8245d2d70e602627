"""The report of a validation of one or many adapters: the document behind every output format."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from .document import Document
from .finding import Effect, Finding, Severity, Verdict


class Purpose(StrEnum):
    """The purpose of the adapters: use by themselves, or in a bundle."""

    USE = "use"
    FUSE = "fuse"


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
    """One adapter: its outcome, what was found, and what was asked for and could not be checked."""

    name: str
    outcome: Outcome
    verdict: Verdict | None
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...] = ()
    error: str | None = None


class Report(Document):
    """A validation; ``together`` holds the findings against fusing these adapters with each other.

    ``not_asked`` names checks that the request did not ask for.
    """

    meteora_report: Literal[1] = 1
    purpose: Purpose
    fail_on: Severity
    adapters: tuple[AdapterReport, ...]
    together: tuple[Finding, ...] = ()
    not_asked: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of all: unreadable over refused over inconclusive over accepted."""
        outcomes = {adapter.outcome for adapter in self.adapters}
        if self.together and blocks(self.together, self.purpose, self.fail_on):
            outcomes.add(Outcome.REFUSED)
        worst = (Outcome.UNREADABLE, Outcome.REFUSED, Outcome.INCONCLUSIVE)
        return next((each for each in worst if each in outcomes), Outcome.ACCEPTED)


def blocks(findings: Iterable[Finding], purpose: Purpose, fail_on: Severity) -> bool:
    """Return whether one of the findings refuses the adapter for this purpose."""
    return any(counts_against(finding, purpose, fail_on) for finding in findings)


def counts_against(finding: Finding, purpose: Purpose, fail_on: Severity) -> bool:
    """Return whether a finding refuses an adapter for this purpose; ``fail_on`` warn counts warnings too."""
    if finding.severity is Severity.REFUSE:
        return purpose is Purpose.FUSE or finding.effect is not Effect.NOT_FUSABLE
    return finding.severity is Severity.WARN and fail_on is Severity.WARN
