"""A team's policy applied to an inspected adapter: the subject of its rules, and its severities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..schemas.errors import InvalidDocument
from ..schemas.finding import Effect, Finding, Severity
from ..schemas.policy import Policy
from .inspection import Inspection
from .rules.rule import registered_rules


@dataclass(frozen=True, slots=True)
class PolicyCase:
    """An inspected adapter before a policy; ``base`` is the stated one, or the declared."""

    policy: Policy
    inspection: Inspection
    base: str | None


def check_policy(policy: Policy) -> None:
    """Refuse a policy that changes the severity of a rule that protects a result.

    Raises:
        InvalidDocument: an unknown code, or one of a rule that protects a result.
    """
    rules = {rule.code: rule for rule in registered_rules()}
    problems = []
    for code in policy.severity:
        if code not in rules:
            problems.append(f"severity.{code}: there is no such rule")
        elif not rules[code].is_adjustable:
            problems.append(f"severity.{code}: `{rules[code].title}` protects the result and stays as it is")
    if problems:
        raise InvalidDocument(f"the policy cannot be applied: {'; '.join(problems)}", problems=problems)


def apply_severities(findings: Iterable[Finding], policy: Policy) -> tuple[Finding, ...]:
    """Return the findings with the severities of the policy; a raised one counts as the policy's refusal."""
    changed = []
    for finding in findings:
        setting = policy.severity.get(finding.code)
        if setting == "off":
            continue
        if setting is None:
            changed.append(finding)
            continue
        severity = Severity(setting)
        effect = Effect.POLICY if severity is Severity.REFUSE else Effect.NONE
        changed.append(finding.model_copy(update={"severity": severity, "effect": effect}))
    return tuple(changed)
