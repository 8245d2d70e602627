"""``gate fit``: a new version of a bundle whose gates were fitted on its members' own data.

All that can be refused without the base's weights is asked before they are loaded: the data, the shapes of
the base's modules, the statistics, the name and the new folder. The factors are taken over bit for bit,
and the new bundle is verified against the members' own files like one that was just fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ...bundle import Bundle
from ...bundle.files import bundle_around, check_target
from ...files.progress import Progress, silent
from ...files.reading import real_path
from ...files.scratch import Purpose, temporary_folder
from ...files.writing import check_writable
from ...fuser.extraction import extract_member
from ...fuser.fuse_member import MemberFiles
from ...fuser.refit import NewGates, refit_bundle
from ...fuser.verifier import verify_bundle
from ...runtime.base_modules import read_base, resolve_paths
from ...runtime.fitting import (
    ChosenEvidence,
    FitOptions,
    FittedGates,
    OpenedBase,
    StatisticsFolder,
    TaskData,
    answer_order,
    check_form,
    check_shapes,
    choose_samples,
    context_of,
    fit_gates,
    open_base,
    read_task_data,
)
from ...runtime.processes import from_first, is_first, join_processes
from ...runtime.training import TrainingOptions, TrainingOutcome, check_launch
from ...schemas.answer_order import AnswerOrder
from ...schemas.bundle import (
    CONFIG_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    BundleConfig,
    Fitting,
    Gate,
    RequestGates,
)
from ...schemas.errors import DataRefused, UsageError
from ...schemas.gate_choices import (
    DEFAULT_ABSTAIN,
    DEFAULT_SAMPLES,
    SCOPES,
    Answers,
    PromptForm,
    Scope,
    check_answers,
    check_scope,
)
from ...schemas.inventory import Dtype
from ...schemas.manifest import Manifest
from ...schemas.names import CatalogSource, below, check_name, suggest_name
from ...schemas.verification import Level, VerificationRecord
from ..catalog.catalog import Catalog
from ..catalog.records import BundleVersion, NewMember
from ..workspace import Workspace
from .bundle_folder import check_no_adapter_has, find_member, register_bundle, write_verified
from .fuse_plan import stored_sources
from .inference import load_base, warn_of_strangers

if TYPE_CHECKING:
    from ...runtime.training.train import TrainedGates

_UNDECIDED_TOKENS = 4


@dataclass(frozen=True, slots=True)
class FitRequest:
    """The inputs of a fit: base, data and scope.

    Attributes:
        base: the base model's folder, or its name on the Hub.
        data: a folder with a file for every member of which the statistics have no part; None where they
            have one of each.
        scope: what one decision of the new gates serves. For `segment` the fit also reads samples behind
            those of other members, because a segment follows others in use. For `token` and `prompt+token`
            it leaves out the first four tokens of every sample, from which no member can be recognised:
            measured, that raises the weakest member from 62 to 77 % of its own score (docs/gates-tables.md).
        statistics: the folder in which each member's part is kept, so that members can be added, removed and
            replaced without the data of the others. What is in it already is not worked out again.
        form: of the prompts; by default both plain and in the base's chat template, if it has one.
        abstain: the share of own prompts that a decision about requests may leave to the base; None for no
            abstention.
        answers: for `segment`, who decides for the numbered lines of an answer: their own text, or the item
            with that number of the prompt's list.
        training: how the gates are trained by gradient descent, for the scope `token` alone; None for those
            in closed form.
        samples: how many of a member are read at most, spread evenly over its file; None for 32, and for all
            of them in a training.
    """

    base: str
    data: Path | None
    scope: Scope = "prompt"
    statistics: Path | None = None
    form: PromptForm | None = None
    abstain: float | None = DEFAULT_ABSTAIN
    answers: Answers = "by-text"
    training: TrainingOptions | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"`samples` is {self.samples}, expected at least 1")
        check_answers(self.answers, check_scope(self.scope))
        if self.data is None and self.statistics is None:
            raise UsageError(
                "there is nothing to fit the gates on",
                hint="name the members' data with `--data`, or a folder with their parts with `--statistics`",
            )
        if self.statistics is not None and SCOPES[self.scope].fits_concatenated:
            raise UsageError(
                f"there are no statistics for the scope `{self.scope}`, whose fit reads samples behind those "
                "of other members",
                hint="leave out `--statistics`: members of such a bundle change with the data of all",
            )
        if self.training is not None and self.scope != "token":
            raise UsageError(
                f"gates are trained for the scope `token`, found `{self.scope}`: in others it is not each "
                "gate that decides for its own tokens, so their gradient is not that of the decisions",
                hint="fit gates of that scope in closed form, without `--method sgd`",
            )
        if self.training is not None and self.data is None:
            raise UsageError(
                "gates are trained on the data of every member, whatever statistics there are",
                hint="name the members' data with `--data`",
            )

    @property
    def options(self) -> FitOptions:
        """How the gates are fitted."""
        samples = DEFAULT_SAMPLES if self.samples is None else self.samples
        return fit_options(self.scope, self.form, self.abstain, samples)


def fit_options(
    scope: Scope, form: PromptForm | None, abstain: float | None, max_samples: int = DEFAULT_SAMPLES
) -> FitOptions:
    """Return how gates are fitted for a scope; the other arguments are those of a ``FitRequest``."""
    traits = SCOPES[scope]
    return FitOptions(
        max_samples=max_samples,
        concatenated=traits.fits_concatenated,
        skip_tokens=0 if traits.fits_first_tokens else _UNDECIDED_TOKENS,
        form=form,
        requests=traits.decides_requests,
        segments=traits.observes_answers,
        abstain=abstain,
    )


def scope_of(scope: Scope | None, training: TrainingOptions | None) -> Scope:
    """Return the scope of a fit: if none is named, `token` for gates that are trained, else `prompt`."""
    return scope or ("prompt" if training is None else "token")


@dataclass(frozen=True, slots=True)
class GateFit:
    """The result of a fit.

    Attributes:
        folder: of the new bundle.
        version: of the bundle in the catalog.
        record: of its verification.
        fitting: on what the gates were fitted.
        gates: how many serve the bundle's modules.
        modules: of the bundle.
        request: the gates that decide for requests, and how well; None in a scope without such decisions.
        abstain: the confidence below which they leave a prompt to the base.
        confusions: held-out prompts that went to another member: their own, the chosen one, and how many.
        evidence: the gates by which segments are decided, and how well; None in another scope.
        training: the last steps of a training; None for gates in closed form.
    """

    folder: Path
    version: BundleVersion
    record: VerificationRecord
    fitting: Fitting
    gates: int
    modules: int
    request: RequestGates | None
    abstain: float | None
    confusions: tuple[tuple[str, str, int], ...]
    evidence: ChosenEvidence | None
    training: TrainingOutcome | None


def fit_bundle(
    workspace: Workspace,
    source: Path,
    folder: Path,
    request: FitRequest,
    *,
    name: str | None = None,
    progress: Progress = silent,
) -> GateFit:
    """Fit the gates of the bundle in ``source`` and register the new version in ``folder``.

    A training may run in several processes, each of which calls this: the first of them writes and registers.

    Args:
        workspace: in whose catalog it is registered; its store is searched for the members' own files, and a
            member that is not there is extracted.
        source: the bundle; it is not changed.
        folder: the new folder.
        request: on which base and data, and how.
        name: what the catalog calls the bundle: by default what it calls the old one, else as the folder.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        DataRefused: the data or the statistics cannot be used.
        BundleRefused: the bundle is damaged, or its modules are not those of the base.
        UsageError: the folder is taken, the name is malformed, or an option is out of range.
        FuseRefused: what was written does not verify; nothing is left.
        AlreadyInCatalog: an adapter has the name.
        SourceUnreadable: a file cannot be read or written.
    """
    catalog = workspace.catalog
    bundle = Bundle.open(source)
    bundle_name = choose_name(catalog, name, bundle, folder)
    found = _find_gates(bundle, folder, request, progress)

    def write() -> GateFit:
        sources = stored_sources(workspace, bundle.manifest)
        record = _write(bundle, folder, request, found, sources, progress)
        if request.data is not None:
            warn_of_strangers(workspace, request.data, bundle.config.names)
        version = register_refit(catalog, folder, bundle_name, bundle.manifest, record)
        return _result(folder, version, record, found, bundle)

    return write() if request.training is None else from_first(write)


def _result(
    folder: Path, version: BundleVersion, record: VerificationRecord, found: _FoundGates, bundle: Bundle
) -> GateFit:
    gates = found.gates
    requests = gates.requests
    return GateFit(
        folder,
        version,
        record,
        gates.fitting,
        len(gates.values),
        len(bundle.config.target_modules),
        request=None if requests is None else requests.description,
        abstain=gates.abstain,
        confusions=() if requests is None else requests.confusions,
        evidence=gates.evidence,
        training=found.training,
    )


def write_fitted(
    bundle: Bundle,
    folder: Path,
    request: FitRequest,
    *,
    sources: Mapping[str, MemberFiles],
    progress: Progress = silent,
) -> VerificationRecord:
    """Fit the gates of a bundle and write the verified result into ``folder``, without a catalog.

    Args:
        bundle: the old bundle; it is not changed.
        folder: the new folder.
        request: on which base and data, and how.
        sources: the members' own files by member name; a member that is missing here is extracted.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        DataRefused, BundleRefused, UsageError, FuseRefused, SourceUnreadable: as ``fit_bundle``.
    """
    return _write(bundle, folder, request, _find_gates(bundle, folder, request, progress), sources, progress)


@dataclass(frozen=True, slots=True)
class _FoundGates:
    """Gates that were fitted or trained, before they are written; ``meta`` is the base without weights."""

    gates: FittedGates
    training: TrainingOutcome | None
    meta: PreTrainedModel
    answers: AnswerOrder | None


def _find_gates(bundle: Bundle, folder: Path, request: FitRequest, progress: Progress) -> _FoundGates:
    if not (folder / MANIFEST_FILE).is_file():
        check_target(folder)
    opened = open_base(request.base)
    meta = read_base(opened.config)
    check_shapes(meta, bundle.shapes)
    answers = answer_order(opened.tokenizer) if request.answers == "in-order" else None
    if request.statistics is not None:
        check_statistics(request.statistics, folder)
    data = _read_data(request, bundle.config.names, opened)
    if request.form is not None:
        check_form(opened.tokenizer, request.form)
    training = request.training
    if training is None:
        return _FoundGates(
            _fit(bundle, request, opened, data, load_base(opened), progress), None, meta, answers
        )
    if training.checkpoint is not None:
        _check_checkpoint(training.checkpoint, folder, request.statistics)
    check_launch(training)
    # Before the base is loaded, whose place depends on it.
    join_processes()
    base = load_base(opened)
    if request.samples is not None:
        data = {name: _cut(each, request.samples) for name, each in data.items()}
    fitted = from_first(lambda: _fit(bundle, request, opened, data, base, progress))
    trained = _train(bundle, training, opened, data, base, fitted, progress)
    return _FoundGates(trained.gates, trained.outcome, meta, answers)


def _cut(data: TaskData, samples: int) -> TaskData:
    return replace(data, samples=choose_samples(data.samples, samples))


def _write(
    bundle: Bundle,
    folder: Path,
    request: FitRequest,
    found: _FoundGates,
    sources: Mapping[str, MemberFiles],
    progress: Progress,
) -> VerificationRecord:
    with members_files(sources, bundle, bundle.config.names) as files:
        verify = partial(
            verify_bundle,
            level=level_of(bundle, files),
            sources=files,
            renamed=resolve_paths(bundle.manifest.renamed_paths, found.meta),
            progress=progress,
        )
        gate = found.gates.describe(request.scope, found.answers)
        return write_verified(folder, _writer(bundle, found.gates, gate, progress), verify)


def level_of(bundle: Bundle, files: Mapping[str, MemberFiles]) -> Level:
    """Return the level that the members' files allow: what came out of a bundle is not a witness of it."""
    is_witnessed = all(
        member.name in files and files[member.name].came_from is None for member in bundle.members
    )
    return Level.SOURCE if is_witnessed else Level.INTEGRITY


