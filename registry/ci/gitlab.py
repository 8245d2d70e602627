"""A job of GitLab CI: which revisions it is about, and the reports that a merge request shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...files.writing import write_whole
from ...schemas.digest import Digest
from ...schemas.errors import UsageError
from ...schemas.finding import Finding, Severity
from ...schemas.quotation import escape
from ...schemas.report import Report
from .check import Checked, Revisions
from .pages import render

JUNIT_FILE = "meteora-junit.xml"
QUALITY_FILE = "gl-code-quality-report.json"
_NO_COMMIT = re.compile(r"0*")


def read_revisions(environment: Mapping[str, str]) -> Revisions:
    """Return the revisions of a job: of a merge request its target branch, of a push the branch itself.

    Raises:
        UsageError: it is not a job of GitLab CI.
    """
    if environment.get("GITLAB_CI") != "true":
        raise UsageError(
            "this is not a job of GitLab CI: GITLAB_CI is not `true`",
            hint="elsewhere, use `meteora-registry validate --since REF`",
        )
    if target := environment.get("CI_MERGE_REQUEST_TARGET_BRANCH_NAME"):
        # The tip of the target, and not where the branch left it: an older policy may be laxer.
        tip = f"refs/remotes/origin/{target}"
        return Revisions(trusted=tip, since=tip, is_proposal=True)
    before = environment.get("CI_COMMIT_BEFORE_SHA", "")
    return Revisions(trusted="HEAD", since=None if _NO_COMMIT.fullmatch(before) else before)


def write_reports(checked: Checked, folder: Path) -> None:
    """Write the JUnit and the code quality report of a job into a folder.

    Raises:
        SourceUnreadable: they cannot be written.
    """
    write_whole(folder / JUNIT_FILE, render(checked, "junit").encode("utf-8", errors="replace"))
    write_whole(folder / QUALITY_FILE, format_code_quality(checked.report).encode("ascii"))


def format_code_quality(report: Report) -> str:
    """Return the report as GitLab's code quality report: a list of findings, each with a fingerprint."""
    entries = [
        _entry(adapter.name, finding, report) for adapter in report.adapters for finding in adapter.findings
    ]
    entries += [_entry("", finding, report) for finding in report.together]
    entries += [
        _describe(adapter.name, "unreadable", adapter.error, "blocker")
        for adapter in report.adapters
        if adapter.error
    ]
    return json.dumps(entries, indent=2) + "\n"


def _entry(name: str, finding: Finding, report: Report) -> dict[str, Any]:
    counts = report.counts_against(finding)
    otherwise = "minor" if finding.severity is Severity.WARN else "info"
    what = f"{finding.title} ({finding.place}): found {finding.found}, expected {finding.expected}"
    text = f"{what}. {finding.remedy}"
    path = "/".join(part for part in (name, finding.place.file) if part)
    return _describe(path, finding.code, text, "critical" if counts else otherwise)


def _describe(path: str, code: str, text: str, severity: str) -> dict[str, Any]:
    shown = "/".join(_parts(path)) or "."
    return {
        "description": text,
        "check_name": code,
        # The same finding has the same one in every run, so that GitLab shows what is new.
        "fingerprint": Digest.of_bytes("\0".join((shown, code, text)).encode("utf-8", errors="replace")),
        "severity": severity,
        "location": {"path": shown, "lines": {"begin": 1}},
    }


def _parts(path: str) -> Iterator[str]:
    yield from (escape(part, limit=255) for part in path.split("/") if part not in ("", "."))
