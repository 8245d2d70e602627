"""Rules: their registration, and how one is run.

A rule is a generator function: it is given one subject, such as the parsed config, and yields an
observation for every place that breaks it. The decorator adds what is the same for every
observation: code, effect, severity, why it matters and the way out. The title is the first line of
the function's docstring. Rules run in the order of their codes, so findings have a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from inspect import getdoc
from itertools import islice
from typing import Any, TypeVar

from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.finding import Effect, Finding, Place, Severity
from ...schemas.quotation import escape

MAX_FINDINGS_PER_RULE = 20
# The rest is counted, not kept; a file can hold more tensors than a person can read of.
_MAX_COUNTED = 100_000

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Observation:
    """One place that breaks a rule; ``remedy`` replaces the rule's own where more is known."""

    found: str
    expected: str
    tensor: str | None = None
    field: str | None = None
    file: str | None = None
    remedy: str | None = None


Observations = Iterator[Observation]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with its metadata; ``about`` is the type of the subject that it judges."""

    code: str
    name: str
    title: str
    about: type
    file: str | None
    severity: Severity
    effect: Effect
    why: str
    remedy: str
    check: Callable[[Any], Observations]

    @property
    def is_adjustable(self) -> bool:
        """Whether a policy may change the severity: only where no result depends on it."""
        return self.severity is not Severity.REFUSE

    def findings(self, subject: Any) -> Iterator[Finding]:
        """Yield a finding for each of the first twenty places; the last one counts the other places."""
        observations = self.check(subject)
        shown = list(islice(observations, MAX_FINDINGS_PER_RULE))
        more = sum(1 for _ in islice(observations, _MAX_COUNTED))
        if more:
            shown[-1] = replace(shown[-1], found=f"{shown[-1].found} (and {more} more places)")
        for observation in shown:
            yield self.finding(observation)

    def finding(self, observation: Observation) -> Finding:
        """Return the finding for an observation of this rule."""
        place = Place(
            file=escape(observation.file) if observation.file else self.file,
            tensor=None if observation.tensor is None else escape(observation.tensor, limit=512),
            field=None if observation.field is None else escape(observation.field, limit=512),
        )
        return Finding(
            code=self.code,
            title=self.title,
            severity=self.severity,
            effect=self.effect,
            place=place,
            found=observation.found,
            expected=observation.expected,
            why=self.why,
            remedy=observation.remedy or self.remedy,
        )


_RULES: dict[str, Rule] = {}


def rule(
    code: str,
    about: type[Subject],
    outcome: Effect | Severity,
    *,
    why: str,
    remedy: str,
    file: str | None = None,
) -> Callable[[Callable[[Subject], Observations]], Callable[[Subject], Observations]]:
    """Register a rule.

    Args:
        code: its stable name, never used again for anything else.
        about: the type of the subject.
        outcome: the effect of a refusal, or the severity of what is none.
        why: what goes wrong when this is overlooked.
        remedy: the way out.
        file: the file where it is found, if that is always the same.
    """
    if code in _RULES:
        raise ValueError(f"the code `{code}` is taken by the rule `{_RULES[code].name}`")

    def register(check: Callable[[Subject], Observations]) -> Callable[[Subject], Observations]:
        title = (getdoc(check) or "").partition("\n")[0].rstrip(".")
        severity = outcome if isinstance(outcome, Severity) else Severity.REFUSE
        effect = outcome if isinstance(outcome, Effect) else Effect.NONE
        name = check.__name__.replace("_", "-")
        _RULES[code] = Rule(code, name, title, about, file, severity, effect, why, remedy, check)
        return check

    return register


def examine(subject: object) -> tuple[Finding, ...]:
    """Return the findings of all rules about this type of subject, in the order of their codes."""
    rules = sorted((each for each in _RULES.values() if each.about is type(subject)), key=lambda r: r.code)
    return tuple(finding for each in rules for finding in each.findings(subject))


def order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings by code; those of one rule stay in the order in which they were made."""
    return tuple(sorted(findings, key=lambda finding: finding.code))


def registered_rules() -> tuple[Rule, ...]:
    """Return the rules whose modules have been imported, by code."""
    return tuple(_RULES[code] for code in sorted(_RULES))


__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "Observation",
    "Observations",
    "Rule",
    "examine",
    "order",
    "registered_rules",
    "rule",
]
