"""``validate``: judge adapters before they are used."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import click

from ...files.reading import read_bounded
from ...inspection.policy import check_policy
from ...inspection.report import FORMATS, Places, Setting, find_root, format_report
from ...inspection.rules.all_rules import all_rules, find_rule
from ...inspection.vllm import ALLOWED_RANKS, DEFAULT_MAX_RANK
from ...schemas.errors import UsageError
from ...schemas.finding import Severity
from ...schemas.lock import LockedAdapter
from ...schemas.policy import Policy
from ...schemas.report import Outcome, Purpose, Report, Selection
from ...schemas.toml import MAX_TOML_BYTES
from ..face import Registry
from ..settings import Settings
from ..workflows.changed_adapters import select_changed
from ..workflows.companion_sources import base_names, inspect_companions
from ..workflows.review_files import BaselineFile, LockFile, own_files, write_baseline, write_lock
from ..workflows.validation import ValidateOptions, find_adapters, validate
from .failures import DONE, INCONCLUSIVE, REFUSED, USAGE
from .groups import examples
from .json_output import mask
from .output import print_line, print_remark
from .parameters import (
    BaseName,
    base_folder_option,
    follow_links_option,
    format_choice,
    pass_registry,
    settings_of,
)

EXIT_CODES = {
    Outcome.ACCEPTED: DONE,
    Outcome.REFUSED: REFUSED,
    Outcome.INCONCLUSIVE: INCONCLUSIVE,
    Outcome.UNREADABLE: USAGE,
}
DEFAULT_LOCK = "adapters.lock"
_MAX_LIST_BYTES = 16 << 20
_ALL = "all"
# Nothing that would end a link in Markdown or begin a query.
_URL = re.compile(r"https?://[A-Za-z0-9._~:/@%+-]+")


@click.command(
    "validate",
    epilog=examples(
        "validate ./adapter",
        "validate adapters/ --for fuse --jobs 4 --format sarif",
        "validate ./adapter --base ./llama --with summarise --policy policy.toml",
        "validate adapters/ --since origin/main --with org/bundle@v2 --locked",
        "validate --explain MR104",
    ),
)
@click.argument("paths", metavar="PATH...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--for",
    "purpose",
    type=click.Choice([purpose.value for purpose in Purpose]),
    default=Purpose.USE.value,
    show_default=True,
    help="use refuses what is broken; fuse also what a bundle cannot hold; vllm also what vLLM cannot serve.",
)
@click.option(
    "--max-lora-rank",
    type=click.Choice(ALLOWED_RANKS),
    default=DEFAULT_MAX_RANK,
    show_default=True,
    help="For vllm: what the engine is started with.",
)
@click.option(
    "--base",
    type=BaseName(),
    metavar="ORG/MODEL|FOLDER|CONFIG",
    help="Compare with this base; its config is looked for in the local Hub cache.",
)
@base_folder_option
@click.option(
    "--with",
    "companions",
    metavar="FOLDER|ORG/NAME[@REV]|NAME",
    multiple=True,
    help="Check whether they can be fused with this adapter or bundle; may be repeated.",
)
@click.option("--since", metavar="REF", help="Only adapters that changed since this branch was left.")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="A TOML file with what the team takes. Default: METEORA_POLICY, else of the settings.",
)
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="A file of known findings, which do not refuse."
)
@click.option("--write-baseline", is_flag=True, help="Write what is refused now into the file of --baseline.")
@click.option(
    "--lock",
    type=click.Path(path_type=Path),
    help="The file with the digests of reviewed adapters. Default: adapters.lock.",
)
@click.option("--locked", is_flag=True, help="Refuse adapters whose bytes the lock does not have.")
@click.option("--write-lock", is_flag=True, help="Write the accepted adapters into the lock as reviewed.")
@click.option(
    "--trust-tensors", is_flag=True, help="For fuse: take modules that the config does not declare."
)
@click.option("--deep", is_flag=True, help="Measure effective ranks, and how alike the deltas of --with are.")
@follow_links_option
@click.option(
    "--fail-on",
    type=click.Choice([Severity.REFUSE.value, Severity.WARN.value]),
    default=Severity.REFUSE.value,
    show_default=True,
    help="The least severity that refuses.",
)
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Adapters at once.")
@click.option("--list", "list_file", type=click.Path(path_type=Path), help="A file with one path a line.")
@format_choice(FORMATS, text="How the report on stdout is written.")
@click.option(
    "--relative-to",
    "root",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the paths in reports begin, but in text and json. Default: the root of the git repository.",
)
@click.option(
    "--docs-url",
    metavar="URL",
    help="Where docs/rules.md can be read; sarif and markdown link to its sections.",
)
@click.option("--explain", metavar="CODE", help="Explain a rule; `all` lists the rules.")
@pass_registry
@click.pass_context
def command(
    context: click.Context,
    registry: Registry,
    paths: tuple[Path, ...],
    *,
    purpose: str,
    max_lora_rank: int,
    base: str | None,
    base_folder: Path | None,
    companions: tuple[str, ...],
    since: str | None,
    policy: Path | None,
    baseline: Path | None,
    write_baseline: bool,
    lock: Path | None,
    locked: bool,
    write_lock: bool,
    trust_tensors: bool,
    deep: bool,
    follow_links: bool,
    fail_on: str,
    jobs: int,
    list_file: Path | None,
    output_format: str,
    root: Path | None,
    docs_url: str | None,
    explain: str | None,
) -> None:
    """Find what is wrong with adapters, and the way out.

    All of it in one run. PATH is an adapter's folder, a folder with adapters below it, or a config alone.
    Exit code 0 if all are accepted, 1 if one is refused, 2 if one cannot be read, 3 if something that was
    asked for could not be looked at.
    """
    if explain is not None:
        _explain(explain)
        return

    listed = (*paths, *(_read_list(list_file) if list_file else ()))
    if not listed:
        raise UsageError("no adapter was named", hint="such as `meteora-registry validate ./adapter`")
    review = _Review.of(baseline, lock, write_baseline=write_baseline, locked=locked, write_lock=write_lock)
    policy = policy or _stated_policy(settings_of(context))
    options = ValidateOptions(
        purpose=Purpose(purpose),
        max_lora_rank=max_lora_rank,
        fail_on=Severity(fail_on),
        base=base,
        base_folder=base_folder,
        policy=_read_policy(policy) if policy else None,
        baseline=review.read_baseline(),
        lock=review.read_lock(),
        deep=deep,
        follow_links=follow_links,
        trust_tensors=trust_tensors,
        jobs=jobs,
        own_files=own_files(review.files),
    )
    settings = [path for path in (policy, *review.files) if path is not None]
    adapters, selection = _choose_adapters(listed, since, settings)
    report = validate(
        adapters,
        options,
        companions=inspect_companions(registry, companions),
        name_of_base=base_names(registry),
        selection=selection,
        keep=review.accepted.__setitem__ if write_lock else None,
    )
    report = review.write(report)
    setting = Setting(Places(root or find_root(Path())), check_url(docs_url))
    # Masked before any format escapes what a URL is known by, and without the links of the format itself.
    sys.stdout.write(format_report(mask(report), output_format, setting))
    context.exit(EXIT_CODES[report.outcome])


@dataclass(frozen=True, slots=True)
class _Review:
    """The files of what a team reviewed, which are read, written, or both."""

    baseline: Path | None
    lock: Path | None
    writes_baseline: bool
    writes_lock: bool
    accepted: dict[Path, LockedAdapter] = field(default_factory=dict)

    @classmethod
    def of(
        cls, baseline: Path | None, lock: Path | None, *, write_baseline: bool, locked: bool, write_lock: bool
    ) -> Self:
        """Return the files that the options mean.

        Raises:
            UsageError: the options contradict each other, or lack one.
        """
        if write_baseline and baseline is None:
            raise UsageError("`--write-baseline` needs the file that it writes: `--baseline FILE`")
        if locked and write_lock:
            raise UsageError("`--locked` reads the lock and `--write-lock` writes it, expected one of them")
        if lock is not None and not (locked or write_lock):
            raise UsageError(
                f"`--lock {lock}` names a file and not what to do with it",
                hint="add `--locked` to refuse what it does not have, or `--write-lock` to write it",
            )
        place = lock or Path(DEFAULT_LOCK)
        return cls(baseline, place if locked or write_lock else None, write_baseline, write_lock)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that there are."""
        return tuple(path for path in (self.baseline, self.lock) if path is not None)

    def read_baseline(self) -> BaselineFile | None:
        """Return the baseline that findings are compared with."""
        if self.baseline is None or (self.writes_baseline and not self.baseline.exists()):
            return None
        return BaselineFile.read(self.baseline)

    def read_lock(self) -> LockFile | None:
        """Return the lock that bytes are compared with."""
        return None if self.lock is None or self.writes_lock else LockFile.read(self.lock)

    def write(self, report: Report) -> Report:
        """Write what was asked for, and return the report as it is beside the new baseline."""
        if self.writes_lock and self.lock is not None:
            write_lock(self.lock, report, self.accepted)
            print_remark(f"wrote {len(self.accepted)} reviewed adapters: {self.lock}")
        if self.writes_baseline and self.baseline is not None:
            return write_baseline(self.baseline, report)
        return report


