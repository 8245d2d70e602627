"""``bundle add``, ``remove`` and ``replace``: a new version of a bundle in which one member is another.

The others' factors are taken over bit for bit, and their data are not needed: the gates are fitted on the
statistics that ``gate fit`` kept of each member, and are those that a fit of all members together gives.
Where a member is replaced on the same modules, without new data, the gates stay as they are. What is written
is verified against the members' own files like a bundle that was just fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...bundle import Bundle
from ...bundle.files import check_target
from ...bundle.signature import has_signature
from ...files.progress import Progress, silent
from ...fuser.bundle_writer import require_no_conflicts
from ...fuser.fuse_member import Member, MemberFiles
from ...fuser.recomposition import (
    MemberChange,
    Recomposition,
    check_kept,
    kept_gates,
    recipe_of,
    write_recomposed,
)
from ...fuser.refit import NewGates
from ...fuser.verifier import verify_bundle
from ...runtime.base_modules import read_base, resolve_paths
from ...runtime.fitting import (
    FittedGates,
    OpenedBase,
    TaskData,
    check_shapes,
    context_of,
    fit_gates,
    open_base,
    read_member_data,
)
from ...schemas.base_name import is_other_base
from ...schemas.bundle import IMPORTED, MANIFEST_FILE, TRAINED, ChangedFrom, Fitting, Gate, RequestGates
from ...schemas.digest import Digest
from ...schemas.errors import BundleRefused, DataRefused, FuseRefused, UsageError
from ...schemas.gate_choices import DEFAULT_ABSTAIN, SCOPES
from ...schemas.verification import VerificationRecord
from ..catalog.records import AdapterVersion, BundleVersion, NewMember
from ..workspace import Workspace
from .base_place import BasePlace
from .bundle_folder import find_member, register_bundle, write_verified
from .bundle_verification import renaming_by
from .fuse_plan import find_adapter, open_member, plan_members, stored_sources
from .gate_fit import (
    check_statistics,
    choose_name,
    factor_bytes,
    fit_options,
    level_of,
    members_files,
)
from .inference import load_base

_ANEW = "fuse the members that it should have, and fit them with `meteora-registry gate fit`"


@dataclass(frozen=True, slots=True)
class ChangeSources:
    """The sources of a change beside the bundle: base, statistics and data.

    Attributes:
        base: returns the base's folder or name to load it from; called only if gates are fitted.
        place: the base as it was named, in which the members' modules are looked up.
        statistics: the folder that ``gate fit`` kept each member's part in.
        data: a file with the data of the member that comes.
    """

    base: Callable[[], str]
    place: BasePlace
    statistics: Path | None = None
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class WrittenChange:
    """A bundle that was changed and verified, before any catalog knows it.

    Attributes:
        record: of its verification.
        gates: its gates; None if those of the old bundle serve it.
        renamed: what the base calls old module paths of the members.
        notes: what differs beside the member.
    """

    record: VerificationRecord
    gates: FittedGates | None
    renamed: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChangedBundle:
    """The result of a change of one member.

    Attributes:
        folder: of the new bundle.
        version: of the bundle in the catalog.
        record: of its verification.
        changed_from: the bundle that it was made from, and the change.
        gates_kept: whether the old gates serve it, bit for bit; if not, they were fitted.
        request: the gates that decide for requests, and how well; None in a scope without such decisions.
        abstain: the confidence below which they leave a prompt to the base.
        confusions: held-out prompts that went to another member: their own, the chosen one, and how many;
            empty where the gates were kept.
        notes: what differs beside the member.
    """

    folder: Path
    version: BundleVersion
    record: VerificationRecord
    changed_from: ChangedFrom
    gates_kept: bool
    request: RequestGates | None
    abstain: float | None
    confusions: tuple[tuple[str, str, int], ...]
    notes: tuple[str, ...]


def change_bundle(
    workspace: Workspace,
    source: Path,
    folder: Path,
    change: MemberChange,
    given: ChangeSources,
    *,
    version: AdapterVersion | None = None,
    name: str | None = None,
    progress: Progress = silent,
) -> ChangedBundle:
    """Change one member of the bundle in ``source`` and register the new version in ``folder``.

    Args:
        workspace: in whose catalog it is registered; its store is searched for the members' own files, and a
            member that is not there is extracted.
        source: the bundle; it is not changed.
        folder: the new folder.
        change: of which member, and how.
        given: base, statistics and data.
        version: the catalogued adapter that comes, if one does.
        name: what the catalog calls the bundle: by default what it calls the old one, else as the folder.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        BundleRefused: the bundle is damaged, its gates are not fitted, or it cannot be changed so.
        FuseRefused: the members do not go together, or what was written does not verify; nothing is left.
        DataRefused: the data or the statistics cannot be used.
        UsageError: the statistics are missing, the folder is taken, or the name is malformed.
        AlreadyInCatalog: an adapter has the name.
        SourceUnreadable: a file cannot be read or written.
    """
    catalog = workspace.catalog
    bundle = Bundle.open(source)
    bundle_name = choose_name(catalog, name, bundle, folder)
    sources = stored_sources(workspace, bundle.manifest)
    written = write_changed(bundle, folder, change, given, sources=sources, progress=progress)
    new = Bundle.open(folder)
    members = [
        NewMember(
            each.name,
            version if version and each.name == change.member else find_member(catalog, each),
            each.weights_sha256,
            each.config_sha256,
        )
        for each in new.manifest.members
    ]
    registered = register_bundle(catalog, folder, bundle_name, members, written.record)
    gates = written.gates
    return ChangedBundle(
        folder,
        registered,
        written.record,
        changed_from=ChangedFrom(
            manifest_sha256=bundle.manifest_sha256, change=change.change, member=change.member
        ),
        gates_kept=gates is None,
        request=new.config.gate.request,
        abstain=new.config.gate.abstain,
        confusions=gates.requests.confusions if gates and gates.requests else (),
        notes=written.notes,
    )


def open_new_member(
    workspace: Workspace, adapter: str, member: str | None = None
) -> tuple[Member, AdapterVersion]:
    """Return a catalogued adapter as a member called ``member``, by default as it is catalogued.

    Raises:
        UsageError, StoreDamaged, AdapterRefused: as for the members of a fuse.
        NotInCatalog: it is not catalogued.
    """
    version = find_adapter(workspace, adapter)
    return open_member(workspace.store, version, name=member), version


def write_changed(
    bundle: Bundle,
    folder: Path,
    change: MemberChange,
    given: ChangeSources,
    *,
    sources: Mapping[str, MemberFiles],
    progress: Progress = silent,
) -> WrittenChange:
    """Change one member of a bundle and write the verified result into ``folder``, without a catalog.

    Args:
        bundle: the old bundle; it is not changed.
        folder: the new folder.
        change: of which member, and how.
        given: base, statistics and data.
        sources: the members' own files by member name; a kept member that is missing here is extracted.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        BundleRefused, FuseRefused, DataRefused, UsageError, SourceUnreadable: as ``change_bundle``.
    """
    fitting = _require_fit(bundle)
    if not (folder / MANIFEST_FILE).is_file():
        check_target(folder)
    recomposition, renamed = _recompose(bundle, change, given.place)
    if given.data is None:
        _check_is_new(bundle, change)
    gates = None
    if change.change == "replace" and given.data is None and recomposition.has_same_modules:
        new = kept_gates(bundle)
    else:
        _check_given(bundle, change, given, folder)
        opened = open_base(given.base())
        meta = read_base(opened.config)
        check_shapes(meta, recomposition.shapes)
        renamed = resolve_paths(_old_paths(recomposition), meta)
        gates = _fit(recomposition, fitting, opened, given, progress)
        new = _new_gates(gates, recomposition)
    write = partial(write_recomposed, recomposition, new, progress=progress)
    with members_files(_own_files(sources, change), bundle, recomposition.kept) as files:
        verify = partial(_verify, recomposition, files, renamed, progress)
        record = write_verified(folder, write, verify)
    return WrittenChange(record, gates, renamed, tuple(_notes(recomposition)))


def _require_fit(bundle: Bundle) -> Fitting:
    """Return how the gates of a bundle were fitted, if statistics can stand for it."""
    fitted = bundle.config.gate.fitted
    if not isinstance(fitted, Fitting):
        raise BundleRefused(f"the gates of the bundle in `{bundle.folder}` are not fitted", hint=_ANEW)
    if fitted.method in (IMPORTED, TRAINED):
        raise BundleRefused(
            f"the gates of the bundle in `{bundle.folder}` are {fitted.method}: nothing is known of the data "
            "of each member",
            hint=_ANEW,
        )
    return fitted


def _recompose(
    bundle: Bundle, change: MemberChange, place: BasePlace
) -> tuple[Recomposition, Mapping[str, str]]:
    """Plan a change, and return it with what the base calls old module paths, as far as it is at hand."""
    _check_base(bundle, change)
    members = change.apply(bundle)
    named = BasePlace(bundle.config.base_model_name_or_path, place.folder, place.path)
    prepared = plan_members(members, recipe_of(bundle, members), named)
    require_no_conflicts(prepared.plan)
    renamed = renaming_by(named, bundle.folder, bundle.manifest) or {}
    recomposition = Recomposition(bundle, change, prepared.members, prepared.plan)
    return recomposition, {**renamed, **prepared.renamed}


def _check_base(bundle: Bundle, change: MemberChange) -> None:
    base, new = bundle.config.base_model_name_or_path, change.new
    if new is not None and is_other_base(new.base, base):
        raise FuseRefused(
            f"`{new.adapter}` names the base `{new.base}`, the bundle was fused for `{base}`",
            hint=f"if they are one model, add the adapter again with `--base {base}`",
        )


def _check_is_new(bundle: Bundle, change: MemberChange) -> None:
    if change.change != "replace" or change.new is None:
        return
    old = bundle.manifest.members[bundle.config.index_of(change.member)]
    content = (change.new.weights_sha256, change.new.config_sha256)
    if content == (old.weights_sha256, old.config_sha256):
        raise BundleRefused(
            f"the member `{change.member}` is `{change.new.adapter}` already: nothing is replaced",
            hint="name another version with `--with`, or new data with `--data`",
        )


def _check_given(bundle: Bundle, change: MemberChange, given: ChangeSources, folder: Path) -> None:
    """Pass if gates can be fitted for the bundle's scope from what was given."""
    scope = bundle.config.gate.scope
    if SCOPES[scope].fits_concatenated:
        raise BundleRefused(
            f"the gates are fitted for the scope `{scope}`, with samples behind those of other members: a "
            "change takes the data of every member",
            hint=_ANEW,
        )
    if given.statistics is None:
        raise UsageError(
            "the gates have to be fitted, and no statistics stand for the data of the other members",
            hint="name the folder that `gate fit --statistics FOLDER` kept them in; without one, fit anew",
        )
    if not given.statistics.is_dir():
        raise UsageError(
            f"there are no statistics in `{given.statistics}`: it is not a folder",
            hint="name the folder that `gate fit --statistics FOLDER` kept them in",
        )
    if given.data is not None:
        check_statistics(given.statistics, folder)
    elif change.change == "add":
        raise UsageError(
            f"there are no data of the member `{change.member}`", hint="name a file with `--data FILE.jsonl`"
        )


