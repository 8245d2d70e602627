"""``validate``: inspect adapters in place, and compare them with a base, others and a policy.

Nothing is written and nothing is fetched. Torch is imported only to look at a base.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ...bundle import Bundle
from ...inspection.adapter import inspect_adapter, inspect_config, inspect_files
from ...inspection.base_facts import BaseFacts, BaseModule
from ...inspection.comparison import (
    apply_policy,
    compare_companions,
    compare_with_base,
    look_deeper,
    module_paths,
    trains_body,
)
from ...inspection.inspection import Inspection
from ...schemas.bundle import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from ...schemas.errors import MeteoraError, MissingDependency, SourceUnreadable, UsageError
from ...schemas.finding import Finding, Severity, Verdict
from ...schemas.names import CatalogSource, FolderSource, HubSource, parse_source
from ...schemas.policy import Policy
from ...schemas.report import AdapterReport, Outcome, Purpose, Report, counts_against
from ..workspace import Workspace

# A folder with one of these is meant as an adapter, if nothing else is there.
_WEIGHTS_FILES = (WEIGHTS_FILE, "adapter_model.bin")
_MAX_DEPTH = 12
_MAX_ADAPTERS = 100_000


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """The checks besides those of the adapter itself.

    ``base`` is a folder or config of this machine, or a Hub id, which is only a name here. With
    ``trust_tensors`` modules that a config does not declare count as the adapter's own in a fuse.
    """

    purpose: Purpose = Purpose.USE
    fail_on: Severity = Severity.REFUSE
    base: str | None = None
    policy: Policy | None = None
    deep: bool = False
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

    @property
    def weights(self) -> Path:
        """The path of its weights."""
        return self.path / WEIGHTS_FILE


@dataclass(frozen=True, slots=True)
class Companion:
    """The adapters to be fused with; ``weights`` is absent where only a header is at hand."""

    inspection: Inspection
    weights: Path | None = None


def find_adapters(paths: Sequence[Path]) -> list[Path]:
    """Return the adapters at these paths: each folder itself, or the folders below with a config or weights.

    A file is taken for a config without weights. Links are not followed.

    Raises:
        SourceUnreadable: a path does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise SourceUnreadable(f"`{path}` does not exist")
        below = [] if path.is_file() or _is_adapter(path) else list(_walk(path, _MAX_DEPTH))
        found += below or [path]
    return found[:_MAX_ADAPTERS]


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
    paths: Sequence[Path], options: ValidateOptions, *, companions: Mapping[str, Companion] | None = None
) -> Report:
    """Inspect adapters and report on all of them; an unreadable one does not stop the others.

    Args:
        paths: folders of adapters, or configs alone.
        options: what else to check.
        companions: inspected adapters that all of these are to be fused with, by name.

    Raises:
        MissingDependency: the base cannot be looked at, because an extra is not installed.
    """
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        subjects = list(pool.map(lambda path: _look(path, deep=options.deep), paths))
    base = _LookedAtBase.at(options.base, subjects)
    reports = tuple(_report(subject, options, base) for subject in subjects)
    return Report(
        purpose=options.purpose,
        fail_on=options.fail_on,
        trust_tensors=options.trust_tensors,
        adapters=reports,
        together=_compare(subjects, companions, options) if companions else (),
        not_asked=() if options.base else ("modules and shapes against the base (`--base FOLDER`)",),
    )


def _look(path: Path, *, deep: bool) -> Subject:
    try:
        inspection = inspect_config(path) if path.is_file() else inspect_adapter(path)
        found = look_deeper(inspection, path / WEIGHTS_FILE) if deep and not path.is_file() else ()
    except MeteoraError as error:
        return Subject(str(path), path, error=error.message)
    return Subject(str(path), path, inspection, findings=inspection.findings + found)


