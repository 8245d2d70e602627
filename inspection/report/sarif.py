"""A report as SARIF 2.1.0 (OASIS), which code hosts show beside the changed files."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote as quote_uri

from ... import __version__
from ...schemas.finding import Finding, Severity
from ...schemas.report import AdapterReport, Report
from ..rules.rule import Rule, registered_rules
from .level import Level, level_of

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_DEFAULT_LEVELS = {Severity.REFUSE: "error", Severity.WARN: "warning", Severity.NOTE: "note"}


def format_sarif(report: Report) -> str:
    """Return one run with every rule that was broken, and a result per finding."""
    found = [(adapter.name, finding) for adapter in report.adapters for finding in adapter.findings]
    found += [(finding.place.file or "", finding) for finding in report.together]
    codes = sorted({finding.code for _, finding in found})
    rules = {rule.code: rule for rule in registered_rules()}
    failed = [_notification(adapter) for adapter in report.adapters if adapter.error]
    run = {
        "tool": {
            "driver": {
                "name": "meteora-registry",
                "version": __version__,
                "rules": [_rule(rules[code]) for code in codes],
            }
        },
        "invocations": [{"executionSuccessful": not failed, "toolExecutionNotifications": failed}],
        "results": [
            _result(name, finding, codes.index(finding.code), level_of(finding, report))
            for name, finding in found
        ],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": rule.remedy},
        "defaultConfiguration": {"level": _DEFAULT_LEVELS[rule.severity]},
    }


def _result(name: str, finding: Finding, index: int, level: Level) -> dict[str, Any]:
    place = finding.place
    path = "/".join(part for part in (name, place.file) if part) if place.file != name else name
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(path)}}}
    if detail := place.tensor or place.field:
        location["logicalLocations"] = [{"fullyQualifiedName": detail}]
    return {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": level,
        "message": {"text": f"{finding.title}: found {finding.found}, expected {finding.expected}. "
                    f"{finding.remedy}"},
        "locations": [location],
    }  # fmt: skip


def _notification(adapter: AdapterReport) -> dict[str, Any]:
    return {"level": "error", "message": {"text": f"{adapter.name}: {adapter.error}"}}


def _uri(path: str) -> str:
    return quote_uri(path.encode("utf-8", errors="replace"), safe="/-._~") or "."
