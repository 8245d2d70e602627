"""A report as SARIF 2.1.0 (OASIS), which code hosts show beside the changed files.

Within what GitHub documents for its code scanning: it shows 5000 results of a run and 1024 characters of a
rule's texts, needs a region of every result, and compares runs by one of the partial fingerprints.
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import quote as quote_uri

from ... import __version__
from ...schemas.finding import Severity
from ..rules.rule import Rule, registered_rules
from .overview import Entry, Overview, ShownAdapter, describe
from .places import Region

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MAX_RESULTS = 5000
_MAX_RULE_CHARACTERS = 1024
_DEFAULT_LEVELS = {Severity.REFUSE: "error", Severity.WARN: "warning", Severity.NOTE: "note"}
_FINGERPRINT = "primaryLocationLineHash"
_ROOT = "%SRCROOT%"


def format_sarif(overview: Overview) -> str:
    """Return one run with every rule that was broken, and the worst results, one for each finding."""
    ranked = overview.worst_first
    shown = [entry for _, entry in ranked[:MAX_RESULTS]]
    codes = sorted({entry.finding.code for entry in shown})
    rules = {rule.code: rule for rule in registered_rules()}
    failed = [_notification(adapter) for adapter in overview.adapters if adapter.error]
    left_out = len(ranked) - len(shown)
    notes = [_left_out(left_out)] if left_out else []
    driver: dict[str, Any] = {
        "name": "meteora-registry",
        "version": __version__,
        "rules": [_rule(rules[code], overview) for code in codes],
    }
    if overview.docs_url:
        driver["informationUri"] = overview.docs_url
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": not failed, "toolExecutionNotifications": failed + notes}],
        "columnKind": "unicodeCodePoints",
        "results": [_result(entry, codes.index(entry.finding.code)) for entry in shown],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(rule: Rule, overview: Overview) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.title[:_MAX_RULE_CHARACTERS]},
        "fullDescription": {"text": rule.why[:_MAX_RULE_CHARACTERS]},
        "help": {"text": rule.remedy},
        "defaultConfiguration": {"level": _DEFAULT_LEVELS[rule.severity]},
    }
    if link := overview.link_to(rule.code):
        described["helpUri"] = link
    return described


def _result(entry: Entry, index: int) -> dict[str, Any]:
    finding = entry.finding
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": _artifact(entry.place.path),
            "region": _region(entry.place.region or Region()),
        }
    }
    if detail := finding.place.tensor or finding.place.field:
        location["logicalLocations"] = [{"fullyQualifiedName": detail}]
    return {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": entry.level,
        "message": {"text": f"{finding.title}: {describe(finding)}; {finding.remedy}"},
        "locations": [location],
        "partialFingerprints": {_FINGERPRINT: entry.fingerprint},
    }


def _region(region: Region) -> dict[str, int]:
    return {
        "startLine": region.line,
        "startColumn": 1,
        "endLine": region.line,
        "endColumn": region.end_column,
    }


def _artifact(path: str) -> dict[str, str]:
    quoted = quote_uri(os.fsencode(path), safe="/-._~")
    if path.startswith("/"):
        return {"uri": f"file://{quoted}"}
    return {"uri": quoted or ".", "uriBaseId": _ROOT}


def _notification(adapter: ShownAdapter) -> dict[str, Any]:
    return {"level": "error", "message": {"text": f"{adapter.path}: {adapter.error}"}}


def _left_out(count: int) -> dict[str, Any]:
    return {"level": "warning", "message": {"text": f"{count} more results are not in this file"}}
