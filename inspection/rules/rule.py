"""Rules: their registration, and how one is run.

A rule is a generator function: it is given one subject, such as the parsed config, and yields an
observation for every place that breaks it. The decorator adds what is the same for every
observation: code, effect, severity, why it matters and the way out. The title is the first line of
the function's docstring. Rules run in the order of their codes, so findings have a fixed order.
"""

from __future__ import annotations

from collections import Counter
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
    """One place that breaks a rule; ``remedy`` replaces the rule's own where more is known.

    Places of one ``reason`` become one finding. Each field and each named file is a reason by itself.
    """

    found: str
    expected: str
    tensor: str | None = None
    field: str | None = None
    file: str | None = None
    remedy: str | None = None
    reason: str = ""

    @property
    def group(self) -> tuple[str | None, ...]:
        """What the places of one finding have in common."""
        field = self.field.partition(".")[0] if self.field and self.tensor is None else None
        return self.reason, self.remedy, self.file, field


Observations = Iterator[Observation]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with its metadata.

    ``about`` is the type of the subject that it judges; with ``sees_base`` it judges it anew once the base is
    at hand.
    """

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
    sees_base: bool = False

    @property
    def is_adjustable(self) -> bool:
        """Whether a policy may change the severity: only where no result depends on it."""
        return self.severity is not Severity.REFUSE

    def findings(self, subject: Any) -> Iterator[Finding]:
        """Yield a finding for each of the first twenty reasons: its first place, and the number of others."""
        first: dict[tuple[str | None, ...], Observation] = {}
        places: Counter[tuple[str | None, ...]] = Counter()
        for observation in islice(self.check(subject), _MAX_COUNTED):
            group = observation.group
            if group not in first and len(first) == MAX_FINDINGS_PER_RULE:
                group = next(reversed(first))
            first.setdefault(group, observation)
            places[group] += 1
        for group, observation in first.items():
            more = places[group] - 1
            counted = f" (and {more} more place{'s' if more > 1 else ''})" if more else ""
            yield self.finding(replace(observation, found=observation.found + counted))

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
    sees_base: bool = False,
) -> Callable[[Callable[[Subject], Observations]], Callable[[Subject], Observations]]:
    """Register a rule.

    Args:
        code: its stable name, never used again for anything else.
        about: the type of the subject.
        outcome: the effect of a refusal, or the severity of what is none.
        why: what goes wrong when this is overlooked.
        remedy: the way out.
        file: the file where it is found, if that is always the same.
        sees_base: whether it judges the subject anew once the base is at hand.
    """
    if code in _RULES:
        raise ValueError(f"the code `{code}` is taken by the rule `{_RULES[code].name}`")

    def register(check: Callable[[Subject], Observations]) -> Callable[[Subject], Observations]:
        title = (getdoc(check) or "").partition("\n")[0].rstrip(".")
        severity = outcome if isinstance(outcome, Severity) else Severity.REFUSE
        effect = outcome if isinstance(outcome, Effect) else Effect.NONE
        name = check.__name__.replace("_", "-")
        _RULES[code] = Rule(code, name, title, about, file, severity, effect, why, remedy, check, sees_base)
        return check

    return register


def examine(subject: object, *, with_base: bool = False) -> tuple[Finding, ...]:
    """Return the findings of all rules about this type of subject, in the order of their codes.

    With ``with_base`` only of those rules that judge it anew beside the base.
    """
    chosen = [each for each in _RULES.values() if each.about is type(subject)]
    rules = sorted((each for each in chosen if each.sees_base or not with_base), key=lambda r: r.code)
    return tuple(finding for each in rules for finding in each.findings(subject))


def codes_that_see_the_base() -> frozenset[str]:
    """Return the codes of the rules that judge an adapter anew beside its base."""
    return frozenset(each.code for each in _RULES.values() if each.sees_base)


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
    "codes_that_see_the_base",
    "examine",
    "order",
    "registered_rules",
    "rule",
]
