"""The check of a pull request, the same on every code host.

Policy, baseline and lock are read from a revision that the pull request cannot change, and so is what it is
compared with. The adapters are those of the checkout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ...files.git import Repository
from ...files.reading import real_path
from ...inspection.policy import check_policy
from ...inspection.vllm import DEFAULT_MAX_RANK
from ...schemas.baseline import MAX_BASELINE_BYTES, Baseline
from ...schemas.errors import UsageError
from ...schemas.finding import Severity
from ...schemas.lock import MAX_LOCK_BYTES, AdapterLock
from ...schemas.names import FolderSource, parse_source
from ...schemas.policy import Policy
from ...schemas.report import Purpose, Report, Selection
from ...schemas.toml import MAX_TOML_BYTES
from ..workflows.changed_adapters import (
    Changes,
    find_present,
    find_with_changed,
    refuse_left_out,
    select_changed,
)
from ..workflows.companion_sources import base_names, inspect_companions
from ..workflows.review_files import BaselineFile, LockFile, own_files
from ..workflows.validation import ValidateOptions, validate
from ..workspace import Workspace


@dataclass(frozen=True, slots=True)
class Revisions:
    """The revisions that a job is about.

    ``trusted`` has the policy, the baseline and the lock; changes count from ``since``, and without it every
    adapter is checked. ``is_proposal`` is whether the checkout is what someone proposes to merge.
    """

    trusted: str
    since: str | None = None
    is_proposal: bool = False


@dataclass(frozen=True, slots=True)
class Wishes:
    """The wishes of the job's author; paths are below the current folder."""

    paths: tuple[str, ...] = (".",)
    changed_only: bool = True
    base: str | None = None
    companions: tuple[str, ...] = ()
    policy: str | None = None
    baseline: str | None = None
    lock: str | None = None
    purpose: Purpose = Purpose.USE
    max_lora_rank: int = DEFAULT_MAX_RANK
    fail_on: Severity = Severity.REFUSE
    jobs: int = 1
    docs_url: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """The report of a check, and remarks on how it was made.

    ``root`` is the repository's folder, and ``docs_url`` the address of the page that explains the rules.
    """

    report: Report
    root: Path
    remarks: tuple[str, ...] = ()
    docs_url: str | None = None


def pushed_from(before: str | None) -> str | None:
    """Return the commit that a pushed branch had before; None for a new branch or a replaced history."""
    if not before or not before.strip("0"):
        return None
    try:
        return Repository.find(Path.cwd(), is_trusted=True).commit_of(before)
    except UsageError:
        return None


def check_changes(workspace: Workspace, wishes: Wishes, revisions: Revisions) -> Checked:
    """Validate the adapters of the current folder that a pull request changes.

    Raises:
        UsageError: a revision is not in this clone, the policy or the lock is not in the trusted revision, or
            the pull request changes what its adapters are to be fused with.
        InvalidDocument: the policy, the baseline or the lock is malformed.
        SourceUnreadable, HubUnavailable, HubRefused: something cannot be read.
    """
    repository = Repository.find(Path.cwd(), is_trusted=True)
    trusted = _Trusted(repository, repository.commit_of(revisions.trusted))
    options = ValidateOptions(
        purpose=wishes.purpose,
        max_lora_rank=wishes.max_lora_rank,
        fail_on=wishes.fail_on,
        policy=trusted.read_policy(wishes.policy) if wishes.policy else None,
        baseline=trusted.read_baseline(wishes.baseline) if wishes.baseline else None,
        lock=trusted.read_lock(wishes.lock) if wishes.lock else None,
        jobs=wishes.jobs,
        own_files=own_files(Path(name) for name in (wishes.baseline, wishes.lock) if name),
    )
    proposed = None
    if revisions.is_proposal:
        proposed = Changes.since(repository, revisions.trusted, with_work_tree=False)
        _refuse_changed_companions(wishes, proposed)
    since = (wishes.base or revisions.since) if wishes.changed_only else None
    adapters, selection = _choose_adapters(wishes, since, proposed, repository)
    report = validate(
        adapters,
        options,
        companions=inspect_companions(workspace, wishes.companions),
        name_of_base=base_names(workspace),
        selection=selection,
    )
    return Checked(report, repository.root, tuple(_remarks(report, trusted, wishes)), wishes.docs_url)


def _choose_adapters(
    wishes: Wishes, since: str | None, proposed: Changes | None, repository: Repository
) -> tuple[list[Path], Selection | None]:
    paths = [Path(path) for path in wishes.paths]
    if since is not None:
        settings = [Path(name) for name in (wishes.policy, wishes.baseline, wishes.lock) if name]
        return select_changed(paths, since, settings=settings, checkout=repository)
    if proposed is not None:
        refuse_left_out(paths, proposed, repository)
        return list(chain(*find_with_changed(paths, proposed))), None
    return find_present(paths), None


@dataclass(frozen=True, slots=True)
class _Trusted:
    """The files of a revision that the pull request cannot change."""

    repository: Repository
    commit: str

    def read_policy(self, name: str) -> Policy:
        """Return the policy.

        Raises:
            UsageError: there is none.
            InvalidDocument: it is malformed.
        """
        policy = Policy.from_toml(self._require(name, MAX_TOML_BYTES), what=self._place(name))
        check_policy(policy)
        return policy

    def read_lock(self, name: str) -> LockFile:
        """Return the lock, as if it were in its place.

        Raises:
            UsageError: there is none.
            InvalidDocument: it is malformed.
        """
        lock = AdapterLock.read(self._require(name, MAX_LOCK_BYTES), what=self._place(name))
        return LockFile(Path(name).parent, lock)

    def read_baseline(self, name: str) -> BaselineFile | None:
        """Return the baseline, as if it were in its place; None if nothing is known there.

        Raises:
            InvalidDocument: it is malformed.
        """
        data = self._read(name, MAX_BASELINE_BYTES)
        if data is None:
            return None
        return BaselineFile(Path(name).parent, Baseline.read(data, what=self._place(name)))

    def _require(self, name: str, max_bytes: int) -> bytes:
        data = self._read(name, max_bytes)
        if data is None:
            raise UsageError(
                f"`{name}` of `{self.commit[:12]}` does not exist, and a pull request is checked by "
                "what is there",
                hint="merge it on its own first; what the pull request itself brings is never used",
            )
        return data

    def _read(self, name: str, max_bytes: int) -> bytes | None:
        place = real_path(Path.cwd()) / name
        root = real_path(self.repository.root)
        if ".." in Path(name).parts or not place.is_relative_to(root):
            raise UsageError(f"`{name}` is not a path inside the repository")
        return self.repository.read_file(self.commit, place.relative_to(root).as_posix(), max_bytes)

    def _place(self, name: str) -> str:
        return f"{name} of {self.commit[:12]}"


def _refuse_changed_companions(wishes: Wishes, changes: Changes) -> None:
    for text in wishes.companions:
        source = parse_source(text)
        if isinstance(source, FolderSource) and changes.has(source.path):
            raise UsageError(
                f"the pull request changes `{text}`, which its adapters are to be fused with",
                hint="merge that on its own first, or name a bundle on the Hub at a revision",
            )


def _remarks(report: Report, trusted: _Trusted, wishes: Wishes) -> Iterator[str]:
    named = [
        what
        for what, name in (("policy", wishes.policy), ("baseline", wishes.baseline), ("lock", wishes.lock))
        if name
    ]
    if named:
        yield f"From the base revision `{trusted.commit[:12]}`, not from here: {', '.join(named)}."
    if report.selection is not None:
        yield from (f"`{folder}` has no adapter any more." for folder in report.selection.removed)
