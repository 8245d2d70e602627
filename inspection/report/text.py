"""A report for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ...schemas.finding import Finding
from ...schemas.quotation import escape
from ...schemas.report import AdapterReport, Report


def format_text(report: Report) -> str:
    """Return each adapter with its findings, what was not checked, and a summary of many."""
    lines = [line for adapter in report.adapters for line in _describe(adapter)]
    if report.together:
        lines += ["together:", *(f"  {line}" for each in report.together for line in describe_finding(each))]
    lines += [f"not checked: {what}" for what in report.not_asked]
    if len(report.adapters) > 1:
        lines.append(summarise(report))
    return "\n".join(lines) + "\n"


def summarise(report: Report) -> str:
    """Return the number of adapters of each outcome."""
    counts = Counter(adapter.outcome for adapter in report.adapters)
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    return f"{len(report.adapters)} adapters: {said}"


def describe_finding(finding: Finding) -> list[str]:
    """Return a finding in three lines: title and place, found and expected, reason and way out."""
    return [
        f"{finding.code} {finding.severity}: {finding.title} ({finding.place})",
        f"  found {finding.found}, expected {finding.expected}",
        f"  {finding.why}; {finding.remedy}",
    ]


def _describe(adapter: AdapterReport) -> Iterator[str]:
    verdict = f" ({adapter.verdict})" if adapter.verdict else ""
    yield f"{escape(adapter.name, limit=4096)}: {adapter.outcome}{verdict}"
    if adapter.error:
        yield f"  {escape(adapter.error, limit=4096)}"
    for finding in adapter.findings:
        yield from (f"  {line}" for line in describe_finding(finding))
    for what in adapter.unchecked:
        yield f"  not checked: {what}"
