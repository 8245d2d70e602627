"""A job of GitHub Actions: which revisions it is about, and where its results go.

Everything is read from the documented variables of the environment and the file of the event.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from ...files.reading import read_bounded
from ...schemas.document import load_json
from ...schemas.errors import SourceUnreadable, UsageError
from ...schemas.github import MAX_COMMENT_CHARACTERS, MAX_EVENT_BYTES, MAX_SUMMARY_BYTES, Event
from ...schemas.names import check_repository
from ...schemas.report import Outcome
from .check import Checked, Revisions, pushed_from
from .github_comment import Kept, Thread
from .pages import render, render_page, shorten, size_in_bytes

_NOT_IN_A_MARK = re.compile(r"[^A-Za-z0-9_]+")
# A comment and a summary may have something of others before and behind them.
_ROOM = 1024


@dataclass(frozen=True, slots=True)
class GitHubJob:
    """One job, as its environment describes it."""

    event: Event
    event_name: str
    environment: Mapping[str, str]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Return the job of an environment.

        Raises:
            UsageError: it is not one of GitHub Actions, or a pull request has the rights of its base in it.
            SourceUnreadable, InvalidDocument: the event cannot be read.
        """
        name = environment.get("GITHUB_EVENT_NAME")
        path = environment.get("GITHUB_EVENT_PATH")
        if not name or not path:
            raise UsageError(
                "this is not a job of GitHub Actions: GITHUB_EVENT_NAME or GITHUB_EVENT_PATH is not set",
                hint="elsewhere, use `meteora-registry validate --since REF`",
            )
        if name == "pull_request_target":
            raise UsageError(
                "the workflow runs on `pull_request_target`, which gives a stranger the rights of the base",
                hint="run it on `pull_request`; where the token may not comment, the summary has everything",
            )
        data = read_bounded(Path(path), MAX_EVENT_BYTES)
        load_json(data, what="the event", max_bytes=MAX_EVENT_BYTES)
        return cls(Event.from_checked(data, what="the event"), name, environment)

    def revisions(self) -> Revisions:
        """Return the revisions: of a pull request or a merge queue its base, of a push the branch itself."""
        if (request := self.event.pull_request) is not None:
            return Revisions(trusted=request.base.sha, since=request.base.sha, is_proposal=True)
        if (group := self.event.merge_group) is not None:
            return Revisions(trusted=group.base_sha, since=group.base_sha, is_proposal=True)
        return Revisions(trusted="HEAD", since=pushed_from(self.event.before))

    def write_files(self, checked: Checked) -> None:
        """Write SARIF and JSON beside the job's other files, the outputs of the step, and the summary.

        Raises:
            SourceUnreadable: one of them cannot be written.
        """
        folder = Path(self.environment.get("RUNNER_TEMP") or ".")
        sarif, report = folder / "meteora-registry.sarif", folder / "meteora-registry.json"
        _write(sarif, render(checked, "sarif"))
        _write(report, render(checked, "json"))
        if outputs := self.environment.get("GITHUB_OUTPUT"):
            values = {"outcome": checked.report.outcome, "sarif": sarif, "report": report}
            _write(Path(outputs), "".join(f"{name}={value}\n" for name, value in values.items()), mode="a")
        if summary := self.environment.get("GITHUB_STEP_SUMMARY"):
            page = shorten(render_page(checked), MAX_SUMMARY_BYTES - _ROOM, size=size_in_bytes)
            _write(Path(summary), page, mode="a")

    def comment(self, checked: Checked, token: str, author: str) -> Kept:
        """Keep the comment of the pull request up to date; nothing is written where there is none to keep.

        Raises:
            CommentFailed: GitHub did not take it.
            UsageError: GITHUB_REPOSITORY is not `owner/name`.
        """
        request = self.event.pull_request
        if request is None:
            return Kept.NOT_NEEDED
        thread = Thread(
            api_url=self.environment.get("GITHUB_API_URL") or "https://api.github.com",
            repository=check_repository(self.environment.get("GITHUB_REPOSITORY", "")),
            number=request.number,
            token=token,
            author=author,
        )
        report = checked.report
        has_news = bool(report.adapters or report.together or (report.selection and report.selection.removed))
        text = shorten(render_page(checked), MAX_COMMENT_CHARACTERS - _ROOM)
        return thread.keep(self._mark(), text, may_create=has_news or report.outcome is not Outcome.ACCEPTED)

    def _mark(self) -> str:
        job = _NOT_IN_A_MARK.sub("-", self.environment.get("GITHUB_JOB", ""))[:100]
        return f"<!-- meteora-registry validate {job.strip('-')} -->"


@contextmanager
def commands_stopped(stream: TextIO) -> Iterator[None]:
    """Let the runner take nothing that is printed in the block for a command.

    It reads commands anywhere in a log, and an adapter chooses its names.
    """
    token = os.urandom(16).hex()
    print(f"::stop-commands::{token}", file=stream, flush=True)
    try:
        yield
    finally:
        print(f"::{token}::", file=stream, flush=True)


def _write(path: Path, text: str, *, mode: str = "w") -> None:
    try:
        with path.open(mode, encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError as error:
        raise SourceUnreadable(f"`{path}` cannot be written: {error.strerror}") from error
