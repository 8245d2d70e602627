"""Adapters become a bundle without a catalog: one call to fuse, a handle to fit and save.

An adapter is a folder or a repository on the Hub. The handle owns a temporary folder until it is saved, so
that a bundle can be tried out and thrown away. What is written is the same as with a catalog, byte for byte,
and verified in the same way.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ..bundle import Bundle
from ..bundle.files import staged_target
from ..files.progress import Progress, silent
from ..files.scratch import Purpose, temporary_folder
from ..schemas.bundle import CONFIG_FILE, WEIGHTS_FILE, Change
from ..schemas.errors import BundleRefused, UsageError
from ..schemas.gate_choices import DEFAULT_ABSTAIN, Answers, PromptForm, Scope
from ..schemas.limits import MAX_ADAPTER_FILE_BYTES
from ..schemas.names import (
    FolderSource,
    HubSource,
    below,
    check_name,
    name_of_folder,
    parse_path_or_source,
    suggest_name,
)
from ..schemas.recipe import Recipe, RecipeOptions
from ..schemas.verification import Level, VerificationRecord, level_of
from .closing import Closing
from .dependencies import require_torch
from .workspace import StrPath, path_or_none

if TYPE_CHECKING:
    from ..fuser.fuse_member import Member, MemberFiles
    from ..runtime.training import TrainingOptions
    from ..schemas.manifest import Origin
    from .hub.client import Hub
    from .hub.listing import Candidate


class _Scratch(Closing):
    """A temporary folder, deleted when it is closed or when nothing refers to it any more."""

    def __init__(self) -> None:
        stack = ExitStack()
        self.folder = stack.enter_context(temporary_folder(Purpose.FUSE))
        # Also runs when the value is collected, and when the interpreter ends.
        self._delete = weakref.finalize(self, stack.close)

    def close(self) -> None:
        """Delete the folder."""
        self._delete()


class _Downloads(_Scratch):
    """Members of one bundle, of which those from the Hub are downloaded into a temporary folder."""

    def __init__(self, max_bytes: int, earlier: _Downloads | None = None) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        # Kept as long as these: members of the bundle that a new one was made from.
        self._earlier = earlier

    @cached_property
    def _hub(self) -> Hub:
        from .hub.client import Hub

        return Hub()

    def find(self, source: StrPath) -> Path | Candidate:
        """Return a member's folder, or the adapter on the Hub at its commit; nothing is downloaded yet.

        Raises:
            UsageError: the repository has several adapters, and none of them is named.
            HubRefused, HubUnavailable, HubMismatch: the adapter cannot be had.
        """
        parsed = parse_path_or_source(source)
        if not isinstance(parsed, HubSource):
            return parsed.path if isinstance(parsed, FolderSource) else Path(source)
        from .workflows.hub_adapters import find_adapters

        (candidate,) = find_adapters(self._hub, parsed)
        return candidate

    def open(self, name: str, place: Path | Candidate, progress: Progress) -> Member:
        """Return a member that ``find`` found, downloaded where that is needed.

        Raises:
            AdapterRefused: it is broken.
            HubRefused, HubUnavailable, HubMismatch: it cannot be had.
            SourceUnreadable: a file cannot be read or written.
        """
        if isinstance(place, Path):
            from .workflows.additions import folder_origin

            return _open_member(name, place, str(place), folder_origin(place))
        from .workflows.hub_adapters import download_adapter, require_sound

        require_sound(self._hub, place, max_bytes=self._max_bytes)
        folder = below(self.folder, check_name(name))
        origin = download_adapter(self._hub, place, folder, name=name, progress=progress)
        return _open_member(name, folder, str(place), origin)


class FusedBundle(Closing):
    """A verified bundle that is in no catalog.

    One that was made here is in a temporary folder until ``save``; the folder is deleted with the handle, or
    at the end of a ``with`` block. ``open`` takes one that is in a folder already. The handle is a path, so
    that ``load``, ``Registry`` and PEFT take it like a folder.

    Attributes:
        bundle: the opened bundle: its config, manifest and members.
        record: the verification that it passed: at level `source` when it was written from its members' own
            files, at level `integrity` when it was opened, or made from one that was.
    """

    def __init__(
        self,
        bundle: Bundle,
        record: VerificationRecord,
        *,
        base: str | None,
        sources: Mapping[str, MemberFiles],
        renamed: Mapping[str, str],
        scratch: _Scratch | None,
        downloads: _Downloads | None,
    ) -> None:
        self.bundle = bundle
        self.record = record
        self._base = base
        self._sources = dict(sources)
        self._renamed = dict(renamed)
        self._scratch = scratch
        # Shared with the bundles that are fitted from this one; the last of them deletes the files.
        self._downloads = downloads

    @classmethod
    def open(
        cls, folder: StrPath, *, base: StrPath | None = None, progress: Progress = silent
    ) -> FusedBundle:
        """Return the handle of a bundle in a folder, after it was found to be intact.

        The folder stays when the handle is closed.

        Args:
            folder: the bundle.
            base: the base model's folder, or its name on the Hub; by default the one it was fused for.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            BundleRefused: it does not verify at level `integrity`.
            SourceUnreadable: a file is missing or cannot be read.
            InvalidDocument: its config or its manifest breaks the schema.
        """
        require_torch("verifying")
        from ..fuser.verifier import verify_bundle

        bundle = Bundle.open(folder)
        record = verify_bundle(bundle.folder, level=Level.INTEGRITY, progress=progress)
        if record.problems:
            raise BundleRefused(
                f"the bundle in `{folder}` is damaged: {record.problems[0]}",
                hint="run `meteora-registry verify` on it",
            )
        named = bundle.config.base_model_name_or_path if base is None else os.fspath(base)
        return cls(bundle, record, base=named, sources={}, renamed={}, scratch=None, downloads=None)

    @property
    def folder(self) -> Path:
        """Where the bundle is: a temporary folder, or where it was saved."""
        return self.bundle.folder

    def fit(
        self,
        data: StrPath | None = None,
        *,
        base: StrPath | None = None,
        scope: Scope | None = None,
        statistics: StrPath | None = None,
        form: PromptForm | None = None,
        abstain: float | None = DEFAULT_ABSTAIN,
        answers: Answers = "by-text",
        training: TrainingOptions | None = None,
        samples: int | None = None,
        progress: Progress = silent,
    ) -> FusedBundle:
        """Fit the gates on texts of each member, and return the verified result as a bundle of its own.

        Args:
            data: a folder with a file ``MEMBER.jsonl`` for each member; those whose part is in `statistics`
                may be missing.
            base: the base model's folder, or its name on the Hub; by default the one it was fused for.
            scope: what one decision of the gates serves; by default `prompt`, and `token` for a training.
            statistics: a folder that keeps each member's part of what was computed, so that members can be
                added, removed and replaced without the data of the others. Needed without `data`.
            form: of the prompts; by default both plain and in the base's chat template, if it has one.
            abstain: the share of own prompts that a decision about requests may leave to the base; None to
                leave none.
            answers: for the scope `segment`, who decides for the numbered lines of an answer; see
                ``Registry.fit``.
            training: how the gates are trained by gradient descent, as the paper does it; None for gates in
                closed form.
            samples: how many of a member are read at most, spread evenly over its file; by default 32, and
                all of them in a training.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            DataRefused: the data or the statistics cannot be used, a member has neither, or the loss of a
                training is not finite.
            UsageError: neither data nor statistics are named, two choices exclude each other, or a launcher
                started several processes, of which each would have a bundle of its own.
            BundleRefused: the bundle's modules are not those of the base.
            SourceUnreadable: a file cannot be read.
        """
        require_torch("fitting gates")
        from ..runtime.processes import process_count
        from .workflows.gate_fit import FitRequest, scope_of, write_fitted

        if process_count() > 1:
            raise UsageError(
                f"a bundle without a catalog is fitted in one process, found {process_count()}",
                hint="use `Registry.fit`, whose processes write one folder together",
            )
        chosen = _require_base(self._base if base is None else os.fspath(base))
        request = FitRequest(
            chosen,
            path_or_none(data),
            scope=scope_of(scope, training),
            statistics=path_or_none(statistics),
            form=form,
            abstain=abstain,
            answers=answers,
            training=training,
            samples=samples,
        )
        with ExitStack() as undo:
            scratch = undo.enter_context(_Scratch())
            folder = scratch.folder / "bundle"
            # A member whose files are gone is extracted from the bundle.
            record = write_fitted(self.bundle, folder, request, sources=self._own_files(), progress=progress)
            fitted = FusedBundle(
                Bundle.open(folder),
                record,
                base=chosen,
                sources=self._sources,
                renamed=self._renamed,
                scratch=scratch,
                downloads=self._downloads,
            )
            undo.pop_all()
        return fitted

    def add(
        self,
        member: StrPath,
        data: StrPath,
        *,
        statistics: StrPath,
        name: str | None = None,
        base: StrPath | None = None,
        max_bytes: int = MAX_ADAPTER_FILE_BYTES,
        progress: Progress = silent,
    ) -> FusedBundle:
        """Return a bundle with one member more, whose gates are those of a fit of all members together.

        Args:
            member: an adapter, in a folder or on the Hub.
            data: a file with texts of it, as ``fit`` reads them.
            statistics: the folder that ``fit`` kept each member's part in; the new member's comes into it.
            name: what the bundle calls it; by default after its folder or repository.
            base: the base model's folder, or its name on the Hub; by default the one it was fused for.
            max_bytes: larger files of a repository are refused before they are downloaded.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            BundleRefused: the gates are not fitted, or a member has the name.
            AdapterRefused, FuseRefused: the adapter is broken, or does not go with the members.
            DataRefused: the data or the statistics cannot be used.
            HubRefused, HubUnavailable, HubMismatch: an adapter on the Hub cannot be had.
            SourceUnreadable: a file cannot be read.
        """
        return self._change(
            "add",
            name,
            member,
            base=base,
            statistics=statistics,
            data=data,
            max_bytes=max_bytes,
            progress=progress,
        )

    def remove(
        self,
        name: str,
        *,
        statistics: StrPath,
        base: StrPath | None = None,
        progress: Progress = silent,
    ) -> FusedBundle:
        """Return a bundle without a member, whose gates are those of a fit of the remaining members.

        Args:
            name: of the member.
            statistics: the folder that ``fit`` kept each member's part in; it is not changed.
            base: the base model's folder, or its name on the Hub; by default the one it was fused for.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            BundleRefused: the gates are not fitted, there is no such member, or it is the only one.
            DataRefused: the statistics cannot be used.
            SourceUnreadable: a file cannot be read.
        """
        return self._change("remove", name, base=base, statistics=statistics, progress=progress)

    def replace(
        self,
        name: str,
        member: StrPath,
        *,
        data: StrPath | None = None,
        statistics: StrPath | None = None,
        base: StrPath | None = None,
        max_bytes: int = MAX_ADAPTER_FILE_BYTES,
        progress: Progress = silent,
    ) -> FusedBundle:
        """Return a bundle with another adapter in the place of a member.

        The gates are kept bit for bit if the members touch the same modules as before and no data are given;
        if not, they are fitted as by ``add``.

        Args:
            name: of the member.
            member: the adapter that comes, in a folder or on the Hub.
            data: a file with new texts of it; by default those that the member was fitted on still hold.
            statistics: the folder that ``fit`` kept each member's part in.
            base: the base model's folder, or its name on the Hub; by default the one it was fused for.
            max_bytes: larger files of a repository are refused before they are downloaded.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            BundleRefused: the gates are not fitted, there is no such member, or it is that adapter already.
            AdapterRefused, FuseRefused, DataRefused, SourceUnreadable: as ``add``.
            HubRefused, HubUnavailable, HubMismatch: an adapter on the Hub cannot be had.
        """
        return self._change(
            "replace",
            name,
            member,
            base=base,
            statistics=statistics,
            data=data,
            max_bytes=max_bytes,
            progress=progress,
        )

    def _change(
        self,
        change: Change,
        name: str | None,
        member: StrPath | None = None,
        *,
        base: StrPath | None,
        statistics: StrPath | None,
        data: StrPath | None = None,
        max_bytes: int = MAX_ADAPTER_FILE_BYTES,
        progress: Progress,
    ) -> FusedBundle:
        require_torch("fitting gates")
        from ..fuser.fuse_member import MemberFiles
        from ..fuser.recomposition import MemberChange
        from .workflows.base_place import place_base
        from .workflows.member_change import ChangeSources, write_changed

        chosen = self._base if base is None else os.fspath(base)
        given = ChangeSources(
            partial(_require_base, chosen), place_base(chosen), path_or_none(statistics), path_or_none(data)
        )
        with ExitStack() as undo:
            downloads = self._downloads
            opened = None
            if member is not None:
                # Those of this bundle and the new one: either handle may outlive the other.
                downloads = undo.enter_context(_Downloads(max_bytes, self._downloads))
                place = downloads.find(member)
                opened = downloads.open(name or _name_of(place), place, progress)
            called = opened.name if opened else check_name(name or "")
            scratch = undo.enter_context(_Scratch())
            folder = scratch.folder / "bundle"
            written = write_changed(
                self.bundle,
                folder,
                MemberChange(change, called, opened),
                given,
                sources=self._own_files(),
                progress=progress,
            )
            sources = {own: files for own, files in self._sources.items() if own != called}
            if opened is not None:
                sources[called] = MemberFiles(opened.config_path, opened.weights_path)
            changed = FusedBundle(
                Bundle.open(folder),
                written.record,
                base=chosen,
                sources=sources,
                renamed={**self._renamed, **written.renamed},
                scratch=scratch,
                downloads=downloads,
            )
            undo.pop_all()
        return changed

    def verify(self, *, level: Level | str = Level.SOURCE, progress: Progress = silent) -> VerificationRecord:
        """Verify the bundle again, by default against the members' own files.

        Raises:
            SourceUnreadable: its manifest is missing or cannot be read.
        """
        require_torch("verifying")
        from ..fuser.verifier import verify_bundle

        return verify_bundle(
            self.folder,
            level=level_of(level),
            sources=self._own_files(),
            renamed=self._renamed,
            with_triton=True,
            progress=progress,
        )

    def save(self, folder: StrPath) -> Path:
        """Copy the bundle into a new folder, which is the handle's from then on, and return its path.

        Raises:
            UsageError: the folder exists and is not empty.
            SourceUnreadable: it cannot be written.
        """
        target = Path(folder)
        with staged_target(target) as staging:
            shutil.copytree(self.folder, staging, dirs_exist_ok=True)
        self.bundle = Bundle.open(target.absolute())
        self._delete_scratch()
        return target

    def close(self) -> None:
        """Delete the temporary folder and what was downloaded; a saved bundle stays."""
        self._delete_scratch()
        self._downloads = None

    def _delete_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.close()

    def _own_files(self) -> dict[str, MemberFiles]:
        """Return the members' own files, as far as they are still there."""
        return {name: files for name, files in self._sources.items() if files.weights_path.is_file()}

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"FusedBundle({str(self.folder)!r}, members={list(self.bundle.config.names)!r})"


