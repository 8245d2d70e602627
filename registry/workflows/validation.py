"""``validate``: inspect adapters in place, and compare them with a base, others and a policy.

Nothing is written and nothing is fetched. Torch is imported only to look at a base.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ...files.digests import hash_file
from ...inspection.adapter import inspect_adapter, inspect_config
from ...inspection.comparison import (
    apply_policy,
    compare_companions,
    compare_with_base,
    judge_for_engine,
    look_deeper,
    trained_on,
)
from ...inspection.folder import file_of_link
from ...inspection.inspection import Inspection
from ...inspection.lock import LockCase, digest_files
from ...inspection.rules.rule import examine
from ...inspection.vllm import DEFAULT_MAX_RANK, EngineLimits
from ...schemas.base_name import find_snapshot, present_name
from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.digest import Digest
from ...schemas.errors import MeteoraError, MissingDependency, SourceUnreadable
from ...schemas.finding import Finding, Severity, Verdict
from ...schemas.inventory import Inventory
from ...schemas.lock import LockedAdapter, is_commit
from ...schemas.names import folder_of_adapter, name_of_folder, suggest_name
from ...schemas.policy import Policy
from ...schemas.report import AdapterReport, Outcome, Purpose, Report, Selection, counts_against
from .base_facts import BaseReader
from .base_place import BasePlace, find_cached, place_base
from .companion_sources import Companion, called
from .review_files import BaselineFile, LockFile, split_known

# A folder with one of these is meant as an adapter, if nothing else is there.
FILES_OF_ADAPTERS = (CONFIG_FILE, WEIGHTS_FILE, "adapter_model.bin")
_MAX_DEPTH = 12
_MAX_ADAPTERS = 100_000
_NOT_COMPARED = "modules and shapes against the base (`--base FOLDER`)"


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """The checks besides those of the adapter itself.

    ``base`` is the base's name, or a folder or config of this machine; ``base_folder`` has the config of a
    base that is named. Of a name alone the config is looked for in the local Hub cache. With
    ``trust_tensors`` modules that a config does not declare count as the adapter's own in a fuse. Findings
    that the ``baseline`` has refuse nothing, and bytes that the ``lock`` does not have are refused;
    ``own_files`` are these files themselves, which are not part of an adapter. ``max_lora_rank`` is what
    the engine is started with where the purpose is vLLM.
    """

    purpose: Purpose = Purpose.USE
    fail_on: Severity = Severity.REFUSE
    base: str | None = None
    base_folder: Path | None = None
    policy: Policy | None = None
    baseline: BaselineFile | None = None
    lock: LockFile | None = None
    deep: bool = False
    follow_links: bool = False
    jobs: int = 1
    trust_tensors: bool = False
    own_files: frozenset[Path] = frozenset()
    max_lora_rank: int = DEFAULT_MAX_RANK

    def limits_of(self, architectures: tuple[str, ...]) -> EngineLimits:
        """Return the limits of the engine that is to serve the adapters on a base of these classes."""
        return EngineLimits(self.max_lora_rank, architectures)

    def counts_against(self, finding: Finding) -> bool:
        """Return whether a finding refuses an adapter."""
        return counts_against(finding, self.purpose, self.fail_on, trust_tensors=self.trust_tensors)


def find_adapters(paths: Sequence[Path]) -> list[Path]:
    """Return the adapters at these paths: each folder itself, or the folders below with a config or weights.

    Weights, and a config beside its weights, mean their folder; any other file is taken for a config without
    weights. Links are not followed, and what is named twice is returned once.

    Raises:
        SourceUnreadable: a path does not exist.
    """
    found: list[Path] = []
    for path in map(folder_of_adapter, paths):
        if not path.exists():
            raise SourceUnreadable(f"`{path}` does not exist")
        below = [] if path.is_file() or is_adapter(path) else list(_walk(path, _MAX_DEPTH))
        found += below or [path]
    return list(dict.fromkeys(found))[:_MAX_ADAPTERS]


def name_adapters_below(folder: Path) -> list[tuple[str, Path]]:
    """Return the adapters in a folder and below it, each with the name that a catalog gives it.

    Where two would have one name, both are called by their paths below the folder.

    Raises:
        SourceUnreadable: there is none.
    """
    own = [folder] if (folder / CONFIG_FILE).is_file() else []
    found = [*own, *_walk(folder, _MAX_DEPTH)]
    if not found:
        raise SourceUnreadable(f"`{folder}` has no adapter: no folder in it has `{CONFIG_FILE}`")
    named = [(name_of_folder(path), path) for path in found]
    counts = Counter(name for name, _ in named)
    return [
        (name if counts[name] == 1 else suggest_name("-".join(path.relative_to(folder).parts) or name), path)
        for name, path in named
    ]


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            children = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in children:
        child = folder / name
        if is_adapter(child):
            yield child
        elif depth and not name.startswith("."):
            yield from _walk(child, depth - 1)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder has a config or weights of an adapter.

    A link to nothing counts: elsewhere it may lead to something.
    """
    places = [folder / name for name in FILES_OF_ADAPTERS]
    return any(place.is_file() or place.is_symlink() for place in places)


