"""The toolchain for Python programs: one object with a catalog and a store, and a method for each job.

The command line and these methods call the same workflows. Each method imports what it needs, so that
looking into a catalog does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ..files.progress import Progress, silent
from ..schemas.errors import UsageError
from ..schemas.gate_choices import DEFAULT_ABSTAIN, Answers, PromptForm, Scope
from ..schemas.limits import MAX_ADAPTER_FILE_BYTES, MAX_BUNDLE_BYTES
from ..schemas.names import (
    CatalogSource,
    FolderSource,
    HubSource,
    Source,
    below,
    parse_catalog_source,
    parse_path_or_source,
    parse_repository,
)
from ..schemas.verification import Level, VerificationRecord, level_of
from .catalog.records import MAX_TRASH_DAYS, TRASH_DAYS
from .dependencies import require_torch
from .settings import Settings
from .workspace import StrPath, Workspace, path_or_none

if TYPE_CHECKING:
    from ..bundle.signers import Signers
    from ..runtime.evaluation import EvaluationOptions
    from ..runtime.training import TrainingOptions
    from ..schemas.difference import AdapterDifference, BundleDifference
    from ..schemas.evaluation import Evaluation
    from ..schemas.recipe import Recipe, RecipeOptions
    from ..schemas.signers import SigningKey
    from .catalog.query import AdapterQuery, Page
    from .catalog.records import AdapterSummary, AdapterVersion, BundleVersion, Restored, TrashedVersion
    from .workflows.additions import Addition
    from .workflows.examination import Examination
    from .workflows.fusion import Fusion
    from .workflows.gate_adoption import GateAdoption
    from .workflows.gate_fit import GateFit
    from .workflows.hub_bundles import Pulled
    from .workflows.member_change import ChangedBundle, ChangeSources
    from .workflows.publication import Pushed
    from .workflows.store_upkeep import Removed


class Registry(Workspace):
    """A catalog of adapters and bundles with its content store.

    Use it in a ``with`` block, or call ``close``. The catalog is opened when it is first needed; the default
    one is created when it is not there yet. Wherever a bundle is expected, its folder or its catalogued name
    (``name``, ``name@2``, ``name@alias``) can be given.

    Args:
        home: the folder of catalog and store; by default METEORA_HOME, else ``home`` in the user's settings,
            else the user's data folder.
        catalog: the URL of a catalog elsewhere, such as ``postgresql://user@host/name``; by default
            METEORA_CATALOG, else ``catalog`` in the user's settings, else ``catalog.db`` in the home.
        store: the URL of a content store elsewhere, such as ``s3://bucket/adapters``; by default
            METEORA_STORE, else ``store`` in the user's settings, else ``blobs`` in the home.

    A base is given by its full name: the short names of the settings hold for the command line alone, so
    that a program does the same in every folder.

    Raises:
        UsageError: the user's file of settings is malformed.
        SourceUnreadable: that file cannot be read.
    """

    def __init__(
        self, home: StrPath | None = None, catalog: str | None = None, store: str | None = None
    ) -> None:
        super().__init__(Settings.read(home, catalog, store).place)

    def add(
        self,
        source: StrPath | Source,
        *,
        name: str | None = None,
        base: str | None = None,
        tags: Iterable[str] = (),
        subfolder: str | None = None,
        max_bytes: int = MAX_ADAPTER_FILE_BYTES,
        follow_links: bool = False,
        progress: Progress = silent,
    ) -> Addition:
        """Check an adapter and record it as a version.

        Args:
            source: a folder, or a repository on the Hub: ``org/name`` or ``org/name@revision``.
            name: what the catalog calls the adapter; by default made from the folder or the repository.
            base: the base model, where the adapter names none or the wrong one.
            tags: words attached to the version.
            subfolder: the adapter's folder below the folder or in the repository.
            max_bytes: larger files of a repository are refused before they are downloaded.
            follow_links: whether a config and weights in a folder that are symbolic links are read; the links
                of a Hub cache are in any case, as far as they stay in the same repository.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            AdapterRefused: it is broken; ``findings`` lists the reasons, and nothing is recorded.
            AlreadyInCatalog: a bundle has the name.
            SourceUnreadable, HubRefused, HubUnavailable, HubMismatch: its files cannot be had.
        """
        parsed = parse_path_or_source(source)
        if not isinstance(parsed, HubSource):
            from .workflows.additions import add_folder

            folder = parsed.path if isinstance(parsed, FolderSource) else Path(str(source))
            if subfolder is not None:
                folder = below(folder, subfolder.strip("/"))
            return add_folder(
                self,
                folder,
                name=name,
                base=base,
                tags=tags,
                follow_links=follow_links,
                progress=progress,
            )
        from .workflows.hub_adapters import add_from_hub, find_adapters

        if subfolder is not None:
            parsed = HubSource(parsed.repository, parsed.revision, subfolder.strip("/"))
        (candidate,) = find_adapters(self.hub, parsed)
        return add_from_hub(
            self, candidate, name=name, base=base, tags=tags, max_bytes=max_bytes, progress=progress
        )

    def find(self, name: str | CatalogSource) -> AdapterVersion | BundleVersion:
        """Return an adapter or a bundle version: the latest of a ``name``, ``name@2``, or ``name@alias``.

        Raises:
            NotInCatalog: nothing of that name is catalogued.
        """
        return self.catalog.find_any(_catalogued(name))

    def search(self, query: AdapterQuery | str | None = None) -> Page[AdapterSummary]:
        """Return the first page of adapters that meet a query; without one, of all adapters.

        Args:
            query: words, each of which begins a word of the name, the tags, the origin, the base, the license
                or the task; or an ``AdapterQuery`` with more conditions. Its ``after`` asks for a later page.

        Raises:
            UsageError: the words or the cursor cannot be read.
        """
        from .catalog.query import AdapterQuery

        wanted = query if isinstance(query, AdapterQuery) else AdapterQuery(text=query)
        return self.catalog.search(wanted)

    def remove(
        self, source: str | CatalogSource, *, keep_days: int = TRASH_DAYS, for_good: bool = False
    ) -> Removed:
        """Move a version, or every version of a name, to the trash; the folder of a bundle stays where it is.

        Args:
            source: a name, or a version of it.
            keep_days: how many days it can be restored; then ``store gc`` deletes it with its bytes.
            for_good: delete it at once, with its bytes, together with what the trash already has of it.

        Raises:
            NotInCatalog: nothing of that name is catalogued.
            StillInUse: a bundle has one of them as a member.
            UsageError: the days are out of range.
        """
        from .workflows.store_upkeep import remove_versions

        if not 1 <= keep_days <= MAX_TRASH_DAYS:
            raise UsageError(f"{keep_days} days in the trash, expected 1 to {MAX_TRASH_DAYS}")
        return remove_versions(self, _catalogued(source), keep_days=None if for_good else keep_days)

    def restore(self, source: str | CatalogSource, *, name: str | None = None) -> Restored:
        """Bring back a removed version, or all versions that the last removal of a name took.

        Its tags, aliases and verifications come back with it, and the members of a bundle that were removed.

        Args:
            source: the name, or the version, that was removed.
            name: another name to restore it under, as the next version of that name.

        Raises:
            NotInCatalog: the trash has nothing of that name.
            AlreadyInCatalog: something else has the name, or has this very content under it.
        """
        return self.catalog.restore(_catalogued(source), name=name)

    def trash(self) -> tuple[TrashedVersion, ...]:
        """Return the removed versions that can be restored, the last removed first."""
        return self.catalog.list_trash()

    def rename(self, name: str, new: str) -> tuple[CatalogSource, ...]:
        """Rename an adapter or a bundle with all its versions, and return them under the new name.

        Raises:
            NotInCatalog: nothing of that name is catalogued.
            AlreadyInCatalog: something has the new name, or a version of it was something else before.
            UsageError: the new name is malformed.
        """
        return self.catalog.rename(name, new)

    def edit(self, name: str, *, note: str | None = None, owner: str | None = None) -> None:
        """Set the note or the owner of an adapter or a bundle, for all versions of that name.

        An empty text removes it, and None leaves it as it is.

        Raises:
            NotInCatalog: nothing of that name is catalogued.
            UsageError: a text is too long.
        """
        self.catalog.edit(name, note=note, owner=owner)

    def diff(
        self, first: StrPath, second: StrPath, *, progress: Progress = silent
    ) -> AdapterDifference | BundleDifference:
        """Return what changed from one version of an adapter or a bundle to the next.

        Args:
            first: a folder, a catalogued name (``legal@1``), a repository on the Hub (``org/legal@v1``), or a
                folder in a commit of the git repository around the current folder (``main:adapters/legal``).
            second: another version of it.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            UsageError: a source is malformed, or one is an adapter and the other a bundle.
            AdapterRefused, BundleRefused: one cannot be read as an adapter or a bundle.
            NotInCatalog, SourceUnreadable, HubRefused, HubUnavailable, HubMismatch: its files cannot be had.
        """
        from .workflows.difference import compare_versions

        return compare_versions(self, first, second, progress=progress)

    def fuse(
        self,
        adapters: Iterable[str] | Recipe,
        out: StrPath,
        *,
        name: str | None = None,
        base: StrPath | None = None,
        base_folder: StrPath | None = None,
        progress: Progress = silent,
        **options: Unpack[RecipeOptions],
    ) -> Fusion:
        """Fuse catalogued adapters into one verified bundle and record it.

        Args:
            adapters: names such as ``legal``, ``legal@3`` or ``legal@champion``, or repositories on the Hub
                that adapters were added from, such as ``org/legal``; or a recipe, which has the
                options in it.
            out: the new folder.
            name: what the catalog calls the bundle; by default made from the folder's name.
            base: the base model's name, where the adapters disagree or name none; or its folder.
            base_folder: where the base's config is. Every module is looked up there, or in the local Hub
                cache if it has the base.
            progress: called with a step's name, how much of it is done, and how much there is.
            options: the other fields of a ``Recipe``: base_revision, top_k, temperature, dtype, gate, seed,
                with_experts, trust_tensors.

        Raises:
            NotInCatalog: an adapter is not catalogued.
            FuseRefused: the adapters cannot become one bundle; ``conflicts`` lists the reasons.
            UsageError: an option is out of range, or the folder is not empty.
        """
        require_torch("fusing")
        from .workflows.fuse_plan import prepare_fuse
        from .workflows.fusion import fuse

        recipe = _recipe_of(adapters, base, base_folder, options)
        prepared = prepare_fuse(self, recipe)
        return fuse(self, prepared, Path(out), name=name, progress=progress)

    def verify(
        self,
        bundle: StrPath,
        *,
        level: Level | str = Level.INTEGRITY,
        base: StrPath | None = None,
        base_folder: StrPath | None = None,
        refetch: bool = False,
        keep_record: bool = False,
        signers: Signers | StrPath | None = None,
        progress: Progress = silent,
    ) -> VerificationRecord:
        """Verify a bundle and return the record, whose ``outcome`` is pass, fail or inconclusive.

        Args:
            bundle: its folder, its catalogued name, or a repository on the Hub, which is fetched, verified,
                and not kept.
            level: `integrity` checks the bundle alone; `source` also compares it with the members' own files.
            base: the base model's name or folder, used where the bundle states that the base renamed
                modules; by default the bundle's own, if the local Hub cache has it.
            base_folder: where the base's config is, apart from what it is called.
            refetch: with level `source`, fetch the members from the origins on the Hub that the bundle names.
            keep_record: write the record into the bundle.
            signers: one of them must have signed it; a signers file, by default that of METEORA_SIGNERS.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            NotInCatalog: no bundle of that name is catalogued.
            UsageError: `refetch` at level `integrity`.
            SourceUnreadable: the bundle cannot be read.
            BundleRefused: it is not signed by an accepted signer.
        """
        require_torch("verifying")
        from .workflows.base_place import place_base
        from .workflows.bundle_verification import verify

        return verify(
            self,
            bundle,
            level=level_of(level),
            place=place_base(base, base_folder),
            refetch=refetch,
            keep_record=keep_record,
            signers=_read_signers(signers),
            progress=progress,
        ).record

    def fit(
        self,
        bundle: StrPath,
        *,
        base: StrPath | None = None,
        base_folder: StrPath | None = None,
        data: StrPath | None = None,
        out: StrPath,
        name: str | None = None,
        scope: Scope | None = None,
        statistics: StrPath | None = None,
        form: PromptForm | None = None,
        abstain: float | None = DEFAULT_ABSTAIN,
        answers: Answers = "by-text",
        training: TrainingOptions | None = None,
        samples: int | None = None,
        progress: Progress = silent,
    ) -> GateFit:
        """Fit the gates of a bundle on texts of each member, and record the result as a new version.

        Args:
            bundle: its folder or its catalogued name.
            base: the base model's name on the Hub, or its folder; needed unless `base_folder` is given.
            base_folder: where the base's files are, apart from what it is called.
            data: a folder with a file ``MEMBER.jsonl`` for each member; those whose part is in `statistics`
                may be missing.
            out: the new folder.
            name: what the catalog calls the result; by default what it calls the bundle.
            scope: what one decision of the gates serves; by default `prompt`, and `token` for a training.
            statistics: a folder that keeps each member's part of what was computed, so that members can be
                added, removed and replaced without the data of the others. Needed without `data`.
            form: of the prompts; by default both plain and in the base's chat template, if it has one.
            abstain: the share of own prompts that a decision about requests may leave to the base, so that
                prompts that no member was made for are left to it; None to leave none.
            answers: for the scope `segment`, who decides for the numbered lines of an answer: their own text
                (``by-text``), or the item with that number of the prompt's list (``in-order``).
            training: how the gates are trained by gradient descent, as the paper does it; None for gates in
                closed form.
            samples: how many of a member are read at most, spread evenly over its file; by default 32, and
                all of them in a training.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            DataRefused: the data or the statistics cannot be used, a member has neither, or the loss of a
                training is not finite.
            UsageError: neither data nor statistics are named, or two choices exclude each other.
            BundleRefused: the bundle is damaged, or its modules are not those of the base.
        """
        require_torch("fitting gates")
        from .workflows.base_place import choose_base_to_run
        from .workflows.bundle_folder import find_bundle_folder
        from .workflows.gate_fit import FitRequest, fit_bundle, scope_of

        folder = find_bundle_folder(self, bundle)
        chosen = choose_base_to_run(self, folder, base, base_folder)
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
        called = name or _catalogued_name(bundle)
        return fit_bundle(self, folder, Path(out), request, name=called, progress=progress)

    def add_member(
        self,
        bundle: StrPath,
        adapter: str,
        *,
        data: StrPath,
        out: StrPath,
        statistics: StrPath | None = None,
        called: str | None = None,
        base: StrPath | None = None,
        base_folder: StrPath | None = None,
        name: str | None = None,
        progress: Progress = silent,
    ) -> ChangedBundle:
        """Add a catalogued adapter to a bundle as its last member, and record the result as a new version.

        The gates are those of a fit of all members together; the other members' data are not needed.

        Args:
            bundle: its folder or its catalogued name; its gates are fitted.
            adapter: a name such as ``legal``, ``legal@3`` or ``legal@champion``, or a repository on the Hub
                that it was added from.
            data: a file with texts of the new member, as ``fit`` reads them.
            out: the new folder.
            statistics: the folder that ``fit`` kept each member's part in; the new member's comes into it.
            called: what the bundle calls the member; by default what the catalog calls the adapter.
            base: the base model's name on the Hub, or its folder; by default the one it was fused for.
            base_folder: where the base's files are, apart from what it is called.
            name: what the catalog calls the result; by default what it calls the bundle.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            BundleRefused: the gates are not fitted, or a member has the name.
            FuseRefused: the adapter does not go with the members, such as one of another base.
            DataRefused: the data or the statistics cannot be used.
            NotInCatalog: the adapter is not catalogued.
        """
        require_torch("fitting gates")
        from ..fuser.recomposition import MemberChange
        from .workflows.member_change import change_bundle, open_new_member

        new, version = open_new_member(self, adapter, called)
        folder, given = self._prepare_change(bundle, base, base_folder, statistics, data)
        return change_bundle(
            self,
            folder,
            Path(out),
            MemberChange("add", new.name, new),
            given,
            version=version,
            name=name or _catalogued_name(bundle),
            progress=progress,
        )

    def remove_member(
        self,
        bundle: StrPath,
        member: str,
        *,
        out: StrPath,
        statistics: StrPath | None = None,
        base: StrPath | None = None,
        base_folder: StrPath | None = None,
        name: str | None = None,
        progress: Progress = silent,
    ) -> ChangedBundle:
        """Remove a member from a bundle, and record the result as a new version.

        The gates are those of a fit of the remaining members, whose data are not needed.

        Args:
            bundle: its folder or its catalogued name; its gates are fitted.
            member: what the bundle calls it.
            out: the new folder.
            statistics: the folder that ``fit`` kept each member's part in; it is not changed.
            base: the base model's name on the Hub, or its folder; by default the one it was fused for.
            base_folder: where the base's files are, apart from what it is called.
            name: what the catalog calls the result; by default what it calls the bundle.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            BundleRefused: the gates are not fitted, there is no such member, or it is the only one.
            DataRefused: the statistics cannot be used.
        """
        require_torch("fitting gates")
        from ..fuser.recomposition import MemberChange
        from .workflows.member_change import change_bundle

        folder, given = self._prepare_change(bundle, base, base_folder, statistics)
        return change_bundle(
            self,
            folder,
            Path(out),
            MemberChange("remove", member),
            given,
            name=name or _catalogued_name(bundle),
            progress=progress,
        )

    def replace_member(
        self,
        bundle: StrPath,
        member: str,
        *,
        out: StrPath,
        adapter: str | None = None,
        data: StrPath | None = None,
        statistics: StrPath | None = None,
        base: StrPath | None = None,
        base_folder: StrPath | None = None,
        name: str | None = None,
        progress: Progress = silent,
    ) -> ChangedBundle:
        """Replace a member of a bundle by another adapter, and record the result as a new version.

        The gates are kept bit for bit if the members touch the same modules as before and no data are given;
        then neither statistics nor the base are needed. If not, they are fitted as by ``add_member``.

        Args:
            bundle: its folder or its catalogued name; its gates are fitted.
            member: what the bundle calls it, with the version that comes: ``legal``, ``legal@3``.
            out: the new folder.
            adapter: the catalogued adapter that comes, if it is not the one of the member's name.
            data: a file with new texts of the member; by default those that it was fitted on still hold.
            statistics: the folder that ``fit`` kept each member's part in.
            base: the base model's name on the Hub, or its folder; by default the one it was fused for.
            base_folder: where the base's files are, apart from what it is called.
            name: what the catalog calls the result; by default what it calls the bundle.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            BundleRefused: the gates are not fitted, there is no such member, or it is that adapter already.
            FuseRefused: the adapter does not go with the members, such as one of another base.
            DataRefused: the data or the statistics cannot be used.
            NotInCatalog: the adapter is not catalogued.
        """
        require_torch("fitting gates")
        from ..fuser.recomposition import MemberChange
        from .workflows.member_change import change_bundle, open_new_member

        called = member.partition("@")[0]
        new, version = open_new_member(self, adapter or member, called)
        folder, given = self._prepare_change(bundle, base, base_folder, statistics, data)
        return change_bundle(
            self,
            folder,
            Path(out),
            MemberChange("replace", called, new),
            given,
            version=version,
            name=name or _catalogued_name(bundle),
            progress=progress,
        )

    def _prepare_change(
        self,
        bundle: StrPath,
        base: StrPath | None,
        base_folder: StrPath | None,
        statistics: StrPath | None,
        data: StrPath | None = None,
    ) -> tuple[Path, ChangeSources]:
        """Return a bundle's folder, and what a change of a member has beside it."""
        from .workflows.base_place import choose_base_to_run, place_base
        from .workflows.bundle_folder import find_bundle_folder
        from .workflows.member_change import ChangeSources

        folder = find_bundle_folder(self, bundle)
        return folder, ChangeSources(
            # Looked for only if gates are fitted, since the base may have to be downloaded.
            base=lambda: choose_base_to_run(self, folder, base, base_folder),
            place=place_base(base, base_folder),
            statistics=path_or_none(statistics),
            data=path_or_none(data),
        )

    def adopt_gates(
        self,
        saved: StrPath,
        *,
        out: StrPath,
        source: StrPath | None = None,
        name: str | None = None,
        base: StrPath | None = None,
        base_folder: StrPath | None = None,
        progress: Progress = silent,
    ) -> GateAdoption:
        """Make a routed model whose gates were trained, as PEFT saved it, a new version of its bundle.

        Args:
            saved: the folder that `save_pretrained` wrote; it is not changed.
            out: the new folder.
            source: the bundle that was trained, its folder or its catalogued name; by default the one that
                the model states.
            name: what the catalog calls the result; by default what it calls the bundle.
            base: the base model, used where the bundle states that the base renamed modules.
            base_folder: where the base's files are, apart from what it is called.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            BundleRefused: the model differs from its bundle in more than gates, or in nothing.
            NotInCatalog: the bundle is not catalogued, and `source` does not name its folder.
        """
        require_torch("adopting gates")
        from .workflows.base_place import place_base
        from .workflows.gate_adoption import adopt_gates

        return adopt_gates(
            self,
            Path(saved),
            Path(out),
            source=source,
            name=name or (None if source is None else _catalogued_name(source)),
            place=place_base(base, base_folder),
            progress=progress,
        )

    def evaluate(
        self,
        bundle: StrPath,
        *,
        base: StrPath | None = None,
        base_folder: StrPath | None = None,
        data: StrPath,
        options: EvaluationOptions | None = None,
        run: StrPath | None = None,
        processes: int = 1,
        out: StrPath | None = None,
        plots: StrPath | None = None,
        foreign: StrPath | None = None,
        progress: Progress = silent,
    ) -> Evaluation:
        """Score a bundle on its members' tasks: the base, each member alone, and routed.

        The catalog keeps the scores for every version with this bundle's manifest, and no answers.

        Args:
            bundle: its folder or its catalogued name.
            base: the base model's name on the Hub, or its folder; needed unless `base_folder` is given.
            base_folder: where the base's files are, apart from what it is called.
            data: a folder with a file ``MEMBER.jsonl`` for each member, and maybe ``tasks.toml``.
            options: modes, tasks, metrics, and how many items are asked.
            run: a file that keeps answers as they come; what it has is not asked again.
            processes: how many processes answer, each with the base loaded for itself and one thread. A
                script that asks for several needs ``if __name__ == "__main__":``.
            out: a file for the evaluation as JSON.
            plots: a folder for figures.
            foreign: a folder of prompts that no member was made for, to count what is left to the base.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            DataRefused: the data cannot be used.
            UsageError: the run is of another bundle or base, or was asked otherwise.
            MissingDependency: a library of a metric, of the intervals or of the figures is not installed.
        """
        require_torch("evaluating")
        from ..runtime.evaluation import EvaluationOptions
        from .workflows.base_place import choose_base_to_run
        from .workflows.bundle_folder import find_bundle_folder
        from .workflows.inference import evaluate

        folder = find_bundle_folder(self, bundle)
        return evaluate(
            self,
            folder,
            choose_base_to_run(self, folder, base, base_folder),
            Path(data),
            options or EvaluationOptions(),
            run=path_or_none(run),
            processes=processes,
            out=path_or_none(out),
            plots=path_or_none(plots),
            foreign=path_or_none(foreign),
            progress=progress,
        )

    def push(
        self,
        source: StrPath,
        repository: str,
        *,
        private: bool = False,
        as_pull_request: bool = False,
        tag: str | None = None,
        overwrite_card: bool = False,
        sign: SigningKey | None = None,
        examples: StrPath | None = None,
        dry_run: bool = False,
        progress: Progress = silent,
    ) -> Pushed:
        """Publish a bundle that is verified at level `source`, or a catalogued adapter, in one commit.

        Args:
            source: a bundle's folder, or a catalogued bundle or adapter.
            repository: ``org/name`` on the Hub.
            private: make a new repository private; a public one is refused.
            as_pull_request: open a pull request in place of a commit on the main branch.
            tag: the tag to set; by default made from the content's digest.
            overwrite_card: publish a bundle's card as it is here, even if it was edited here or on the Hub.
            sign: sign the bundle's manifest and record first; the signature stays in its folder.
            examples: a file for a bundle's card; a line is ``{"prompt": ..., "response": ...}``.
            dry_run: return what would be pushed and change nothing.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            BundleRefused: the bundle was not verified at level `source`, or was changed since.
            HubRefused, HubConflict, HubUnavailable, HubMismatch: the Hub did not take it.
        """
        from .workflows.publication import PushOptions, publish

        options = PushOptions(
            private, as_pull_request, dry_run, tag, overwrite_card, sign, path_or_none(examples)
        )
        return publish(self, source, repository, options, progress=progress)

    def pull(
        self,
        repository: str | HubSource,
        out: StrPath | None = None,
        *,
        name: str | None = None,
        max_bytes: int = MAX_BUNDLE_BYTES,
        signers: Signers | StrPath | None = None,
        progress: Progress = silent,
    ) -> Pulled:
        """Fetch a bundle from the Hub, verify it, and record it with its members.

        Args:
            repository: ``org/name`` or ``org/name@revision``.
            out: the new folder; by default named after the repository, in the current folder.
            name: what the catalog calls the bundle; by default made from the repository's name.
            max_bytes: a larger bundle is refused before its weights are downloaded.
            signers: one of them must have signed it; a signers file, by default that of METEORA_SIGNERS.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            HubRefused, HubUnavailable: it cannot be had.
            HubMismatch, BundleRefused, InvalidDocument: it differs from its manifest, fails to verify, or is
                not signed by an accepted signer.
        """
        require_torch("pulling")
        from .workflows.hub_bundles import pull

        source = parse_repository(repository) if isinstance(repository, str) else repository
        folder = Path(source.repository.partition("/")[2] if out is None else out)
        accepted = _read_signers(signers)
        return pull(self, source, folder, name=name, max_bytes=max_bytes, signers=accepted, progress=progress)

    def adopt(self, source: str | CatalogSource, *, name: str | None = None) -> Addition:
        """Record a member of a pulled bundle under a name of one's own; its origin stays a claim.

        Args:
            source: the member, ``bundle:member``.
            name: what it is called from now on; by default what the bundle calls it.

        Raises:
            NotInCatalog: there is no such member.
            UsageError: it is not the member of a bundle, or the name is malformed.
        """
        from .workflows.origins import adopt_member

        return adopt_member(self, _catalogued(source), name=name)

    def doctor(
        self,
        *,
        beside: Iterable[StrPath] = (),
        jobs: int = 1,
        progress: Progress = silent,
    ) -> Examination:
        """Find what a crash left in catalog, store and bundle folders; nothing is changed.

        Each problem with a ``mending`` can be repaired by ``problem.mending.act()``.

        Args:
            beside: further folders in which bundles may have been begun.
            jobs: how many files of the store are read at once.
            progress: called with a step's name, how much of it is done, and how much there is.
        """
        from .workflows.examination import examine

        return examine(self, beside=[Path(each) for each in beside], jobs=jobs, progress=progress)


