"""Adapters in folders become a bundle without a catalog: one call to fuse, a handle to fit and save.

The handle owns a temporary folder until it is saved, so that a bundle can be tried out and thrown away.
What is written is the same as with a catalog, byte for byte, and verified in the same way.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from ..bundle import Bundle
from ..bundle.files import staged_target
from ..files.progress import Progress, silent
from ..files.scratch import Purpose, temporary_folder
from ..schemas.bundle import CONFIG_FILE, WEIGHTS_FILE, Scope
from ..schemas.errors import AdapterRefused, UsageError
from ..schemas.names import HubSource, parse_source, suggest_name
from ..schemas.recipe import Recipe, RecipeOptions
from ..schemas.verification import Level, VerificationRecord
from .dependencies import require_torch

if TYPE_CHECKING:
    from types import TracebackType

    from ..fuser.member import Member, MemberFiles

StrPath = str | os.PathLike[str]


class FusedBundle:
    """A verified bundle that no catalog knows.

    It is in a temporary folder until ``save``; the folder is deleted with the handle, or at the end of a
    ``with`` block. The handle is a path, so that ``load``, ``Registry`` and PEFT take it like a folder.

    Attributes:
        bundle: the opened bundle: its config, manifest and members.
        record: the verification at level `source` that it passed when it was written.
    """

    def __init__(
        self,
        bundle: Bundle,
        record: VerificationRecord,
        *,
        base: str | None,
        sources: Mapping[str, MemberFiles],
        renamed: Mapping[str, str],
        scratch: ExitStack,
    ) -> None:
        self.bundle = bundle
        self.record = record
        self._base = base
        self._sources = dict(sources)
        self._renamed = dict(renamed)
        # Also runs when the handle is collected, and when the interpreter ends.
        self._discard = weakref.finalize(self, scratch.close)

    @property
    def folder(self) -> Path:
        """Where the bundle is: a temporary folder, or where it was saved."""
        return self.bundle.folder

    def fit(
        self,
        data: StrPath,
        *,
        base: StrPath | None = None,
        scope: Scope = "prompt",
        statistics: StrPath | None = None,
        progress: Progress = silent,
    ) -> FusedBundle:
        """Fit the gates on texts of each member, and return the verified result as a bundle of its own.

        Args:
            data: a folder with a file ``MEMBER.jsonl`` for each member.
            base: the base model's folder, or its name on the Hub; by default the one it was fused for.
            scope: what one decision of the gates serves.
            statistics: a file that keeps what was computed; members in it need no data again.
            progress: called with a step's name, how much of it is done, and how much there is.

        Raises:
            DataRefused: the data cannot be used.
            BundleRefused: the bundle's modules are not those of the base.
            SourceUnreadable: a file cannot be read.
        """
        require_torch("fitting gates")
        from .workflows.gate_fit import FitRequest, write_fitted

        chosen = self._base if base is None else os.fspath(base)
        if chosen is None:
            raise UsageError("the bundle names no base model to fit on", hint="name one with `base=...`")
        request = FitRequest(
            chosen, Path(data), scope=scope, statistics=None if statistics is None else Path(statistics)
        )
        # A member whose files are gone is extracted from the bundle.
        sources = {name: files for name, files in self._sources.items() if files.weights_path.is_file()}
        with ExitStack() as scratch:
            folder = scratch.enter_context(temporary_folder(Purpose.FUSE)) / "bundle"
            written = write_fitted(self.bundle, folder, request, sources=sources, progress=progress)
            return FusedBundle(
                Bundle.open(folder),
                written.record,
                base=chosen,
                sources=self._sources,
                renamed=self._renamed,
                scratch=scratch.pop_all(),
            )

    def verify(self, *, level: Level | str = Level.SOURCE, progress: Progress = silent) -> VerificationRecord:
        """Verify the bundle again, by default against the members' own files.

        Raises:
            SourceUnreadable: its manifest is missing or cannot be read.
        """
        require_torch("verifying")
        from ..fuser.verify import verify_bundle

        return verify_bundle(
            self.folder,
            level=level_of(level),
            sources=self._sources,
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
        self.close()
        return target

    def close(self) -> None:
        """Delete the temporary folder, if there is one; a saved bundle stays."""
        self._discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"FusedBundle({str(self.folder)!r}, members={list(self.bundle.config.names)!r})"


def fuse(
    members: Iterable[StrPath] | Mapping[str, StrPath],
    *,
    base: StrPath | None = None,
    progress: Progress = silent,
    **options: Unpack[RecipeOptions],
) -> FusedBundle:
    """Fuse adapters in folders into one verified bundle, without a catalog.

    Args:
        members: the adapters' folders; the bundle calls each member after its folder, or as a mapping says.
        base: the base model's folder or its name on the Hub, where the members disagree or name none. In a
            folder, every module is looked up.
        progress: called with a step's name, how much of it is done, and how much there is.
        options: the fields of a ``Recipe``: base_revision, top_k, temperature, dtype, gate, seed,
            with_experts.

    Raises:
        AdapterRefused: an adapter is broken, or has no LoRA factors.
        FuseRefused: the adapters cannot become one bundle; ``conflicts`` lists the reasons.
        UsageError: an option is out of range, two members have one name, or a member is on the Hub.
        SourceUnreadable: a file cannot be read.
    """
    require_torch("fusing")
    from ..fuser.write import require_no_conflicts
    from .workflows.fuse import write_fused
    from .workflows.prepare import plan_members

    named = _named(members)
    chosen = None if base is None else os.fspath(base)
    recipe = Recipe.state(
        ({"adapter": str(folder), "name": name} for name, folder in named), {**options, "base": chosen}
    )
    prepared = plan_members([_open_member(name, folder) for name, folder in named], recipe)
    require_no_conflicts(prepared.plan)
    with ExitStack() as scratch:
        folder = scratch.enter_context(temporary_folder(Purpose.FUSE)) / "bundle"
        record = write_fused(prepared, folder, progress=progress)
        return FusedBundle(
            Bundle.open(folder),
            record,
            base=chosen or prepared.plan.base,
            sources=prepared.sources,
            renamed=prepared.renamed,
            scratch=scratch.pop_all(),
        )


def level_of(level: Level | str) -> Level:
    """Return the level of a verification by its name.

    Raises:
        UsageError: there is no such level.
    """
    try:
        return Level(level)
    except ValueError:
        known = ", ".join(f"`{each}`" for each in Level)
        raise UsageError(f"the level is `{level}`, expected one of {known}") from None


def _named(members: Iterable[StrPath] | Mapping[str, StrPath]) -> list[tuple[str, Path]]:
    """Return each member's name in the bundle, and its folder."""
    from ..files.reading import real_path

    if isinstance(members, str | os.PathLike):
        raise UsageError(f"`{members}` is one adapter, expected a list of them")
    if isinstance(members, Mapping):
        return [(name, _folder_of(folder)) for name, folder in members.items()]
    folders = [_folder_of(each) for each in members]
    return [(suggest_name(real_path(folder).name), folder) for folder in folders]


def _folder_of(source: StrPath) -> Path:
    if isinstance(source, str) and isinstance(parse_source(source), HubSource):
        raise UsageError(
            f"`{source}` is a repository on the Hub, expected a folder",
            hint="fuse adapters of the Hub with a `Registry`, which downloads them with `add`",
        )
    return Path(source)


def _open_member(name: str, folder: Path) -> Member:
    from ..fuser.member import Member
    from ..inspection.adapter import inspect_adapter
    from .workflows.add import folder_origin

    inspection = inspect_adapter(folder)
    if not inspection.verdict.sound:
        raise AdapterRefused(f"`{folder}` is broken and cannot be fused", findings=inspection.findings)
    return Member.of(
        inspection,
        name=name,
        adapter=str(folder),
        config_path=folder / CONFIG_FILE,
        weights_path=folder / WEIGHTS_FILE,
        origin=folder_origin(folder),
        license=inspection.license,
        base=inspection.declared_base,
        spelled_base=inspection.declared_base,
    )
