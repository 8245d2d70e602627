"""Export to and import from the layout of the MeteoRA authors' own code.

In that layout every module holds ``lora_A.weight [L*R, in]``, ``lora_B.weight [out, L*R]`` and
``moe_gate.weight [L, in]``, all members padded to one rank R, and each member's scaling is the
alpha / r of a PEFT folder of its own. The layout has no names, ranks, alphas, top_k, temperature or
base; the export writes them beside it, the import takes them as arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..bundle import Bundle
from ..bundle.files import staged_target
from ..inspection.header import Header, TensorEntry, read_header
from ..schemas import bundle as names
from ..schemas.bundle import ModuleLayout, TensorSpec
from ..schemas.document import canonical_json
from ..schemas.errors import BundleRefused, UsageError
from ..schemas.inventory import Dtype
from ..schemas.names import below, check_name
from .bundle_reader import BundleTensors, ModuleTensors
from .official_checkpoint import CHECKPOINT_FILE, BaseWeights, write_checkpoint
from .official_limits import limits_of
from .tensor_files import TORCH_DTYPES, TensorFile, WeightsWriter

MOE_FILE = "moe_lora.safetensors"
FACTS_FILE = "export.json"
ADAPTERS_FOLDER = "adapters"
_A, _B, _GATE = "lora_A.weight", "lora_B.weight", "moe_gate.weight"
_METADATA = {"format": "pt"}
_DEFAULT_TASK = "CAUSAL_LM"


@dataclass(frozen=True, slots=True)
class OfficialExport:
    """A finished export, with what the layout could not carry and what the authors' code does not take."""

    folder: Path
    rank: int
    losses: tuple[str, ...]
    limits: tuple[str, ...]


def export_official(bundle: Bundle, target: Path, *, base: Path | None = None) -> OfficialExport:
    """Write a bundle in the authors' layout into a new folder.

    With the folder of the ``base`` the full checkpoint that their evaluation loads is written, too.

    Raises:
        BundleRefused: it is not a bundle that this reader knows, or the base lacks a module of it.
        UsageError: the target exists and is not empty.
        SourceUnreadable: the base has no weights that can be read.
    """
    rank = max(max(layout.ranks) for layout in bundle.config.layouts.values())
    _check_sources(bundle)
    losses = tuple(_losses(bundle))
    limits = tuple(limits_of(bundle, rank, has_checkpoint=base is not None))
    weights = None if base is None else BaseWeights(base)
    with staged_target(target) as folder, BundleTensors(bundle) as tensors:
        _write_moe(bundle, tensors, rank, folder / MOE_FILE)
        for index in range(len(bundle.config.members)):
            _write_adapter(bundle, tensors, rank, index, folder)
        (folder / FACTS_FILE).write_bytes(canonical_json(_facts(bundle, rank, losses, limits)))
        if weights is not None:
            write_checkpoint(bundle, weights, folder / MOE_FILE, folder / CHECKPOINT_FILE)
    return OfficialExport(target, rank, losses, limits)


def _check_sources(bundle: Bundle) -> None:
    """Refuse a module that takes the routing of one with another input: their gates read their own.

    Raises:
        BundleRefused: naming both.
    """
    shapes = bundle.shapes
    for path, source in bundle.config.gate.sources.items():
        if shapes[path][0] != shapes[source][0]:
            raise BundleRefused(
                f"`{path}` takes its routing from `{source}`, which has another input: "
                "their layout has no place for that"
            )


def _losses(bundle: Bundle) -> list[str]:
    config, losses = bundle.config, []
    if config.gate.kind != "linear" or config.gate.bias:
        losses.append(
            f"the gate is `{config.gate.kind}`{' with a bias' if config.gate.bias else ''}, "
            "their code scores linearly without one: it will route differently"
        )
    if config.gate.scope != "token":
        losses.append(
            f"one decision of the gate serves a `{config.gate.scope}`, their code decides for every token: "
            "it will route differently"
        )
    for member in config.members:
        scalings = {o.scaling for o in member.overrides.values() if o.rank} - {member.scaling}
        if scalings:
            losses.append(
                f"`{member.name}` has scalings that differ by module: they were multiplied into its B"
            )
    return losses


