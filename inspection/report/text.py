"""A report for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from ...schemas.finding import Finding
from ...schemas.quotation import escape
from .overview import Issue, Overview, ShownAdapter

_SHOWN_PATH_CHARACTERS = 200


def format_text(overview: Overview) -> str:
    """Return each adapter with its findings, the refused first; of many also the issues and the total.

    These come last, where a terminal shows them.
    """
    lines = [line for adapter in overview.adapters for line in _describe(adapter)]
    if overview.together:
        lines.append("together:")
        lines += [f"  {line}" for entry in overview.together for line in describe_finding(entry.finding)]
    lines += overview.remarks
    if len(overview.adapters) > 1:
        lines += [_summarise(issue) for issue in overview.issues if issue.level != "note"]
        lines.append(overview.total)
    return "\n".join(lines) + "\n"


def describe_finding(finding: Finding) -> list[str]:
    """Return a finding in three lines: title and place, found and expected, reason and way out."""
    return [
        f"{finding.code} {finding.severity}: {finding.title} ({finding.place})",
        f"  found {finding.found}, expected {finding.expected}",
        f"  {finding.why}; {finding.remedy}",
    ]


def _summarise(issue: Issue) -> str:
    finding, paths = issue.example.finding, issue.paths
    first = escape(paths[0], limit=_SHOWN_PATH_CHARACTERS) or "together"
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{finding.code} {finding.severity}: {finding.title}: {first}{more}"


def _describe(adapter: ShownAdapter) -> Iterator[str]:
    yield f"{adapter.path}: {adapter.heading}"
    if adapter.error:
        yield f"  {adapter.error}"
    for entry in adapter.entries:
        yield from (f"  {line}" for line in describe_finding(entry.finding))
    yield from (f"  {remark}" for remark in adapter.remarks)