def choose_name(catalog: Catalog, name: str | None, bundle: Bundle, folder: Path) -> str:
    """Return the name of a bundle with other gates: as asked for, else as the old one's, else the folder's.

    Raises:
        UsageError: the name is malformed.
        AlreadyInCatalog: an adapter has it.
    """
    old = find_version(catalog, bundle)
    chosen = check_name(name or (old.name if old else None) or suggest_name(real_path(folder).name))
    check_no_adapter_has(catalog, chosen)
    return chosen


def register_refit(
    catalog: Catalog, folder: Path, name: str, manifest: Manifest, record: VerificationRecord
) -> BundleVersion:
    """Record a bundle with other gates; ``manifest`` is the old one's, which has the same members.

    Raises:
        AlreadyInCatalog, UsageError, CatalogUnusable: as ``register_bundle``.
    """
    members = [
        NewMember(each.name, find_member(catalog, each), each.weights_sha256, each.config_sha256)
        for each in manifest.members
    ]
    return register_bundle(catalog, folder, name, members, record)


def find_version(catalog: Catalog, bundle: Bundle) -> CatalogSource | None:
    """Return what the catalog calls a bundle; of several names, that of the bundle in this very folder."""
    here = real_path(bundle.folder)
    same = [
        place for place in catalog.list_bundle_places() if place.manifest_sha256 == bundle.manifest_sha256
    ]
    best = min(same, key=lambda place: (place.path != here, place.version.name), default=None)
    return None if best is None else best.version


