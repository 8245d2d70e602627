"""The files in which a team states what it reviewed: the baseline of known findings, and the lock.

Both name adapters by their paths below the file's own folder, so they hold wherever the repository is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ...files.reading import own_place, read_bounded, real_path
from ...files.writing import write_whole
from ...schemas.baseline import MAX_BASELINE_BYTES, Baseline, KnownFinding
from ...schemas.errors import UsageError
from ...schemas.finding import Finding
from ...schemas.lock import MAX_LOCK_BYTES, AdapterLock, LockedAdapter
from ...schemas.report import AdapterReport, Outcome, Report

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class BaselineFile:
    """A baseline and the folder that its paths start from."""

    folder: Path
    baseline: Baseline

    @classmethod
    def read(cls, path: Path) -> BaselineFile:
        """Read a baseline from its file.

        Raises:
            SourceUnreadable: it cannot be read.
            InvalidDocument: it is not a baseline.
        """
        data = read_bounded(path, MAX_BASELINE_BYTES)
        return cls(path.parent, Baseline.read(data, what=str(path)))

    def of(self, path: Path) -> frozenset[KnownFinding]:
        """Return the known findings of an adapter."""
        return frozenset(self.baseline.adapters.get(name_below(path, self.folder) or "", ()))

    @property
    def together(self) -> frozenset[KnownFinding]:
        """The known findings about several adapters."""
        return frozenset(self.baseline.together)


@dataclass(frozen=True, slots=True)
class LockFile:
    """A lock and the folder that its paths start from."""

    folder: Path
    lock: AdapterLock

    @classmethod
    def read(cls, path: Path) -> LockFile:
        """Read a lock from its file.

        Raises:
            SourceUnreadable: it cannot be read.
            InvalidDocument: it is not a lock.
        """
        data = read_bounded(path, MAX_LOCK_BYTES)
        return cls(path.parent, AdapterLock.read(data, what=str(path)))

    def find(self, path: Path) -> LockedAdapter | None:
        """Return the entry of an adapter, None if there is none."""
        return self.lock.adapters.get(name_below(path, self.folder) or "")


def own_files(paths: Iterable[Path]) -> frozenset[Path]:
    """Return the real places of such files, which are not part of an adapter in the same folder."""
    return frozenset(real_path(path.parent) / path.name for path in paths)


def split_known(
    findings: Iterable[Finding], known: Collection[KnownFinding]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Return the findings that are not known, and those that are."""
    return _split(findings, lambda finding: bool(known) and KnownFinding.of(finding) in known)


def name_below(path: Path, folder: Path) -> str | None:
    """Return what a baseline or a lock in a folder calls an adapter; None outside the folder.

    None, too, for a name that is not text, which no document can hold.
    """
    try:
        # A link to another adapter is not that adapter: its name would pass with reviewed bytes of another.
        relative = own_place(path).relative_to(real_path(folder))
        return relative.as_posix().encode("utf-8").decode("utf-8")
    except (ValueError, UnicodeError):
        return None


def write_baseline(path: Path, report: Report) -> Report:
    """Write what counts against the adapters of a report as known; entries of other adapters stay.

    Returns:
        The report as it is beside the new baseline.

    Raises:
        UsageError: an adapter is not below the folder of the baseline.
        SourceUnreadable, InvalidDocument: the file cannot be written, or what is there is not a baseline.
    """
    before = BaselineFile.read(path).baseline if path.exists() else Baseline(meteora_baseline=1)
    accepted = tuple(_accept(each, report.counts_against) for each in report.adapters)
    found = {
        _require_name(Path(each.name), path): tuple(map(KnownFinding.of, each.known))
        for each in accepted
        if each.error is None
    }
    merged = _merge(before.adapters, found, path.parent)
    together, known = _split(report.together, report.counts_against)
    known += report.known_together
    baseline = Baseline(
        meteora_baseline=1,
        adapters={name: entries for name, entries in merged.items() if entries},
        together=tuple(map(KnownFinding.of, known)),
    )
    write_whole(path, baseline.to_bytes())
    return report.model_copy(update={"adapters": accepted, "together": together, "known_together": known})


def _accept(adapter: AdapterReport, counts: Callable[[Finding], bool]) -> AdapterReport:
    """Return the report of an adapter with everything that counts against it as known."""
    if adapter.error is not None:
        return adapter
    rest, known = _split(adapter.findings, counts)
    return adapter.model_copy(
        update={
            "findings": rest,
            "known": adapter.known + known,
            "outcome": Outcome.INCONCLUSIVE if adapter.unchecked else Outcome.ACCEPTED,
        }
    )


def _split(
    findings: Iterable[Finding], chosen: Callable[[Finding], bool]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Return the findings that are not chosen, and those that are."""
    all_of_them = tuple(findings)
    return tuple(each for each in all_of_them if not chosen(each)), tuple(filter(chosen, all_of_them))


def write_lock(path: Path, report: Report, accepted: Mapping[Path, LockedAdapter]) -> AdapterLock:
    """Write the accepted adapters of a report as reviewed; entries of adapters outside the report stay.

    Raises:
        UsageError: an adapter is not below the folder of the lock.
        SourceUnreadable, InvalidDocument: the file cannot be written, or what is there is not a lock.
    """
    before = LockFile.read(path).lock if path.exists() else AdapterLock(meteora_lock=1)
    looked_at = {_require_name(Path(each.name), path) for each in report.adapters}
    kept = {name: entry for name, entry in before.adapters.items() if name not in looked_at}
    found = {_require_name(each, path): entry for each, entry in accepted.items()}
    lock = AdapterLock(meteora_lock=1, adapters=_merge(kept, found, path.parent))
    write_whole(path, lock.to_bytes())
    return lock


def _merge(before: Mapping[str, Entry], found: Mapping[str, Entry], folder: Path) -> dict[str, Entry]:
    """Return the entries, those that were found over those of before; of adapters that are gone, none."""
    return {name: entry for name, entry in {**before, **found}.items() if (folder / name).exists()}


def _require_name(path: Path, file: Path) -> str:
    name = name_below(path, file.parent)
    if name is None:
        raise UsageError(
            f"`{path}` cannot be named in `{file}`, whose paths start from its own folder",
            hint=f"put the file into a folder that all adapters are below, such as `../{file.name}`",
        )
    return name