def validate(
    paths: Sequence[Path],
    options: ValidateOptions,
    *,
    companions: Mapping[str, Companion] | None = None,
    name_of_base: Callable[[str], str | None] = present_name,
    selection: Selection | None = None,
    keep: Callable[[Path, LockedAdapter], None] | None = None,
) -> Report:
    """Inspect adapters and report on all of them; an unreadable one does not stop the others.

    Of each adapter only its report is kept, and with ``companions`` what these are compared with.

    Args:
        paths: folders of adapters, or configs alone.
        options: what else to check.
        companions: inspected adapters that all of these are to be fused with, by name.
        name_of_base: what a base is called, where a catalog knows more spellings of it.
        selection: how these adapters were chosen, if not all of them are here.
        keep: called with every accepted adapter and what a lock has of it.

    Raises:
        MissingDependency: the base cannot be looked at, because an extra is not installed.
    """
    place = place_base(options.base, options.base_folder)
    judge = _Judge(options, place, _BaseToCompare.at(place), has_companions=bool(companions), keep=keep)
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        judged = list(pool.map(judge.judge, paths))
    found = judge.compare([each.member for each in judged if each.member], companions or {}, name_of_base)
    known = options.baseline.together if options.baseline else frozenset()
    together, known_together = split_known(found, known)
    return Report(
        purpose=options.purpose,
        fail_on=options.fail_on,
        trust_tensors=options.trust_tensors,
        adapters=tuple(each.report for each in judged),
        together=together,
        known_together=known_together,
        selection=selection,
        not_asked=() if place.folder or place.name else (_NOT_COMPARED,),
    )


@dataclass(frozen=True, slots=True)
class _Member:
    """An adapter as it is compared with others, and the file of its weights, if that is read for it."""

    name: str
    inspection: Inspection
    is_headless: bool
    weights: Path | None


@dataclass(frozen=True, slots=True)
class _Judged:
    """The report of one adapter; ``member`` is None if there is nothing to compare it with."""

    report: AdapterReport
    member: _Member | None = None


@dataclass(frozen=True, slots=True)
class _BaseToCompare:
    """A base as far as it could be found: what reads it, or why nothing can."""

    reader: BaseReader | None = None
    problem: str | None = None

    @classmethod
    def at(cls, place: BasePlace) -> _BaseToCompare:
        """Return the base that was named, if one was."""
        folder = place.folder or (find_cached(place.name) if place.name else None)
        if folder is None:
            missing = f"`{place.name}` is neither a folder of this machine nor in the Hub cache"
            return cls(problem=missing if place.name else None)
        return cls(BaseReader(folder, place.name or folder.name))

    def judge(
        self, inspection: Inspection, findings: tuple[Finding, ...]
    ) -> tuple[tuple[Finding, ...], str | None]:
        """Return the findings with those of comparing with the base, and why it was not compared."""
        if self.reader is None:
            return findings, self.problem
        try:
            return compare_with_base(inspection, findings, self.reader.facts_for(inspection)), None
        except MissingDependency:
            raise
        # The adapter is judged all the same, by what its own files show.
        except MeteoraError as error:
            return findings, error.message

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that the base's config names; none before an adapter was compared with it."""
        return self.reader.architectures if self.reader else ()

    @property
    def commit(self) -> str | None:
        """The commit of the base, where its files are in a Hub cache."""
        snapshot = find_snapshot(self.reader.folder.absolute()) if self.reader else None
        return snapshot.commit if snapshot else None