def _require_base(base: str | None) -> str:
    if base is None:
        raise UsageError("the bundle names no base model to fit on", hint="name one with `base=...`")
    return base


def fuse(
    members: Iterable[StrPath] | Mapping[str, StrPath],
    *,
    base: StrPath | None = None,
    base_folder: StrPath | None = None,
    max_bytes: int = MAX_ADAPTER_FILE_BYTES,
    progress: Progress = silent,
    **options: Unpack[RecipeOptions],
) -> FusedBundle:
    """Fuse adapters from folders and from the Hub into one verified bundle, without a catalog.

    A repository on the Hub is pinned to its commit and checked before its weights are downloaded. The
    downloads are deleted with the handle.

    Args:
        members: the adapters: folders, or repositories such as ``org/name`` and ``org/name@revision``. The
            bundle calls each member after its folder or repository, or by the key of a mapping.
        base: the base model's name, where the members disagree or name none; or its folder.
        base_folder: where the base's config is. Every module is looked up there, or in the local Hub cache
            if it has the base.
        max_bytes: larger files of a repository are refused before they are downloaded.
        progress: called with a step's name, how much of it is done, and how much there is.
        options: the fields of a ``Recipe``: base_revision, top_k, temperature, dtype, gate, seed,
            with_experts, trust_tensors.

    Raises:
        AdapterRefused: an adapter is broken, or has no LoRA factors.
        FuseRefused: the adapters cannot become one bundle; ``conflicts`` lists the reasons.
        UsageError: an option is out of range, two members have one name, or a repository has several
            adapters.
        HubRefused, HubUnavailable, HubMismatch: an adapter on the Hub cannot be had.
        SourceUnreadable: a file cannot be read.
    """
    require_torch("fusing")
    from ..fuser.bundle_writer import require_no_conflicts
    from .workflows.base_place import place_base
    from .workflows.fuse_plan import plan_members
    from .workflows.fusion import write_fused

    place = place_base(base, base_folder)
    with ExitStack() as undo:
        downloads = undo.enter_context(_Downloads(max_bytes))
        places = _place_members(members, downloads)
        named = ({"adapter": str(place), "name": name} for name, place in places)
        recipe = Recipe.state(named, dict(options))
        opened = [downloads.open(name, place, progress) for name, place in places]
        prepared = plan_members(opened, recipe, place)
        require_no_conflicts(prepared.plan)
        scratch = undo.enter_context(_Scratch())
        folder = scratch.folder / "bundle"
        record = write_fused(prepared, folder, progress=progress)
        fused = FusedBundle(
            Bundle.open(folder),
            record,
            base=str(place.folder) if place.folder else prepared.plan.base,
            sources=prepared.sources,
            renamed=prepared.renamed,
            scratch=scratch,
            downloads=downloads,
        )
        undo.pop_all()
    return fused


