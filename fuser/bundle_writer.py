"""The writer of a bundle: carries out a plan, streamed module by module into an empty folder.

Memory is bounded by one module (its members' factors and the tensors made of them). The bytes are a
function of the members and the plan alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..bundle.member import modules_by_path
from ..files.digests import hash_file
from ..files.progress import Progress, Step, silent
from ..schemas import bundle as names
from ..schemas.bundle import (
    BundleConfig,
    BundleMember,
    Fitting,
    Gate,
    GateInitialisation,
    ModuleLayout,
    Override,
)
from ..schemas.errors import FuseRefused
from ..schemas.gate_choices import INITIAL_GATE_KINDS
from ..schemas.inventory import Dtype, ModuleFactors
from ..schemas.manifest import Cast, FileRecord, Manifest, ManifestMember
from ..schemas.names import below
from ..schemas.plan import FusePlan, PlannedMember
from .bundle_card import Storage, write_card
from .fuse_member import Member
from .gates import initial_gate
from .tensor_files import TORCH_DTYPES, TensorFile, WeightsWriter, relative_loss

WEIGHTS_METADATA = {"format": "pt", "meteora_format": str(names.BUNDLE_FORMAT)}
_GATE_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class GivenGate:
    """A linear gate that came from elsewhere: ``rows`` gives a module's float32 ``[L, in]``."""

    fitting: Fitting
    rows: Callable[[str], Tensor]


