"""A job of GitLab CI: which revisions it is about, and the reports that a merge request shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...files.writing import write_whole
from ...schemas.errors import UsageError
from .check import Checked, Revisions, pushed_from
from .pages import render

JUNIT_FILE = "meteora-junit.xml"
QUALITY_FILE = "gl-code-quality-report.json"


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
    return Revisions(trusted="HEAD", since=pushed_from(environment.get("CI_COMMIT_BEFORE_SHA")))


def write_reports(checked: Checked, folder: Path) -> None:
    """Write the JUnit and the code quality report of a job into a folder.

    Raises:
        SourceUnreadable: they cannot be written.
    """
    write_whole(folder / JUNIT_FILE, render(checked, "junit").encode("utf-8", errors="replace"))
    write_whole(folder / QUALITY_FILE, render(checked, "gitlab").encode("ascii"))
