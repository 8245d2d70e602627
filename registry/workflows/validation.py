"""``validate``: inspect adapters in place, and compare them with a base, others and a policy.

Nothing is written and nothing is fetched. Torch is imported only to look at a base.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
)
from ...inspection.inspection import Inspection
from ...schemas.bundle import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from ...schemas.errors import MeteoraError, SourceUnreadable, UsageError
from ...schemas.finding import Finding, Severity
from ...schemas.names import CatalogSource, FolderSource, HubSource, parse_source
from ...schemas.policy import Policy
from ...schemas.report import AdapterReport, Outcome, Purpose, Report, blocks
from ..workspace import Workspace

_MAX_DEPTH = 12
_MAX_ADAPTERS = 100_000


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """The checks besides those of the adapter itself.

    ``base`` is a folder or config of this machine, or a Hub id, which is only a name here.
    """

    purpose: Purpose = Purpose.USE
    fail_on: Severity = Severity.REFUSE
    base: str | None = None
    policy: Policy | None = None
    deep: bool = False
    jobs: int = 1


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
    """Return the adapters at these paths: each folder itself, or the folders below with a config.

    A file is taken for a config without weights. Links are not followed.

    Raises:
        SourceUnreadable: a path does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise SourceUnreadable(f"`{path}` does not exist")
        below = [] if path.is_file() or (path / CONFIG_FILE).exists() else list(_walk(path, _MAX_DEPTH))
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
        if (child / CONFIG_FILE).is_file():
            yield child
        elif depth and not name.startswith("."):
            yield from _walk(child, depth - 1)


def validate(
    paths: Sequence[Path], options: ValidateOptions, *, companions: Mapping[str, Companion] | None = None
) -> Report:
    """Inspect adapters and report on all of them; an unreadable one does not stop the others.

    Args:
        paths: folders of adapters, or configs alone.
        options: what else to check.
        companions: inspected adapters that all of these are to be fused with, by name.

    Raises:
        UsageError, SourceUnreadable, MissingDependency: the base cannot be looked at.
    """
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        subjects = list(pool.map(lambda path: _look(path, deep=options.deep), paths))
    facts = _read_facts(options.base, subjects) if options.base and Path(options.base).exists() else None
    reports = tuple(_report(subject, options, facts) for subject in subjects)
    return Report(
        purpose=options.purpose,
        fail_on=options.fail_on,
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


def _read_facts(base: str, subjects: Sequence[Subject]) -> BaseFacts:
    from ..dependencies import require_torch

    require_torch("looking at a base model")
    from ...runtime.base_modules import module_shapes, read_base, resolve_paths, vocabulary_of

    model = read_base(Path(base))
    paths = {path for each in subjects if each.inspection for path in module_paths(each.inspection)}
    return BaseFacts(
        name=Path(base).name,
        modules={
            path: BaseModule(shape.kind, shape.in_features, shape.out_features)
            for path, shape in module_shapes(model).items()
        },
        present=resolve_paths(sorted(paths), model),
        vocabulary=vocabulary_of(model),
        ties_embedding=bool(getattr(model.config, "tie_word_embeddings", False)),
    )


def _report(subject: Subject, options: ValidateOptions, facts: BaseFacts | None) -> AdapterReport:
    inspection = subject.inspection
    if inspection is None:
        return AdapterReport(
            name=subject.name, outcome=Outcome.UNREADABLE, verdict=None, findings=(), error=subject.error
        )
    findings = subject.findings + (compare_with_base(inspection, facts) if facts else ())
    if options.policy:
        findings = apply_policy(inspection, findings, options.policy, base=options.base)
    unchecked = tuple(_unchecked(subject, options, facts))
    if blocks(findings, options.purpose, options.fail_on):
        outcome = Outcome.REFUSED
    else:
        outcome = Outcome.INCONCLUSIVE if unchecked else Outcome.ACCEPTED
    return AdapterReport(
        name=subject.name,
        outcome=outcome,
        verdict=inspection.verdict.of(findings),
        findings=findings,
        unchecked=unchecked,
    )


def _unchecked(subject: Subject, options: ValidateOptions, facts: BaseFacts | None) -> Iterator[str]:
    if subject.path.is_file():
        yield "the weights: only the config was given"
    if options.base and facts is None:
        yield f"modules and shapes: the base `{options.base}` is not a folder of this machine"


def _compare(
    subjects: Sequence[Subject], companions: Mapping[str, Companion], options: ValidateOptions
) -> tuple[Finding, ...]:
    own = {subject.name: subject.inspection for subject in subjects if subject.inspection is not None}
    weights = {subject.name: subject.weights for subject in subjects if subject.weights.is_file()}
    for name, companion in companions.items():
        own.setdefault(name, companion.inspection)
        if companion.weights:
            weights.setdefault(name, companion.weights)
    return compare_companions(own, stated_base=options.base, weights=weights if options.deep else None)


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
