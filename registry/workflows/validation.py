"""``validate``: inspect adapters in place, and compare them with a base, others and a policy.

Nothing is written and nothing is fetched. Torch is imported only to look at a base.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ...bundle import Bundle
from ...inspection.adapter import inspect_adapter, inspect_config, inspect_files
from ...inspection.base_facts import BaseFacts
from ...inspection.comparison import (
    apply_policy,
    compare_companions,
    compare_with_base,
    look_deeper,
    module_paths,
    trained_on,
)
from ...inspection.folder import file_of_link
from ...inspection.inspection import Inspection
from ...schemas.base_name import present_name
from ...schemas.bundle import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from ...schemas.errors import MeteoraError, MissingDependency, SourceUnreadable, UsageError
from ...schemas.finding import Finding, Severity, Verdict
from ...schemas.names import (
    CatalogSource,
    FolderSource,
    HubSource,
    folder_of_adapter,
    name_of_folder,
    parse_source,
    suggest_name,
)
from ...schemas.policy import Policy
from ...schemas.report import AdapterReport, Outcome, Purpose, Report, counts_against
from ...schemas.trained_on import TrainedOn
from ..workspace import Workspace
from .base_facts import read_base_facts
from .base_place import BasePlace, find_cached, place_base

# A folder with one of these is meant as an adapter, if nothing else is there.
_WEIGHTS_FILES = (WEIGHTS_FILE, "adapter_model.bin")
_MAX_DEPTH = 12
_MAX_ADAPTERS = 100_000
_NOT_COMPARED = "modules and shapes against the base (`--base FOLDER`)"


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """The checks besides those of the adapter itself.

    ``base`` is the base's name, or a folder or config of this machine; ``base_folder`` has the config of a
    base that is named. Of a name alone the config is looked for in the local Hub cache. With
    ``trust_tensors`` modules that a config does not declare count as the adapter's own in a fuse.
    """

    purpose: Purpose = Purpose.USE
    fail_on: Severity = Severity.REFUSE
    base: str | None = None
    base_folder: Path | None = None
    policy: Policy | None = None
    deep: bool = False
    follow_links: bool = False
    jobs: int = 1
    trust_tensors: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """An adapter that was asked for, and what was seen of it."""

    name: str
    path: Path
    inspection: Inspection | None = None
    error: str | None = None
    findings: tuple[Finding, ...] = field(default=())
    follow_links: bool = False

    @property
    def weights(self) -> Path:
        """The path of its weights."""
        return file_of_link(self.path / WEIGHTS_FILE, follow_links=self.follow_links)


@dataclass(frozen=True, slots=True)
class Companion:
    """An adapter to be fused with; ``weights`` is absent where only a header is at hand.

    ``base`` is what the catalog calls its base, or what it declares.
    """

    inspection: Inspection
    base: str | None
    weights: Path | None = None


def find_adapters(paths: Sequence[Path]) -> list[Path]:
    """Return the adapters at these paths: each folder itself, or the folders below with a config or weights.

    Weights, and a config beside its weights, mean their folder; any other file is taken for a config without
    weights. Links are not followed.

    Raises:
        SourceUnreadable: a path does not exist.
    """
    found: list[Path] = []
    for path in map(folder_of_adapter, paths):
        if not path.exists():
            raise SourceUnreadable(f"`{path}` does not exist")
        below = [] if path.is_file() or _is_adapter(path) else list(_walk(path, _MAX_DEPTH))
        found += below or [path]
    return found[:_MAX_ADAPTERS]


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
        if _is_adapter(child):
            yield child
        elif depth and not name.startswith("."):
            yield from _walk(child, depth - 1)


def _is_adapter(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG_FILE, *_WEIGHTS_FILES))


def validate(
    paths: Sequence[Path],
    options: ValidateOptions,
    *,
    companions: Mapping[str, Companion] | None = None,
    name_of_base: Callable[[str], str | None] = present_name,
) -> Report:
    """Inspect adapters and report on all of them; an unreadable one does not stop the others.

    Args:
        paths: folders of adapters, or configs alone.
        options: what else to check.
        companions: inspected adapters that all of these are to be fused with, by name.
        name_of_base: what a base is called, where a catalog knows more spellings of it.

    Raises:
        MissingDependency: the base cannot be looked at, because an extra is not installed.
    """
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        subjects = list(pool.map(partial(_look, options=options), paths))
    place = place_base(options.base, options.base_folder)
    others = [each.inspection for each in (companions or {}).values()]
    base = _LookedAtBase.at(place, [*(each.inspection for each in subjects if each.inspection), *others])
    reports = tuple(_report(subject, options, place, base) for subject in subjects)
    return Report(
        purpose=options.purpose,
        fail_on=options.fail_on,
        trust_tensors=options.trust_tensors,
        adapters=reports,
        together=_compare(subjects, companions, options, place, base, name_of_base) if companions else (),
        not_asked=() if place.folder or place.name else (_NOT_COMPARED,),
    )


def _look(path: Path, options: ValidateOptions) -> Subject:
    follows = options.follow_links
    try:
        if path.is_file():
            inspection = inspect_config(path)
            return Subject(str(path), path, inspection, findings=inspection.findings)
        inspection = inspect_adapter(path, follow_links=follows)
        weights = file_of_link(path / WEIGHTS_FILE, follow_links=follows)
        found = look_deeper(inspection, weights) if options.deep else ()
    except MeteoraError as error:
        return Subject(str(path), path, error=error.message)
    return Subject(str(path), path, inspection, findings=inspection.findings + found, follow_links=follows)


@dataclass(frozen=True, slots=True)
class _LookedAtBase:
    """A base as far as it could be looked at: its facts for an adapter, or why there are none."""

    facts_for: Callable[[Inspection], BaseFacts] | None = None
    problem: str | None = None

    @classmethod
    def at(cls, place: BasePlace, adapters: Sequence[Inspection]) -> _LookedAtBase:
        """Look at the base that was named, if one was, for the modules of all adapters."""
        folder = place.folder or (find_cached(place.name) if place.name else None)
        if folder is None:
            missing = f"`{place.name}` is neither a folder of this machine nor in the Hub cache"
            return cls(problem=missing if place.name else None)
        try:
            return cls(_read_facts(folder, place.name or folder.name, adapters))
        except MissingDependency:
            raise
        # The adapters are judged all the same, by what their own files show.
        except MeteoraError as error:
            return cls(problem=error.message)

    def judge(self, inspection: Inspection, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """Return the findings about an adapter with those of comparing it with the base, if there is one."""
        if self.facts_for is None:
            return findings
        return compare_with_base(inspection, findings, self.facts_for(inspection))


def _read_facts(folder: Path, name: str, adapters: Sequence[Inspection]) -> Callable[[Inspection], BaseFacts]:
    paths: dict[TrainedOn, set[str]] = defaultdict(set)
    for adapter in adapters:
        paths[trained_on(adapter)].update(module_paths(adapter))
    found = {kind: read_base_facts(folder, name, own, kind) for kind, own in paths.items()}
    return lambda inspection: found[trained_on(inspection)]


def _report(
    subject: Subject, options: ValidateOptions, place: BasePlace, base: _LookedAtBase
) -> AdapterReport:
    inspection = subject.inspection
    if inspection is None:
        return AdapterReport(
            name=subject.name, outcome=Outcome.UNREADABLE, verdict=None, findings=(), error=subject.error
        )
    findings = base.judge(inspection, subject.findings)
    if options.policy:
        stated = place.name_for([inspection.declared_base])
        findings = apply_policy(inspection, findings, options.policy, base=stated)
    unchecked = tuple(_unchecked(subject, base))
    refused = any(
        counts_against(each, options.purpose, options.fail_on, trust_tensors=options.trust_tensors)
        for each in findings
    )
    open_or_accepted = Outcome.INCONCLUSIVE if unchecked else Outcome.ACCEPTED
    return AdapterReport(
        name=subject.name,
        outcome=Outcome.REFUSED if refused else open_or_accepted,
        verdict=Verdict.of(findings, trust_tensors=options.trust_tensors),
        findings=findings,
        unchecked=unchecked,
    )


def _unchecked(subject: Subject, base: _LookedAtBase) -> Iterator[str]:
    if subject.path.is_file():
        yield "the weights: only the config was given"
    if base.problem:
        yield f"modules and shapes: {base.problem}"


def _compare(
    subjects: Sequence[Subject],
    companions: Mapping[str, Companion],
    options: ValidateOptions,
    place: BasePlace,
    base: _LookedAtBase,
    name_of_base: Callable[[str], str | None],
) -> tuple[Finding, ...]:
    own = {subject.name: subject.inspection for subject in subjects if subject.inspection is not None}
    judged = frozenset(own)
    weights = {subject.name: subject.weights for subject in subjects if subject.weights.is_file()}
    for name, companion in companions.items():
        inspection = companion.inspection
        # The adapters that were asked for have what the base shows in reports of their own.
        judged_too = replace(inspection, findings=base.judge(inspection, inspection.findings))
        own.setdefault(name, judged_too)
        if companion.weights:
            weights.setdefault(name, companion.weights)
    bases = {name: _called(inspection.declared_base, name_of_base) for name, inspection in own.items()}
    bases |= {name: companion.base for name, companion in companions.items() if name not in judged}
    return compare_companions(
        own,
        bases=bases,
        stated_base=place.name_for(bases.values()),
        weights=weights if options.deep else None,
        trust_tensors=options.trust_tensors,
    )


def _called(declared: str | None, name_of_base: Callable[[str], str | None]) -> str | None:
    return (name_of_base(declared) or declared) if declared else None


def base_names(workspace: Workspace) -> Callable[[str], str | None]:
    """Return a function from a base's name to what the catalog calls it; without a catalog, to None.

    The home is looked for when a name is asked for, and need not be there.
    """
    return lambda name: workspace.catalog.name_of_base(name) if _has_catalog(workspace) else None


def _has_catalog(workspace: Workspace) -> bool:
    try:
        return workspace.home.catalog_url is not None or workspace.home.catalog_file.exists()
    except (SourceUnreadable, UsageError):
        return False


def inspect_companion(workspace: Workspace, text: str) -> dict[str, Companion]:
    """Inspect the adapter, or the members of the bundle, that a SOURCE names; return them by name.

    Raises:
        UsageError: it is on the Hub, or malformed.
        NotInCatalog: nothing is catalogued under that name.
        SourceUnreadable, InvalidDocument, AdapterRefused: its files cannot be read.
    """
    name_of_base = base_names(workspace)
    match parse_source(text):
        case FolderSource(path):
            if (path / MANIFEST_FILE).is_file():
                return _read_bundle(path, name_of_base)
            inspection = inspect_adapter(path)
            base = _called(inspection.declared_base, name_of_base)
            return {text: Companion(inspection, base, file_of_link(path / WEIGHTS_FILE))}
        case HubSource():
            raise UsageError(
                f"`{text}` is on the Hub, which `validate --with` does not read",
                hint="add it to the catalog first, or name a folder as `./folder`",
            )
        case CatalogSource() as source:
            version = workspace.catalog.find(source)
            config, weights = (
                workspace.store.path_of(version.file(name).sha256) for name in (CONFIG_FILE, WEIGHTS_FILE)
            )
            base = version.base_model or version.base
            return {text: Companion(inspect_files(config, weights), base, weights)}


def _read_bundle(folder: Path, name_of_base: Callable[[str], str | None]) -> dict[str, Companion]:
    members = Bundle(folder).members
    return {
        f"{folder.name}:{member.name}": Companion(
            member.inspection, _called(member.inspection.declared_base, name_of_base)
        )
        for member in members
    }