def _facts(bundle: Bundle, rank: int, losses: Sequence[str], limits: Sequence[str]) -> dict[str, object]:
    config = bundle.config
    return {
        "base": config.base_model_name_or_path,
        "top_k": config.top_k,
        "temperature": config.temperature,
        "padded_rank": rank,
        "gate": config.gate.model_dump(mode="json")["fitted"],
        # What ``import`` asks for: a rank that no module's factors go beyond, and the alpha to it.
        "members": [
            {
                "name": member.name,
                "rank": (largest := _largest_rank(bundle, index)),
                "alpha": member.scaling * largest,
            }
            for index, member in enumerate(config.members)
        ],
        "losses": list(losses),
        "limits": list(limits),
    }


def _largest_rank(bundle: Bundle, index: int) -> int:
    return max(layout.ranks[index] for layout in bundle.config.layouts.values())


def _write_moe(bundle: Bundle, tensors: BundleTensors, rank: int, path: Path) -> None:
    members, specs = len(bundle.config.members), []
    for module, (in_features, out_features) in bundle.shapes.items():
        prefix = f"{names.TENSOR_PREFIX}{module}"
        specs += [
            TensorSpec(f"{prefix}.{_A}", bundle.dtype, (members * rank, in_features)),
            TensorSpec(f"{prefix}.{_B}", bundle.dtype, (out_features, members * rank)),
            TensorSpec(f"{prefix}.{_GATE}", Dtype.F32, (members, in_features)),
        ]
    with WeightsWriter(path, specs, metadata=_METADATA) as writer:
        for module, layout in bundle.config.layouts.items():
            stored = tensors.read(module)
            pairs = [_padded_factors(bundle, layout, stored, index, rank) for index in range(members)]
            prefix = f"{names.TENSOR_PREFIX}{module}"
            writer.write(f"{prefix}.{_A}", torch.cat([A for A, _ in pairs]))
            writer.write(f"{prefix}.{_B}", torch.cat([B for _, B in pairs], dim=1))
            writer.write(f"{prefix}.{_GATE}", stored.gate)


def _write_adapter(bundle: Bundle, tensors: BundleTensors, rank: int, index: int, folder: Path) -> None:
    member = bundle.config.members[index]
    adapter = below(folder / ADAPTERS_FOLDER, member.name)
    adapter.mkdir(parents=True)
    config = lora_config(
        rank,
        member.scaling * rank,
        bundle.config.target_modules,
        bundle.config.base_model_name_or_path,
        # Their loader looks the task up in a table that has no entry for none.
        bundle.config.task_type or _DEFAULT_TASK,
    )
    (adapter / names.CONFIG_FILE).write_bytes(config)
    specs = [
        spec
        for module, shape in bundle.shapes.items()
        for spec in _factor_specs(module, bundle.dtype, rank, *shape)
    ]
    with WeightsWriter(adapter / names.WEIGHTS_FILE, specs, metadata=_METADATA) as writer:
        for module, layout in bundle.config.layouts.items():
            A, B = _padded_factors(bundle, layout, tensors.read(module), index, rank)
            writer.write(f"{names.TENSOR_PREFIX}{module}.{_A}", A)
            writer.write(f"{names.TENSOR_PREFIX}{module}.{_B}", B)


def _factor_specs(
    module: str, dtype: Dtype, rank: int, in_features: int, out_features: int
) -> list[TensorSpec]:
    prefix = f"{names.TENSOR_PREFIX}{module}"
    return [
        TensorSpec(f"{prefix}.{_A}", dtype, (rank, in_features)),
        TensorSpec(f"{prefix}.{_B}", dtype, (out_features, rank)),
    ]


