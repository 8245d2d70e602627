"""The verifier of bundles, at one of two levels, and its record.

``integrity`` looks at the bundle alone; ``source`` also computes what the members' own files give. A
verification that finds a problem fails; one that could not check everything at its level is inconclusive.
Memory holds one module; every file is read about twice, for digests and for tensors.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from .. import __version__
from ..bundle import Bundle
from ..bundle.documents import check_documents
from ..bundle.files import check_card
from ..bundle.member import QuotedMember
from ..files.progress import Progress, Step, silent
from ..kernels.reference import TOLERANCES
from ..schemas import bundle as names
from ..schemas.bundle import ModuleLayout
from ..schemas.errors import MeteoraError
from ..schemas.verification import (
    BackendNotRun,
    BackendRun,
    Level,
    ModuleError,
    Outcome,
    VerificationRecord,
)
from .arithmetic import (
    Backend,
    MemberFactors,
    ModuleErrors,
    check_with_triton,
    compare_module,
    smallest_module,
    stored_factors,
)
from .bundle_reader import BundleTensors, ModuleTensors, check_finite, check_tensors
from .extraction import can_be_rewritten, check_member_bytes
from .fuse_member import MemberFiles
from .source import SourceMember, check_factors, check_initial_gate, open_source_member
from .tensor_files import TORCH_DTYPES


def verify_bundle(
    folder: Path,
    *,
    level: Level,
    sources: Mapping[str, MemberFiles] | None = None,
    renamed: Mapping[str, str] | None = None,
    with_triton: bool = False,
    progress: Progress = silent,
) -> VerificationRecord:
    """Check a bundle and return the record; nothing is written.

    Args:
        folder: the bundle.
        level: which checks to make.
        sources: the members' own files by member name, for level source. A member that is not
            named, or whose files are not those of the manifest, is looked for in ``experts/``.
        renamed: what the base calls module paths of old adapters, from the base itself. Without
            it the renaming of a bundle's modules is not checked, and level source is inconclusive.
        with_triton: also run the Triton kernels: on a GPU, else one module in Triton's interpreter.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        SourceUnreadable: the manifest is missing or cannot be read.
    """
    run = _Run(Bundle(folder), level, renamed, with_triton)
    run.problems += check_documents(run.bundle)
    if not run.problems:
        run.notes += check_card(folder, run.bundle.manifest)
        run.check_modules(sources or {}, progress)
    return run.record()


def available_backends(dtype: torch.dtype) -> tuple[list[Backend], list[BackendNotRun]]:
    """Return the backends of this machine, in float32 and in the bundle's own element type."""
    dtypes = [torch.float32] if dtype == torch.float32 else [torch.float32, dtype]
    run = [Backend("cpu", torch.device("cpu"), dtype) for dtype in dtypes]
    if torch.cuda.is_available():
        run += [Backend("cuda", torch.device("cuda"), dtype) for dtype in dtypes]
        return run, []
    return run, [BackendNotRun(backend="cuda", reason="this machine has no CUDA device")]


