"""A report as a comment on a pull request."""

from __future__ import annotations

import re

from ...schemas.finding import Finding
from ...schemas.quotation import escape
from ...schemas.report import AdapterReport, Report
from .text import summarise

# Code spans are left alone; outside them these would be markup, a mention or a link.
_SPAN = re.compile(r"(`[^`]*`)")
_MARKUP = re.compile(r"([\\*_\[\]<>#@!~])")


def format_markdown(report: Report) -> str:
    """Return a section per adapter with a table of its findings."""
    lines = [f"### Adapter validation: {report.outcome}", ""]
    for adapter in report.adapters:
        lines += _section(adapter)
    if report.together:
        lines += ["**Together**", "", *_table(report.together), ""]
    lines += [f"Not checked: {what}" for what in report.not_asked]
    if len(report.adapters) > 1:
        lines += ["", summarise(report)]
    return "\n".join(lines).rstrip() + "\n"


def _section(adapter: AdapterReport) -> list[str]:
    verdict = f" ({adapter.verdict})" if adapter.verdict else ""
    lines = [f"**{_code(adapter.name)}**: {adapter.outcome}{verdict}", ""]
    if adapter.error:
        lines += [_plain(escape(adapter.error, limit=1000)), ""]
    if adapter.findings:
        lines += [*_table(adapter.findings), ""]
    return lines + [f"Not checked: {_plain(what)}" for what in adapter.unchecked]


def _table(findings: tuple[Finding, ...]) -> list[str]:
    rows = ["| rule | where | what | way out |", "|---|---|---|---|"]
    for finding in findings:
        what = f"{finding.title}: found {finding.found}, expected {finding.expected}"
        rule = f"{finding.code} {finding.severity}"
        cells = (rule, _code(str(finding.place)), what, finding.remedy)
        plain = [cell if cell.startswith("`") else _plain(cell) for cell in cells]
        # A bar ends a cell even within a code span.
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in plain) + " |")
    return rows


def _code(text: str) -> str:
    return f"`{escape(text, limit=600)}`"


def _plain(text: str) -> str:
    parts = _SPAN.split(text)
    return "".join(part if part.startswith("`") else _MARKUP.sub(r"\\\1", part) for part in parts)