def _choose_adapters(
    listed: Sequence[Path], since: str | None, settings: Sequence[Path]
) -> tuple[list[Path], Selection | None]:
    if since is None:
        return find_adapters(listed), None
    adapters, selection = select_changed(listed, since, settings=settings)
    for folder in selection.removed:
        print_remark(f"`{folder}` has no adapter any more, since `{selection.commit[:12]}`")
    return adapters, selection


def _read_list(path: Path) -> list[Path]:
    lines = read_bounded(path, _MAX_LIST_BYTES).decode("utf-8", errors="surrogateescape").splitlines()
    return [Path(line.strip()) for line in lines if line.strip()]


def _stated_policy(settings: Settings) -> Path | None:
    path = settings.policy_file
    if path is not None:
        print_remark(f"note: the policy is `{path}`, from {settings.policy.source}")
    return path


def _read_policy(path: Path) -> Policy:
    policy = Policy.from_toml(read_bounded(path, MAX_TOML_BYTES), what=str(path))
    check_policy(policy)
    return policy


def check_url(url: str | None) -> str | None:
    """Return the address of the page of rules, or None where none is given.

    Raises:
        UsageError: it is not an address.
    """
    if url is not None and not _URL.fullmatch(url):
        raise UsageError(
            f"`--docs-url` is `{url}`, expected the address of a page that begins with `https://`"
        )
    return url


def _explain(code: str) -> None:
    if code.lower() == _ALL:
        for rule in all_rules():
            print_line(f"{rule.code} {rule.severity}: {rule.title}")
        return
    rule = find_rule(code)
    print_line(f"{rule.code} {rule.name}")
    print_line(f"{rule.title}.")
    print_line()
    print_line(f"severity: {rule.severity}" + (", a policy may change it" if rule.is_adjustable else ""))
    print_line(f"verdict:  {rule.effect}")
    print_line(f"place:    {rule.file or 'named by the finding'}")
    print_line(f"why:      {rule.why}")
    print_line(f"way out:  {rule.remedy}")