def _padded_factors(
    bundle: Bundle, layout: ModuleLayout, stored: ModuleTensors, index: int, rank: int
) -> tuple[Tensor, Tensor]:
    """Return one member's A ``[R, in]`` and B ``[out, R]``, zero beyond its rank."""
    member, rows = bundle.config.members[index], layout.rows_of(index)
    A = torch.zeros(rank, stored.A.shape[1], dtype=stored.A.dtype)
    B = torch.zeros(stored.Bt.shape[1], rank, dtype=stored.Bt.dtype)
    A[: layout.ranks[index]], B[:, : layout.ranks[index]] = stored.A[rows], stored.Bt[rows].T
    # The layout has one alpha per member, so a module's own scaling is multiplied into its B.
    if layout.scalings[index] == member.scaling:
        return A, B
    scaled = B * (layout.scalings[index] / member.scaling)
    if not torch.isfinite(scaled).all():
        raise BundleRefused(
            f"`{member.name}` has the scaling {layout.scalings[index]:g} in `{layout.path}` and "
            f"{member.scaling:g} elsewhere: their layout keeps one, "
            f"and {bundle.dtype} cannot hold the quotient"
        )
    return A, scaled


def lora_config(
    rank: int, alpha: float, targets: Sequence[str], base: str | None, task_type: str | None
) -> bytes:
    """Return the ``adapter_config.json`` of a plain LoRA adapter."""
    return canonical_json(
        {
            "base_model_name_or_path": base,
            "bias": "none",
            "inference_mode": True,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": rank,
            "target_modules": list(targets),
            "task_type": task_type,
        }
    )


@dataclass(frozen=True, slots=True)
class ImportedMember:
    """A member's facts that the layout lacks: its name, its rank before padding, its alpha."""

    name: str
    rank: int
    alpha: float


class OfficialWeights:
    """A file in the authors' layout, read module by module.

    Raises:
        UsageError: two members have one name, or a name is malformed.
        BundleRefused: the file is not in that layout for this many members of these ranks.
    """

    def __init__(self, path: Path, members: Sequence[ImportedMember]) -> None:
        for member in members:
            check_name(member.name, what="member name")
        if len({member.name for member in members}) < len(members):
            raise UsageError(
                f"member names must differ, found {', '.join(f'`{member.name}`' for member in members)}",
                hint="give each member a name of its own",
            )
        self.members = tuple(members)
        self._path, self._header = path, read_header(path)
        self._modules = _official_modules(self._header)
        self.padded_rank = self._padded_rank()

    def write_adapters(self, folder: Path, *, base: str | None) -> list[Path]:
        """Write each member as a plain PEFT adapter of its own rank into ``folder/<name>``."""
        with TensorFile(self._path, self._header) as file:
            return [self._write_adapter(file, index, folder, base) for index in range(len(self.members))]

    def gate(self, module: str) -> Tensor:
        """Return a module's gate, float32 ``[L, in]``."""
        with TensorFile(self._path, self._header) as file:
            return file.read(f"{self._modules[module]}.{_GATE}").to(torch.float32)

    def _padded_rank(self) -> int:
        shapes = {entry.name: entry.shape for entry in self._header.tensors}
        rows = {shapes[f"{prefix}.{_A}"][0] for prefix in self._modules.values()}
        gates = {shapes[f"{prefix}.{_GATE}"][0] for prefix in self._modules.values()}
        count = len(self.members)
        if gates != {count}:
            raise BundleRefused(
                f"the gates have {sorted(gates)} rows, {count} members are named",
                hint="name every member once, in their order",
            )
        if len(rows) != 1 or (total := rows.pop()) % count:
            raise BundleRefused(f"lora_A has rows that {count} members of one rank cannot share")
        rank = total // count
        for member in self.members:
            if not 1 <= member.rank <= rank:
                raise BundleRefused(f"`{member.name}` has rank {member.rank}, expected 1 to {rank}")
        return rank

    def _write_adapter(self, file: TensorFile, index: int, folder: Path, base: str | None) -> Path:
        member, specs = self.members[index], []
        # Twice through the modules rather than all of a member's factors in memory.
        for module, prefix in self._modules.items():
            A, B = self._unpad(file, prefix, index)
            if bool(A.any()) or bool(B.any()):
                specs.append(
                    (module, _factor_specs(module, _dtype_of(A), member.rank, A.shape[1], B.shape[0]))
                )
        if not specs:
            raise BundleRefused(f"every factor of `{member.name}` is zero: there is nothing to import")
        adapter = below(folder, member.name)
        adapter.mkdir(parents=True)
        config = lora_config(member.rank, member.alpha, [module for module, _ in specs], base, None)
        (adapter / names.CONFIG_FILE).write_bytes(config)
        every_spec = [spec for _, pair in specs for spec in pair]
        with WeightsWriter(adapter / names.WEIGHTS_FILE, every_spec, metadata=_METADATA) as writer:
            for module, pair in specs:
                for spec, factor in zip(pair, self._unpad(file, self._modules[module], index), strict=True):
                    writer.write(spec.name, factor)
        return adapter

    def _unpad(self, file: TensorFile, prefix: str, index: int) -> tuple[Tensor, Tensor]:
        member, start = self.members[index], index * self.padded_rank
        A = file.read(f"{prefix}.{_A}")[start : start + self.padded_rank]
        B = file.read(f"{prefix}.{_B}")[:, start : start + self.padded_rank]
        if bool(A[member.rank :].any()) or bool(B[:, member.rank :].any()):
            raise BundleRefused(
                f"`{prefix}`: `{member.name}` has values beyond rank {member.rank}",
                hint=f"its rank is larger, at most {self.padded_rank}",
            )
        return A[: member.rank].contiguous(), B[:, : member.rank].contiguous()


