"""The level of a finding in the formats that know error, warning and note."""

from __future__ import annotations

from typing import Literal

from ...schemas.finding import Finding, Severity
from ...schemas.report import Report

Level = Literal["error", "warning", "note"]


def level_of(finding: Finding, report: Report) -> Level:
    """Return error for a finding against the purpose; a refusal for another purpose is only a note."""
    if report.counts_against(finding):
        return "error"
    return "warning" if finding.severity is Severity.WARN else "note"
