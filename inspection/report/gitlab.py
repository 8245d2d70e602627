"""A report as GitLab's code quality report: a list of findings that GitLab follows by their fingerprints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .overview import Level, Overview, describe, digest_of
from .places import Region

_SEVERITIES: dict[Level, str] = {"error": "critical", "warning": "minor", "note": "info"}


def format_gitlab(overview: Overview) -> str:
    """Return an entry per finding, and one per adapter that cannot be read."""
    return json.dumps([*_unreadable(overview), *_findings(overview)], indent=2) + "\n"


def _unreadable(overview: Overview) -> Iterator[dict[str, Any]]:
    for adapter in overview.adapters:
        if adapter.error:
            code = "unreadable"
            yield _entry(code, adapter.error, "blocker", adapter.path, 1, digest_of(adapter.path, code))


def _findings(overview: Overview) -> Iterator[dict[str, Any]]:
    for path, entry in overview.worst_first:
        finding = entry.finding
        text = f"{finding.title} ({finding.place}): {describe(finding)}; {finding.remedy}"
        place = entry.file or path or "."
        line = (entry.place.region or Region()).line
        yield _entry(finding.code, text, _SEVERITIES[entry.level], place, line, entry.fingerprint)


def _entry(code: str, text: str, severity: str, path: str, line: int, fingerprint: str) -> dict[str, Any]:
    return {
        "description": text,
        "check_name": code,
        "fingerprint": fingerprint,
        "severity": severity,
        "location": {"path": path, "lines": {"begin": line}},
    }