def _place_members(
    members: Iterable[StrPath] | Mapping[str, StrPath], downloads: _Downloads
) -> list[tuple[str, Path | Candidate]]:
    """Return each member's name in the bundle, and where it is."""
    if isinstance(members, str | os.PathLike):
        raise UsageError(f"`{members}` is one adapter, expected a list of them")
    if isinstance(members, Mapping):
        return [(name, downloads.find(source)) for name, source in members.items()]
    places = [downloads.find(source) for source in members]
    return [(_name_of(place), place) for place in places]


def _name_of(place: Path | Candidate) -> str:
    return name_of_folder(place) if isinstance(place, Path) else suggest_name(place.default_name)


def _open_member(name: str, folder: Path, adapter: str, origin: Origin) -> Member:
    from ..fuser.fuse_member import Member
    from ..inspection.adapter import inspect_adapter
    from ..inspection.folder import file_of_link

    sound = inspect_adapter(folder).require_sound(f"`{adapter}` is broken and cannot be fused")
    facts = sound.facts
    return Member.of(
        sound.require_factors(f"`{adapter}` is {sound.verdict}"),
        name=name,
        adapter=adapter,
        config_path=file_of_link(folder / CONFIG_FILE),
        weights_path=file_of_link(folder / WEIGHTS_FILE),
        origin=origin,
        license=facts.license,
        base=facts.declared_base,
        spelled_base=facts.declared_base,
    )