def _official_modules(header: Header) -> dict[str, str]:
    """Return the tensor prefix of every module path."""
    found: dict[str, set[str]] = {}
    for entry in header.tensors:
        for tensor in (_A, _B, _GATE):
            if entry.name.endswith(f".{tensor}"):
                found.setdefault(entry.name.removesuffix(f".{tensor}"), set()).add(tensor)
    complete = {prefix for prefix, tensors in found.items() if tensors == {_A, _B, _GATE}}
    if not complete or len(complete) != len(found):
        partial = sorted(set(found) - complete)
        example = f", the first incomplete one `{partial[0]}`" if partial else ""
        raise BundleRefused(f"found no modules with {_A}, {_B} and {_GATE} throughout{example}")
    for prefix in complete:
        _check_shapes(prefix, *(header[f"{prefix}.{tensor}"] for tensor in (_A, _B, _GATE)))
    return {prefix.removeprefix(names.TENSOR_PREFIX): prefix for prefix in sorted(complete)}


def _check_shapes(prefix: str, A: TensorEntry, B: TensorEntry, gate: TensorEntry) -> None:
    for entry in (A, B, gate):
        if entry.dtype not in set(TORCH_DTYPES) or len(entry.shape) != 2 or 0 in entry.shape:
            raise BundleRefused(
                f"`{entry.name}` is {entry.shape} of {entry.dtype}, expected a matrix of floats"
            )
    if A.dtype != B.dtype or A.shape[0] != B.shape[1] or A.shape[1] != gate.shape[1]:
        raise BundleRefused(
            f"the tensors of `{prefix}` do not fit together: A {A.shape} of {A.dtype}, "
            f"B {B.shape} of {B.dtype}, gate {gate.shape}, "
            "expected A (L*R, in), B (out, L*R) and gate (L, in)"
        )


def _dtype_of(tensor: Tensor) -> Dtype:
    return next(dtype for dtype, torch_dtype in TORCH_DTYPES.items() if torch_dtype == tensor.dtype)