def _fit(
    recomposition: Recomposition,
    fitting: Fitting,
    opened: OpenedBase,
    given: ChangeSources,
    progress: Progress,
) -> FittedGates:
    """Fit the gates of the new members as those of the old ones were.

    Raises:
        DataRefused: the data or the statistics cannot be used, or the old gates were fitted otherwise.
    """
    gate, config = recomposition.bundle.config.gate, recomposition.config
    data = _read_data(recomposition.change, opened, given)
    known: dict[str, Digest] = {each.member: each.sha256 for each in fitting.data}
    fitted = fit_gates(
        load_base(opened),
        opened.tokenizer,
        config,
        data,
        options=fit_options(gate.scope, None, _abstain_of(gate), fitting.max_samples),
        statistics=given.statistics,
        known=known,
        bundle_bytes=factor_bytes(config, recomposition.shapes, recomposition.plan.dtype),
        progress=progress,
    )
    if fitted.fitting.method != fitting.method:
        raise DataRefused(
            f"the bundle's gates were fitted by `{fitting.method}`, the statistics give "
            f"`{fitted.fitting.method}`",
            hint="fit it anew with `meteora-registry gate fit`, and keep the statistics",
        )
    return fitted


def _read_data(change: MemberChange, opened: OpenedBase, given: ChangeSources) -> dict[str, TaskData]:
    if given.data is None:
        return {}
    data = read_member_data(
        given.data, change.member, tokenizer=opened.tokenizer, context_tokens=context_of(opened.config)
    )
    return {change.member: data}