def _fit(
    bundle: Bundle,
    request: FitRequest,
    opened: OpenedBase,
    data: Mapping[str, TaskData],
    base: PreTrainedModel,
    progress: Progress,
) -> FittedGates:
    return fit_gates(
        base,
        opened.tokenizer,
        bundle.config,
        data,
        options=request.options,
        statistics=request.statistics,
        bundle_bytes=factor_bytes(bundle.config, bundle.shapes, bundle.dtype),
        progress=progress,
    )


def _train(
    bundle: Bundle,
    training: TrainingOptions,
    opened: OpenedBase,
    data: Mapping[str, TaskData],
    base: PreTrainedModel,
    fitted: FittedGates,
    progress: Progress,
) -> TrainedGates:
    # The Trainer takes as long to import as all the rest.
    from ...runtime.training.train import train_gates

    shown = progress if is_first() else silent
    return train_gates(base, opened.tokenizer, bundle, fitted, data, options=training, progress=shown)


def _read_data(request: FitRequest, names: Sequence[str], opened: OpenedBase) -> dict[str, TaskData]:
    """Return the data of the members, but of those that are known from statistics alone.

    Raises:
        DataRefused: the data cannot be used, or a member has neither data nor a part.
        SourceUnreadable: a folder cannot be read.
    """
    folder = request.statistics
    # A training reads the data of every member, whatever is known of it.
    parts = None if folder is None or request.training is not None else StatisticsFolder(folder)
    kept = [name for name in names if parts is not None and parts.parts_of(name)]
    if request.data is not None:
        return read_task_data(
            request.data,
            names,
            tokenizer=opened.tokenizer,
            context_tokens=context_of(opened.config),
            kept=kept,
        )
    if lacking := [f"`{name}`" for name in names if name not in kept]:
        raise DataRefused(
            f"the statistics in `{folder}` have no part of {', '.join(lacking)}",
            hint="copy the parts of all members into one folder, or name the others' data with `--data`",
        )
    return {}