class _Judge:
    """The judgement of adapters under one set of options, by several threads at once."""

    def __init__(
        self,
        options: ValidateOptions,
        place: BasePlace,
        base: _BaseToCompare,
        *,
        has_companions: bool,
        keep: Callable[[Path, LockedAdapter], None] | None,
    ) -> None:
        self._options, self._place, self._base = options, place, base
        self._has_companions, self._keep = has_companions, keep
        # Adapters of the same modules share one inventory, so that memory does not grow with their number.
        self._inventories: dict[tuple[object, ...], Inventory] = {}

    def judge(self, path: Path) -> _Judged:
        """Inspect one adapter and report on it."""
        name = str(path)
        try:
            inspection, findings, files = self._look(path)
        except MeteoraError as error:
            unreadable = Outcome.UNREADABLE
            return _Judged(
                AdapterReport(name=name, outcome=unreadable, verdict=None, findings=(), error=error.message)
            )
        findings, problem = self._base.judge(inspection, findings)
        stated = self._place.name_for([inspection.declared_base])
        report = self._report(path, inspection, findings, files, stated, problem)
        if self._keep and report.outcome is Outcome.ACCEPTED and report.verdict:
            self._keep(path, self._locked(inspection, report.verdict, files, stated))
        return _Judged(report, self._member(path, inspection) if self._has_companions else None)

    def _look(self, path: Path) -> tuple[Inspection, tuple[Finding, ...], dict[str, Digest]]:
        if path.is_file():
            inspection = inspect_config(path)
            return inspection, inspection.findings, self._digests(path, inspection)
        inspection = inspect_adapter(path, follow_links=self._options.follow_links)
        found = look_deeper(inspection, self._weights(path)) if self._options.deep else ()
        return inspection, inspection.findings + found, self._digests(path, inspection)

    def _digests(self, path: Path, inspection: Inspection) -> dict[str, Digest]:
        if not (self._options.lock or self._keep):
            return {}
        if path.is_file():
            return {path.name: hash_file(path)}
        weights = inspection.weights_sha256
        return digest_files(
            path,
            known={WEIGHTS_FILE: weights} if weights else {},
            without=self._options.own_files,
            follow_links=self._options.follow_links,
        )

    def _weights(self, path: Path) -> Path:
        return file_of_link(path / WEIGHTS_FILE, follow_links=self._options.follow_links)

    def _report(
        self,
        path: Path,
        inspection: Inspection,
        findings: tuple[Finding, ...],
        files: dict[str, Digest],
        stated: str | None,
        problem: str | None,
    ) -> AdapterReport:
        options = self._options
        if options.purpose is Purpose.VLLM:
            findings += judge_for_engine(inspection, options.limits_of(self._base.architectures))
        if options.lock:
            findings += examine(LockCase(str(path), files, options.lock.find(path)))
        if options.policy:
            findings = apply_policy(inspection, findings, options.policy, base=stated)
        new, known = split_known(findings, options.baseline.of(path) if options.baseline else frozenset())
        unchecked = tuple(_unchecked(path, problem))
        open_or_accepted = Outcome.INCONCLUSIVE if unchecked else Outcome.ACCEPTED
        return AdapterReport(
            name=str(path),
            outcome=Outcome.REFUSED if any(map(options.counts_against, new)) else open_or_accepted,
            verdict=Verdict.of(findings, trust_tensors=options.trust_tensors),
            findings=new,
            known=known,
            unchecked=unchecked,
        )

    def _locked(
        self, inspection: Inspection, verdict: Verdict, files: dict[str, Digest], stated: str | None
    ) -> LockedAdapter:
        named = inspection.facts.base_revision if inspection.facts else None
        return LockedAdapter(
            files=files,
            verdict=verdict,
            base=stated or inspection.declared_base,
            base_commit=self._base.commit or (named if named and is_commit(named) else None),
        )

    def _member(self, path: Path, inspection: Inspection) -> _Member:
        headless = trained_on(inspection).lacks_head
        if self._options.deep:
            weights = self._weights(path)
            return _Member(str(path), inspection, headless, weights if weights.is_file() else None)
        slim = replace(
            inspection, header=None, config_text=None, inventory=self._shared(inspection.inventory)
        )
        return _Member(str(path), slim, headless, None)

    def _shared(self, inventory: Inventory | None) -> Inventory | None:
        """Return the first inventory with these paths, shapes and element types, all that is compared."""
        if inventory is None:
            return None
        return self._inventories.setdefault((inventory.shape_signature, inventory.dtypes), inventory)

    def compare(
        self,
        subjects: Sequence[_Member],
        companions: Mapping[str, Companion],
        name_of_base: Callable[[str], str | None],
    ) -> tuple[Finding, ...]:
        """Return the findings against fusing the adapters with companions; none without companions."""
        if not companions:
            return ()
        members = {each.name: each for each in subjects}
        judged = frozenset(members)
        for name, companion in companions.items():
            inspection = companion.inspection
            # The adapters that were asked for have what the base shows in reports of their own.
            judged_too, _ = self._base.judge(inspection, inspection.findings)
            headless = trained_on(inspection).lacks_head
            member = _Member(name, replace(inspection, findings=judged_too), headless, companion.weights)
            members.setdefault(name, member)
        bases = {name: called(each.inspection.declared_base, name_of_base) for name, each in members.items()}
        bases |= {name: companion.base for name, companion in companions.items() if name not in judged}
        weights = {name: each.weights for name, each in members.items() if each.weights}
        return compare_companions(
            {name: each.inspection for name, each in members.items()},
            bases=bases,
            stated_base=self._place.name_for(bases.values()),
            weights=weights if self._options.deep else None,
            trust_tensors=self._options.trust_tensors,
            headless=[name for name, each in members.items() if each.is_headless],
        )


def _unchecked(path: Path, problem: str | None) -> Iterator[str]:
    if path.is_file():
        yield "the weights: only the config was given"
    if problem:
        yield f"modules and shapes: {problem}"