def _read_signers(signers: Signers | StrPath | None) -> Signers | None:
    from ..bundle.signers import Signers

    return signers if signers is None or isinstance(signers, Signers) else Signers.read(signers)


def _catalogued(source: str | CatalogSource) -> CatalogSource:
    return parse_catalog_source(source) if isinstance(source, str) else source


def _catalogued_name(bundle: StrPath) -> str | None:
    parsed = parse_path_or_source(bundle)
    return parsed.name if isinstance(parsed, CatalogSource) else None


def _recipe_of(
    adapters: Iterable[str] | Recipe,
    base: StrPath | None,
    base_folder: StrPath | None,
    options: RecipeOptions,
) -> Recipe:
    from ..schemas.recipe import Recipe

    paths = {"base": base, "base_folder": base_folder}
    stated = {**options, **{key: None if path is None else os.fspath(path) for key, path in paths.items()}}
    if not isinstance(adapters, Recipe):
        if isinstance(adapters, str):
            raise UsageError(f"`{adapters}` is one adapter, expected a list of names")
        return Recipe.state(({"adapter": text} for text in adapters), stated)
    given = [key for key, value in stated.items() if value is not None]
    if given:
        raise UsageError(
            f"a recipe has its options in it, found also {', '.join(f'`{key}`' for key in given)}"
        )
    return adapters