@dataclass(frozen=True, slots=True)
class _LookedAtBase:
    """A base as far as it could be looked at: its facts for an adapter, or why there are none."""

    facts_for: Callable[[Inspection], BaseFacts] | None = None
    problem: str | None = None

    @classmethod
    def at(cls, base: str | None, subjects: Sequence[Subject]) -> _LookedAtBase:
        """Look at the base that was named, if one was, for the modules of all adapters."""
        if base is None:
            return cls()
        if not Path(base).exists():
            return cls(problem=f"the base `{base}` is not a folder of this machine")
        try:
            return cls(_read_facts(Path(base), subjects))
        except MissingDependency:
            raise
        # The adapters are judged all the same, by what their own files show.
        except MeteoraError as error:
            return cls(problem=error.message)


def _read_facts(base: Path, subjects: Sequence[Subject]) -> Callable[[Inspection], BaseFacts]:
    from ..dependencies import require_torch

    require_torch("looking at a base model")
    from ...runtime import base_modules

    model = base_modules.read_base(base)
    inspections = [each.inspection for each in subjects if each.inspection is not None]
    found: dict[bool, BaseFacts] = {}
    for is_body in {trains_body(inspection) for inspection in inspections}:
        part = base_modules.without_head(model) if is_body else model
        paths = {path for each in inspections if trains_body(each) is is_body for path in module_paths(each)}
        found[is_body] = BaseFacts(
            name=base.name,
            modules={
                path: BaseModule(shape.kind, shape.in_features, shape.out_features)
                for path, shape in base_modules.module_shapes(part).items()
            },
            present=base_modules.resolve_paths(sorted(paths), part),
            vocabulary=base_modules.vocabulary_of(part),
            ties_embedding=bool(getattr(part.config, "tie_word_embeddings", False)),
            adaptable=base_modules.adaptable_modules(part),
            shared=base_modules.shared_modules(part),
            default_targets=base_modules.default_targets(part),
        )
    return lambda inspection: found[trains_body(inspection)]


def _report(subject: Subject, options: ValidateOptions, base: _LookedAtBase) -> AdapterReport:
    inspection = subject.inspection
    if inspection is None:
        return AdapterReport(
            name=subject.name, outcome=Outcome.UNREADABLE, verdict=None, findings=(), error=subject.error
        )
    findings = subject.findings
    if base.facts_for is not None:
        findings = compare_with_base(inspection, findings, base.facts_for(inspection))
    if options.policy:
        findings = apply_policy(inspection, findings, options.policy, base=options.base)
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
    subjects: Sequence[Subject], companions: Mapping[str, Companion], options: ValidateOptions
) -> tuple[Finding, ...]:
    own = {subject.name: subject.inspection for subject in subjects if subject.inspection is not None}
    weights = {subject.name: subject.weights for subject in subjects if subject.weights.is_file()}
    for name, companion in companions.items():
        own.setdefault(name, companion.inspection)
        if companion.weights:
            weights.setdefault(name, companion.weights)
    return compare_companions(
        own,
        stated_base=options.base,
        weights=weights if options.deep else None,
        trust_tensors=options.trust_tensors,
    )


def inspect_companion(workspace: Workspace, text: str) -> dict[str, Companion]:
    """Inspect the adapter, or the members of the bundle, that a SOURCE names; return them by name.

    Raises:
        UsageError: it is on the Hub, or malformed.
        NotInCatalog: nothing is catalogued under that name.
        SourceUnreadable, InvalidDocument, AdapterRefused: its files cannot be read.
    """
    match parse_source(text):
        case FolderSource(path):
            if (path / MANIFEST_FILE).is_file():
                return _read_bundle(path)
            return {text: Companion(inspect_adapter(path), path / WEIGHTS_FILE)}
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
            return {text: Companion(inspect_files(config, weights), weights)}


def _read_bundle(folder: Path) -> dict[str, Companion]:
    members = Bundle(folder).members
    return {f"{folder.name}:{member.name}": Companion(member.inspection) for member in members}
