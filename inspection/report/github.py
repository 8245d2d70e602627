"""A report as GitHub workflow commands, which become annotations of the changed files."""

from __future__ import annotations

from ...schemas.finding import Finding
from ...schemas.quotation import escape
from ...schemas.report import Report
from .level import level_of

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def format_github(report: Report) -> str:
    """Return one command per finding and per unreadable adapter."""
    lines = []
    for adapter in report.adapters:
        name = escape(adapter.name, limit=4096)
        if adapter.error:
            lines.append(f"::error title=unreadable::{_data(f'{name}: {adapter.error}')}")
        for finding in adapter.findings:
            path = f"{name}/{finding.place.file}" if finding.place.file else name
            lines.append(_annotate(path, finding, report))
    lines += [_annotate(finding.place.file or "", finding, report) for finding in report.together]
    return "".join(f"{line}\n" for line in lines)


def _annotate(path: str, finding: Finding, report: Report) -> str:
    detail = finding.place.tensor or finding.place.field
    where = f"{detail}: " if detail else ""
    text = f"{where}found {finding.found}, expected {finding.expected}; {finding.remedy}"
    title = f"{finding.code} {finding.title}"
    command = f"::{_COMMANDS[level_of(finding, report)]}"
    return f"{command} file={_property(path)},title={_property(title)}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