def _abstain_of(gate: Gate) -> float | None:
    """Return the share of own prompts that a fit may leave to the base.

    Where too few prompts were held out to know a threshold, it is the default: nothing else was asked for.
    """
    has_threshold = gate.request is not None and gate.request.quantiles is not None
    return gate.abstain if has_threshold else DEFAULT_ABSTAIN


def _new_gates(gates: FittedGates, recomposition: Recomposition) -> NewGates:
    plan = recomposition.plan
    request = {} if gates.requests is None else gates.requests.values
    described = gates.describe(recomposition.bundle.config.gate.scope)
    return NewGates(described, plan.top_k, plan.temperature, gates.values, request)


def _old_paths(recomposition: Recomposition) -> list[str]:
    """Return the module paths of members' own that the new bundle calls something else."""
    planned = {path for each in recomposition.plan.members for path in each.renamed_modules}
    return sorted(planned.union(recomposition.bundle.manifest.renamed_paths))


def _own_files(sources: Mapping[str, MemberFiles], change: MemberChange) -> dict[str, MemberFiles]:
    files = {name: each for name, each in sources.items() if name != change.member}
    if change.new is not None:
        files[change.member] = MemberFiles(change.new.config_path, change.new.weights_path)
    return files


def _verify(
    recomposition: Recomposition,
    files: Mapping[str, MemberFiles],
    renamed: Mapping[str, str],
    progress: Progress,
    folder: Path,
) -> VerificationRecord:
    """Verify what was written, and compare the kept members with the old bundle.

    Raises:
        FuseRefused: a kept member is not what it was.
    """
    if problems := list(check_kept(recomposition, folder)):
        raise FuseRefused(
            f"the bundle in `{folder}` does not have the members of the old one",
            conflicts=problems,
            hint="nothing was catalogued; the disk or meteora-registry is at fault",
        )
    record = verify_bundle(
        folder,
        level=level_of(Bundle.open(folder), files),
        sources=files,
        renamed=renamed,
        progress=progress,
    )
    kept = len(recomposition.kept)
    note = (
        f"the factors of {kept} kept member{'s' if kept > 1 else ''} are byte for byte those of the bundle "
        f"`{recomposition.bundle.manifest_sha256.short}`"
    )
    return record if not kept else record.model_copy(update={"notes": (*record.notes, note)})


def _notes(recomposition: Recomposition) -> Iterator[str]:
    """Yield what differs beside the member."""
    bundle, plan = recomposition.bundle, recomposition.plan
    yield from plan.warnings
    if plan.top_k != bundle.config.top_k:
        yield f"top k is {plan.top_k}, and was {bundle.config.top_k}: the bundle has no more members"
    for member in plan.members:
        if member.name == recomposition.change.member and member.cast_from:
            yield (
                f"`{member.name}` is cast from {', '.join(member.cast_from)} to {plan.dtype}, the element "
                "type of the bundle, and loses precision"
            )
    if has_signature(bundle.folder):
        yield "the old bundle has a signature, the new one has none: sign it when you push it"
