"""``ci``: check what a pull request changes, as a job of a code host."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import update_wrapper
from pathlib import Path
from typing import Any

import click

from ...inspection.vllm import ALLOWED_RANKS, DEFAULT_MAX_RANK
from ...schemas.errors import MeteoraError
from ...schemas.finding import Severity
from ...schemas.report import Purpose
from ..ci.check import Checked, Revisions, Wishes, check_changes
from ..ci.github import GitHubJob, commands_stopped
from ..ci.github_comment import CommentFailed, Kept
from ..ci.gitlab import read_revisions, write_reports
from ..ci.pages import render
from ..face import Registry
from .failures import report_failure
from .groups import examples
from .json_output import mask
from .output import print_remark
from .parameters import pass_registry
from .validate import EXIT_CODES, check_url

_BOTS = "github-actions[bot]"


def _lines(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _option(flag: str, *names: str, **facts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return an option that a variable named after its flag can set, too."""
    variable = "METEORA_CI_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, *names, envvar=variable, show_envvar=True, **facts)


_OPTIONS = (
    _option("--paths", default=".", callback=_lines, help="Folders with adapters, one a line."),
    _option(
        "--changed-only",
        type=bool,
        default=True,
        show_default=True,
        help="Only adapters with files that the pull request changes.",
    ),
    _option("--base", metavar="REF", help="Where changes count from, in place of the host's answer."),
    _option(
        "--with",
        "companions",
        default="",
        callback=_lines,
        help="Bundles or adapters to stay compatible with, one a line.",
    ),
    _option("--policy", metavar="PATH", help="The policy, in the base revision."),
    _option("--baseline", metavar="PATH", help="The known findings, in the base revision."),
    _option("--lock", metavar="PATH", help="The reviewed bytes, in the base revision; others are refused."),
    _option(
        "--for",
        "purpose",
        type=click.Choice([purpose.value for purpose in Purpose]),
        default=Purpose.USE.value,
        show_default=True,
        help="As of `validate`.",
    ),
    _option(
        "--max-lora-rank",
        type=click.Choice(ALLOWED_RANKS),
        default=DEFAULT_MAX_RANK,
        show_default=True,
        help="For vllm: what the engine is started with.",
    ),
    _option(
        "--fail-on",
        type=click.Choice([Severity.REFUSE.value, Severity.WARN.value]),
        default=Severity.REFUSE.value,
        show_default=True,
        help="The least severity that refuses.",
    ),
    _option(
        "--docs-url",
        metavar="URL",
        callback=lambda _context, _parameter, url: check_url(url),
        help="The page with a section for every rule, for links.",
    ),
    _option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Adapters at once."),
)


def _check_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to check; the function gets them as ``wishes``."""

    def call(*arguments: Any, purpose: str, fail_on: str, **options: Any) -> Any:
        own = {name: options.pop(name) for name in list(options) if name not in Wishes.__dataclass_fields__}
        wishes = Wishes(purpose=Purpose(purpose), fail_on=Severity(fail_on), **options)
        return function(*arguments, wishes=wishes, **own)

    decorated = update_wrapper(call, function)
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


@click.command("github", epilog=examples("ci github --policy policy.toml --with org/bundle@v2"))
@_check_options
@_option(
    "--comment",
    type=bool,
    default=True,
    show_default=True,
    help="Keep one comment of the pull request up to date, where GITHUB_TOKEN may.",
)
@_option(
    "--comment-author",
    default=_BOTS,
    show_default=True,
    help="The account that GITHUB_TOKEN belongs to.",
)
@pass_registry
@click.pass_context
def github(
    context: click.Context, registry: Registry, *, wishes: Wishes, comment: bool, comment_author: str
) -> None:
    """Check what a pull request changes, in a GitHub Actions job.

    Policy, baseline and lock are read from the base revision, never from the pull request. Prints
    annotations, and writes the job's summary, outputs, SARIF and the comment.
    """
    # A name in a message must not be taken for a command of the runner, so no error passes this block.
    with commands_stopped(sys.stdout):
        try:
            job = GitHubJob.read(os.environ)
            checked = _check(registry, wishes, job.revisions())
            job.write_files(checked)
            token = os.environ.get("GITHUB_TOKEN")
            if comment and token:
                _comment(job, checked, token, comment_author)
            code = EXIT_CODES[checked.report.outcome]
        except (MeteoraError, OSError) as error:
            context.exit(report_failure(error))
    sys.stdout.write(render(checked, "github"))
    context.exit(code)


@click.command("gitlab", epilog=examples("ci gitlab --policy policy.toml --with org/bundle@v2"))
@_check_options
@pass_registry
@click.pass_context
def gitlab(context: click.Context, registry: Registry, *, wishes: Wishes) -> None:
    """Check what a merge request changes, in a GitLab CI job.

    Policy, baseline and lock are read from the target branch, never from the merge request. Writes
    meteora-junit.xml and gl-code-quality-report.json into the current folder.
    """
    checked = _check(registry, wishes, read_revisions(os.environ))
    write_reports(checked, Path.cwd())
    context.exit(EXIT_CODES[checked.report.outcome])


def _check(registry: Registry, wishes: Wishes, revisions: Revisions) -> Checked:
    checked = check_changes(registry, wishes, revisions)
    # Before any format escapes what a URL is known by.
    checked = replace(checked, report=mask(checked.report))
    sys.stdout.write(render(checked, "text"))
    for remark in checked.remarks:
        print_remark(remark)
    return checked


def _comment(job: GitHubJob, checked: Checked, token: str, author: str) -> None:
    try:
        kept = job.comment(checked, token, author)
    except CommentFailed as error:
        # The answer of the check does not depend on it.
        print_remark(f"warning: the comment was not written: {error.message}")
        return
    if kept is Kept.NOT_ALLOWED:
        print_remark("note: the token may not comment here; the job's summary has everything")
    else:
        print_remark(f"the comment was {kept}" if kept is not Kept.NOT_NEEDED else "no comment was needed")