@dataclass(slots=True)
class _Run:
    """One verification in progress and its findings so far."""

    bundle: Bundle
    level: Level
    renamed: Mapping[str, str] | None
    with_triton: bool
    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    backends_run: list[BackendRun] = field(default_factory=list)
    backends_not_run: list[BackendNotRun] = field(default_factory=list)
    modules: dict[str, ModuleError] = field(default_factory=dict)

    def check_modules(self, sources: Mapping[str, MemberFiles], progress: Progress) -> None:
        """Check padding, finite values and arithmetic of every module, on every backend."""
        bundle = self.bundle
        backends, self.backends_not_run = available_backends(TORCH_DTYPES[bundle.dtype])
        worst = dict.fromkeys(backends, 0.0)
        sample = smallest_module(bundle) if self.with_triton else None
        if not self.with_triton:
            self.backends_not_run.append(BackendNotRun(backend="triton", reason="it was not asked for"))
        if self.level is Level.SOURCE and bundle.is_fitted:
            self.notes.append("the gate's values have no witness but their digest")
        with ExitStack() as stack:
            tensors_of = stack.enter_context(BundleTensors(bundle))
            members = self._open_sources(stack, sources) if self.level is Level.SOURCE else None
            if members is None:
                self._check_member_bytes()
            if self.problems:
                return
            step = Step("verifying", len(bundle.config.module_paths), progress)
            for path, layout in bundle.config.layouts.items():
                tensors = tensors_of.read(path)
                self.problems += check_tensors(layout, tensors, bundle.config.names)
                if members is None:
                    factors = stored_factors(layout, tensors)
                else:
                    factors = [member.read(path) for member in members]
                    self.problems += check_factors(bundle.config, path, tensors, factors)
                # What an unfitted gate begins with follows from the bundle's own factors.
                self.problems += check_initial_gate(bundle.config, path, tensors.gate, factors)
                self._compare(bundle, layout, tensors, worst, factors)
                if path == sample:
                    self._run_triton(bundle, layout, tensors, factors)
                step.advance()
            for path in bundle.config.observed:
                self.problems += check_finite(path, tensors_of.read_request(path))
                step.advance()
            for member in members or ():
                self.problems += member.check_cast_error()
        self.backends_run[:0] = [_backend_run(b, error, len(self.modules)) for b, error in worst.items()]

    def _check_member_bytes(self) -> None:
        """Compare each member, written as its own file again, with its digest; name those that cannot be."""
        self.problems += check_member_bytes(self.bundle)
        self.notes += [
            f"the factors of member `{member.name}` were not compared with the digest of its own file, "
            "which cannot be written again"
            for member in self.bundle.members
            if not can_be_rewritten(member)
        ]

    def _run_triton(
        self,
        bundle: Bundle,
        layout: ModuleLayout,
        tensors: ModuleTensors,
        factors: Sequence[MemberFactors | None],
    ) -> None:
        outcome = check_with_triton(bundle.config, layout, tensors, factors)
        if isinstance(outcome, BackendNotRun):
            self.backends_not_run.append(outcome)
            return
        self.backends_run.append(outcome)
        if outcome.max_error is None or outcome.max_error > outcome.tolerance:
            self.problems.append(
                f"`{layout.path}` on triton ({outcome.device}): off by {outcome.max_error}, "
                f"tolerance {outcome.tolerance:g}"
            )

    def _open_sources(
        self, stack: ExitStack, sources: Mapping[str, MemberFiles]
    ) -> list[SourceMember] | None:
        """Open every member's own files; return None, and note the reason, if one cannot be found."""
        opened = [
            self._open_source(stack, member, sources.get(member.name)) for member in self.bundle.members
        ]
        for member in self.bundle.members:
            renamed = member.entry.renamed_modules
            if renamed and not self._is_known(renamed):
                self.unchecked.append(f"that the base renamed the modules of member `{member.name}`")
        found = [member for member in opened if member is not None]
        return found if len(found) == len(opened) else None

    def _open_source(
        self, stack: ExitStack, member: QuotedMember, files: MemberFiles | None
    ) -> SourceMember | None:
        folder = self.bundle.folder / names.EXPERTS_FOLDER / member.name
        experts = MemberFiles(
            folder / names.CONFIG_FILE, folder / names.WEIGHTS_FILE, came_from="the bundle itself"
        )
        reason = f"the own files of member `{member.name}` were not found"
        for candidate in (files, experts):
            if candidate is None or not (
                candidate.config_path.is_file() and candidate.weights_path.is_file()
            ):
                continue
            try:
                source = open_source_member(member, candidate.config_path, candidate.weights_path)
            except MeteoraError as error:
                if candidate.origin is not None:
                    self.problems.append(
                        f"member `{member.name}` is not what `{candidate.origin}` has: {error}"
                    )
                # Other files than those of the manifest prove nothing, for or against.
                reason = str(error)
                continue
            self.problems += source.check_quotation()
            if candidate.came_from is not None:
                # They agree with the bundle because they are parts of it.
                self.unchecked.append(
                    f"that member `{member.name}` is from its own files: those that are at hand came with "
                    f"{candidate.came_from}"
                )
            return stack.enter_context(source)
        self.unchecked.append(reason)
        return None

    def _is_known(self, renaming: Mapping[str, str]) -> bool:
        return self.renamed is not None and all(self.renamed.get(old) == new for old, new in renaming.items())

    def _compare(
        self,
        bundle: Bundle,
        layout: ModuleLayout,
        tensors: ModuleTensors,
        worst: dict[Backend, float],
        factors: Sequence[MemberFactors | None],
    ) -> None:
        routed, forced = 0.0, 0.0
        found = compare_module(bundle.config, layout, tensors, list(worst), factors)
        for backend, errors in zip(list(worst), found, strict=True):
            self.problems += _describe(layout.path, backend, errors)
            worst[backend] = max(worst[backend], errors.routed, errors.forced)
            routed, forced = max(routed, errors.routed), max(forced, errors.forced)
        self.modules[layout.path] = ModuleError(routed=_finite(routed), forced=_finite(forced))

    def record(self) -> VerificationRecord:
        outcome = Outcome.FAIL if self.problems else Outcome.INCONCLUSIVE if self.unchecked else Outcome.PASS
        return VerificationRecord(
            meteora_verification=1,
            manifest_sha256=self.bundle.manifest_sha256,
            level=self.level,
            outcome=outcome,
            problems=tuple(self.problems),
            unchecked=tuple(self.unchecked),
            notes=tuple(self.notes),
            backends_run=tuple(self.backends_run),
            backends_not_run=tuple(self.backends_not_run),
            modules=self.modules,
            versions=_versions(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _describe(path: str, backend: Backend, errors: ModuleErrors) -> Iterator[str]:
    tolerance = TOLERANCES[backend.dtype]
    where = f"`{path}` on {backend.name} in {_name_of(backend.dtype)}"
    if not errors.routed <= tolerance:
        yield f"{where}: the routed output is off by {errors.routed:.2g}, tolerance {tolerance:g}"
    if not errors.forced <= tolerance:
        yield (
            f"{where}: member `{errors.worst_member}` alone is off by {errors.forced:.2g}, "
            f"tolerance {tolerance:g}"
        )
    if errors.wrong_choices:
        yield f"{where}: {errors.wrong_choices} tokens were routed to members that are not the top ones"


def _backend_run(backend: Backend, max_error: float, modules: int) -> BackendRun:
    return BackendRun(
        backend=backend.name,
        device=_device_name(backend.device),
        compute_dtype=_name_of(backend.dtype),
        modules=modules,
        max_error=_finite(max_error),
        tolerance=TOLERANCES[backend.dtype],
    )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine()


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def _versions() -> dict[str, str]:
    versions = {
        "meteora-registry": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    with suppress(metadata.PackageNotFoundError):
        versions["triton"] = metadata.version("triton")
    return versions