def factor_bytes(config: BundleConfig, shapes: Mapping[str, tuple[int, int]], dtype: Dtype) -> int:
    """Return the bytes of the factors of a bundle whose modules have these ``(in, out)`` features."""
    numbers = sum(config.layouts[path].rows * sum(shape) for path, shape in shapes.items())
    return numbers * dtype.size_bytes


def check_statistics(statistics: Path, folder: Path) -> None:
    """Pass if statistics can be kept in a folder; ``folder`` is the new bundle's.

    Raises:
        SourceUnreadable: it cannot be made, or may not be written to.
        UsageError: it is inside a bundle, which may have only what its manifest lists, or inside the new one.
    """
    check_writable(statistics / "a part" if statistics.is_dir() else statistics)
    _check_outside_bundles(statistics / "a part", statistics, "--statistics", folder)


def _check_checkpoint(path: Path, folder: Path, statistics: Path | None) -> None:
    check_writable(path)
    _check_outside_bundles(path, path, "--checkpoint", folder)
    if statistics is not None and real_path(path) == real_path(statistics):
        raise UsageError(
            f"`{path}` is named for the checkpoint and for the statistics",
            hint="choose another path with `--checkpoint`",
        )


def _check_outside_bundles(path: Path, named: Path, option: str, folder: Path) -> None:
    if real_path(folder) in real_path(path).parents:
        raise UsageError(
            f"`{named}` is inside `{folder}`, where the new bundle is to be",
            hint=f"choose another path with `{option}`",
        )
    around = bundle_around(path)
    if around is not None:
        raise UsageError(
            f"`{named}` is inside the bundle `{around}`, which may have only what its manifest lists",
            hint=f"choose another path with `{option}`",
        )


def _writer(
    bundle: Bundle, fitted: FittedGates, gate: Gate, progress: Progress
) -> Callable[[Path], Manifest]:
    request = {} if fitted.requests is None else fitted.requests.values
    new = NewGates(gate, bundle.config.top_k, bundle.config.temperature, fitted.values, request)
    return partial(refit_bundle, bundle, new, progress=progress)


@contextmanager
def members_files(
    sources: Mapping[str, MemberFiles], bundle: Bundle, names: Iterable[str]
) -> Iterator[dict[str, MemberFiles]]:
    """Yield the members' own files: the given ones, and those of the other ``names``, out of the old bundle.

    The verification accepts extracted files only if they have the digests of the manifest.
    """
    files = dict(sources)
    with temporary_folder(Purpose.FIT) as scratch:
        for name in names:
            if name not in files:
                target = below(scratch, name)
                extract_member(bundle, name, target)
                files[name] = MemberFiles(
                    target / CONFIG_FILE, target / WEIGHTS_FILE, came_from="the bundle that was fitted"
                )
        yield files