def write_bundle(
    plan: FusePlan,
    members: Sequence[Member],
    folder: Path,
    *,
    given_gate: GivenGate | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Write everything but the verification into an empty folder; return its manifest.

    Args:
        plan: made from these members in this order.
        members: the adapters.
        folder: an empty folder.
        given_gate: used in place of the plan's initialisation.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        FuseRefused: the plan has conflicts, or a cast overflows.
        SourceUnreadable: a member's file changed under way.
    """
    require_no_conflicts(plan)
    config = bundle_config(plan, given_gate)
    casts = [CastLoss() for _ in members]
    files = {names.WEIGHTS_FILE: _write_weights(plan, config, members, casts, folder, given_gate, progress)}
    (folder / names.CONFIG_FILE).write_bytes(config.to_bytes())
    for member in members if plan.with_experts else ():
        copy_expert(member, folder)
    records = [
        manifest_member(*entry, plan.dtype) for entry in zip(plan.members, members, casts, strict=True)
    ]
    storage = Storage(plan.dtype, plan.size_bytes, plan.padding_bytes)
    write_card(folder / names.CARD_FILE, config, storage, records, with_experts=plan.with_experts)
    return write_manifest(folder, files, records)


def write_manifest(
    folder: Path, known: Mapping[str, FileRecord], members: Sequence[ManifestMember]
) -> Manifest:
    """Write the manifest of the files in a folder; those that are ``known`` are not read again."""
    files = dict(known)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files:
            files[name] = FileRecord(sha256=hash_file(path), size_bytes=path.stat().st_size)
    manifest = Manifest(meteora_manifest=1, files=files, members=tuple(members))
    (folder / names.MANIFEST_FILE).write_bytes(manifest.to_bytes())
    return manifest


def require_no_conflicts(plan: FusePlan) -> None:
    """Check that the plan can be carried out.

    Raises:
        FuseRefused: with every conflict.
    """
    if plan.conflicts:
        count = len(plan.conflicts)
        raise FuseRefused(
            f"these adapters cannot be fused: {count} conflict{'s' if count > 1 else ''}",
            conflicts=[str(conflict) for conflict in plan.conflicts],
        )


def bundle_config(plan: FusePlan, given_gate: GivenGate | None = None) -> BundleConfig:
    """Return the config of the bundle that this plan describes."""
    return BundleConfig(
        peft_type="METEORA",
        meteora_format=1,
        required_features=(),
        task_type=plan.task_type,
        auto_mapping=plan.auto_mapping,
        base_model_name_or_path=plan.base,
        revision=plan.base_revision,
        inference_mode=True,
        target_modules=tuple(module.path for module in plan.modules),
        members=tuple(_bundle_member(plan, index, member) for index, member in enumerate(plan.members)),
        rank_alignment=8,
        top_k=plan.top_k,
        temperature=plan.temperature,
        gate=_gate(plan, given_gate),
    )


def _gate(plan: FusePlan, given: GivenGate | None) -> Gate:
    initialisation = None if given else GateInitialisation(method=plan.gate, seed=plan.seed)
    return Gate(
        kind="linear" if given else INITIAL_GATE_KINDS[plan.gate],
        scope="token",
        bias=False,
        eps=_GATE_EPS,
        sources={},
        initialisation=initialisation,
        fitted=given.fitting if given else "not fitted",
    )


def _bundle_member(plan: FusePlan, index: int, member: PlannedMember) -> BundleMember:
    overrides = {
        module.path: Override(rank=module.ranks[index], scaling=module.scalings[index])
        for module in plan.modules
        if (module.ranks[index], module.scalings[index]) != (member.rank, member.scaling)
    }
    return BundleMember(name=member.name, rank=member.rank, scaling=member.scaling, overrides=overrides)


def _write_weights(
    plan: FusePlan,
    config: BundleConfig,
    members: Sequence[Member],
    casts: Sequence[CastLoss],
    folder: Path,
    given_gate: GivenGate | None,
    progress: Progress,
) -> FileRecord:
    shapes = {module.path: (module.in_features, module.out_features) for module in plan.modules}
    specs = config.all_tensors(shapes, plan.dtype)
    own_modules = [
        modules_by_path(member.inventory, planned.renamed_modules)
        for planned, member in zip(plan.members, members, strict=True)
    ]
    step = Step("writing", len(plan.modules), progress)
    with ExitStack() as stack:
        sources = [stack.enter_context(TensorFile(m.weights_path, m.header)) for m in members]
        writer = WeightsWriter(folder / names.WEIGHTS_FILE, specs, metadata=WEIGHTS_METADATA)
        stack.enter_context(writer)
        for path, layout in config.layouts.items():
            factors = [
                read_factors(path, source, own.get(path), plan.dtype, loss)
                for source, own, loss in zip(sources, own_modules, casts, strict=True)
            ]
            A, Bt = pack(layout, factors)
            gate = (
                given_gate.rows(path)
                if given_gate
                else initial_gate(plan.gate, path, factors, seed=plan.seed)
            )
            for name, tensor in ((names.TENSOR_A, A), (names.TENSOR_B, Bt), (names.TENSOR_GATE, gate)):
                writer.write(names.tensor_name(path, name), tensor)
            step.advance()
    return FileRecord(sha256=writer.sha256, size_bytes=writer.size_bytes)


def read_factors(
    path: str, source: TensorFile, module: ModuleFactors | None, dtype: Dtype, loss: CastLoss
) -> tuple[Tensor, Tensor] | None:
    """Return a member's A ``[r, in]`` and B ``[out, r]`` of a module in the bundle's element type."""
    if module is None:
        return None
    return (
        loss.cast(source.read(module.a), dtype, path),
        loss.cast(source.read(module.b), dtype, path),
    )


def pack(layout: ModuleLayout, factors: Sequence[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor]:
    """Return one module's flat tensors: A ``[rows, in]`` and B transposed ``[rows, out]``, padding zero."""
    A, B = next(pair for pair in factors if pair is not None)
    flat_A = torch.zeros(layout.rows, A.shape[1], dtype=A.dtype)
    flat_Bt = torch.zeros(layout.rows, B.shape[0], dtype=B.dtype)
    for index, pair in enumerate(factors):
        if pair is not None:
            rows = layout.rows_of(index)
            flat_A[rows], flat_Bt[rows] = pair[0], pair[1].T
    return flat_A, flat_Bt


@dataclass(slots=True)
class CastLoss:
    """The loss of casting one member's factors, kept while they are written."""

    max_relative_error: float = 0.0

    def cast(self, tensor: Tensor, dtype: Dtype, path: str) -> Tensor:
        """Return a tensor of a module in another element type, and keep what that lost.

        Raises:
            FuseRefused: the type cannot hold its values.
        """
        result = tensor.to(TORCH_DTYPES[dtype])
        if result.dtype == tensor.dtype:
            return result
        loss = relative_loss(tensor, result)
        if not math.isfinite(loss):
            raise FuseRefused(
                f"`{path}` has values up to {tensor.abs().max().item():.3g}, which {dtype} cannot hold",
                hint="choose `--dtype float32` or `--dtype bfloat16`",
            )
        self.max_relative_error = max(self.max_relative_error, loss)
        return result


def manifest_member(planned: PlannedMember, member: Member, loss: CastLoss, dtype: Dtype) -> ManifestMember:
    """Return the entry of a member that was written, for the manifest."""
    cast = Cast(source=planned.cast_from, target=dtype, max_relative_error=loss.max_relative_error)
    return ManifestMember(
        name=member.name,
        origin=member.origin,
        license=member.license,
        base=member.spelled_base,
        weights_sha256=member.weights_sha256,
        weights_bytes=member.header.file_bytes,
        config_sha256=member.config_sha256,
        config_text=member.config_text,
        weights_header=member.header.text,
        renamed_modules=planned.renamed_modules,
        cast=cast if planned.cast_from else None,
        trusts_tensors=planned.trusts_tensors,
    )


def copy_expert(member: Member, folder: Path) -> None:
    """Copy a member's own two files into a bundle."""
    expert = below(folder / names.EXPERTS_FOLDER, member.name)
    expert.mkdir(parents=True)
    shutil.copyfile(member.config_path, expert / names.CONFIG_FILE)
    shutil.copyfile(member.weights_path, expert / names.WEIGHTS_FILE)
