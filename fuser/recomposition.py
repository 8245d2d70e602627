"""A bundle with other members: those that are kept bit for bit and in their order, beside one that changes.

A kept member is read from the old bundle, with its entry in the manifest as it is there, so that neither its
files nor its data are needed. The bytes are a function of the old bundle, the new member and the gates alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..bundle import Bundle
from ..files.digests import Hasher
from ..files.progress import Progress, silent
from ..schemas import bundle as names
from ..schemas.bundle import BundleConfig, Change, ChangedFrom
from ..schemas.digest import Digest
from ..schemas.errors import BundleRefused
from ..schemas.manifest import FileRecord, Manifest, ManifestMember
from ..schemas.names import below
from ..schemas.plan import FusePlan, PlannedMember
from ..schemas.recipe import Recipe
from .bundle_card import write_card
from .bundle_reader import BundleTensors
from .bundle_writer import (
    CastLoss,
    bundle_config,
    copy_expert,
    manifest_member,
    pack,
    read_factors,
    require_no_conflicts,
    write_manifest,
)
from .fuse_member import Member
from .planning import DTYPES
from .refit import NewGates, check_values, refitted_config, require_undamaged, storage_of, write_weights
from .tensor_files import TensorFile, bytes_of


@dataclass(frozen=True, slots=True)
class MemberChange:
    """A change of one member of a bundle.

    Attributes:
        change: what is done.
        member: what the bundle calls the member.
        new: the adapter that comes; None if the member is removed.
    """

    change: Change
    member: str
    new: Member | None = None

    def apply(self, bundle: Bundle) -> tuple[Member, ...]:
        """Return the members of a bundle after the change, in order; one that is added is the last.

        Raises:
            BundleRefused: the bundle has a member of that name already, has none, or would have none left.
            MeteoraError: a member's quotation in the manifest cannot be read.
        """
        present = bundle.config.names
        if self.change == "add" and self.member in present:
            raise BundleRefused(
                f"the bundle has a member `{self.member}` already",
                hint="replace it with `bundle replace`, or call the new one something else with `--member`",
            )
        if self.change != "add":
            bundle.config.index_of(self.member)
        if self.change == "remove" and len(present) == 1:
            raise BundleRefused(
                f"`{self.member}` is the only member of the bundle, expected one to remain",
                hint="replace it with `bundle replace`",
            )
        kept = [Member.quoted(each) for each in bundle.members]
        if self.change == "add":
            return (*kept, *filter(None, [self.new]))
        changed = [self.new if each.name == self.member else each for each in kept]
        return tuple(filter(None, changed))


@dataclass(frozen=True, slots=True)
class Recomposition:
    """A bundle with other members, planned and not yet written.

    Attributes:
        bundle: the old one.
        change: what becomes other.
        members: all of the new bundle, in order.
        plan: made from them in this order.
    """

    bundle: Bundle
    change: MemberChange
    members: tuple[Member, ...]
    plan: FusePlan

    @property
    def config(self) -> BundleConfig:
        """The new bundle's config, before its gates are known."""
        return bundle_config(self.plan)

    @property
    def kept(self) -> dict[str, int]:
        """The place in the old bundle of each member that is kept, by name."""
        places = {name: place for place, name in enumerate(self.bundle.config.names)}
        return {each.name: places[each.name] for each in self.members if each.name != self.change.member}

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``(in_features, out_features)`` of every module of the new bundle."""
        return {module.path: (module.in_features, module.out_features) for module in self.plan.modules}

    @property
    def has_same_modules(self) -> bool:
        """Whether the members touch the same modules as before, so that the old gates can serve them."""
        return tuple(self.shapes) == self.bundle.config.target_modules

    def config_with(self, gates: NewGates) -> BundleConfig:
        """Return the new bundle's config with its gates, and with the bundle that it was made from.

        Raises:
            InvalidDocument: they do not go with the members.
        """
        made_from = ChangedFrom(
            manifest_sha256=self.bundle.manifest_sha256,
            change=self.change.change,
            member=self.change.member,
        )
        return refitted_config(self.config, gates).model_copy(update={"changed_from": made_from})


def recipe_of(bundle: Bundle, members: Sequence[Member]) -> Recipe:
    """Return the recipe that fuses these members with the settings of a bundle; ``top_k`` is at most all."""
    config, dtypes = bundle.config, {dtype: name for name, dtype in DTYPES.items()}
    return Recipe.state(
        [{"adapter": each.adapter, "name": each.name} for each in members],
        {
            "base": config.base_model_name_or_path,
            "base_revision": config.revision,
            "top_k": min(config.top_k, len(members)),
            "temperature": config.temperature,
            "dtype": dtypes[bundle.dtype],
            "with_experts": any(
                name.startswith(f"{names.EXPERTS_FOLDER}/") for name in bundle.manifest.files
            ),
        },
    )


def kept_gates(bundle: Bundle) -> NewGates:
    """Return the gates of a bundle as those of another with the same modules."""
    config = bundle.config
    values: dict[str, tuple[Tensor, Tensor]] = {}
    request: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    with BundleTensors(bundle) as tensors:
        for path in config.module_paths:
            if config.has_gate(path):
                own = tensors.read(path)
                values[path] = (own.gate, own.gate[:, 0] if own.bias is None else own.bias)
            if config.request_classes(path):
                rows, bias, gram = tensors.read_request(path).values()
                request[path] = (rows, bias, gram)
    return NewGates(config.gate, config.top_k, config.temperature, values, request)


def write_recomposed(
    recomposition: Recomposition, gates: NewGates, folder: Path, *, progress: Progress = silent
) -> Manifest:
    """Write the new bundle into an empty folder, everything but the verification.

    Args:
        recomposition: the bundle and its change.
        gates: for the new members; ``top_k`` and ``temperature`` are the plan's.
        folder: an empty folder.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        FuseRefused: the plan has conflicts, or a cast overflows.
        BundleRefused: a file of the old bundle differs from its manifest, or a module gets no gate.
        SourceUnreadable: a file cannot be read.
    """
    bundle, plan = recomposition.bundle, recomposition.plan
    require_no_conflicts(plan)
    require_undamaged(bundle)
    gates = replace(gates, top_k=plan.top_k, temperature=plan.temperature)
    config = recomposition.config_with(gates)
    check_values(config, gates)
    loss = CastLoss()
    with ExitStack() as stack:
        files = {
            names.WEIGHTS_FILE: write_weights(
                folder / names.WEIGHTS_FILE,
                config,
                recomposition.shapes,
                plan.dtype,
                _factors(stack, recomposition, config, loss),
                gates,
                progress,
            )
        }
    (folder / names.CONFIG_FILE).write_bytes(config.to_bytes())
    files |= _copy_experts(recomposition, folder) if plan.with_experts else {}
    records = _records(recomposition, loss)
    storage = storage_of(config, recomposition.shapes, plan.dtype)
    write_card(folder / names.CARD_FILE, config, storage, records, with_experts=plan.with_experts)
    return write_manifest(folder, files, records)


def _factors(
    stack: ExitStack, recomposition: Recomposition, config: BundleConfig, loss: CastLoss
) -> Callable[[str], tuple[Tensor, Tensor]]:
    """Return what reads a module's flat factors A and B, while ``stack`` has the files open."""
    bundle, kept, new = recomposition.bundle, recomposition.kept, recomposition.change.new
    old = stack.enter_context(BundleTensors(bundle))
    file = None if new is None else stack.enter_context(TensorFile(new.weights_path, new.header))
    renamed = {} if new is None else _planned(recomposition, new).renamed_modules
    own = {} if new is None else new.modules(renamed)

    def read(path: str, name: str) -> tuple[Tensor, Tensor] | None:
        if name in kept:
            return _kept_factors(bundle, old, path, kept[name])
        return (
            None if file is None else read_factors(path, file, own.get(path), recomposition.plan.dtype, loss)
        )

    return lambda path: pack(config.layouts[path], [read(path, name) for name in config.names])


def _kept_factors(
    bundle: Bundle, tensors: BundleTensors, path: str, place: int
) -> tuple[Tensor, Tensor] | None:
    layout = bundle.config.layouts.get(path)
    if layout is None or not layout.ranks[place]:
        return None
    rows = layout.rows_of(place)
    return (
        tensors.read_factor(path, names.TENSOR_A, rows),
        tensors.read_factor(path, names.TENSOR_B, rows).T,
    )


def _planned(recomposition: Recomposition, member: Member) -> PlannedMember:
    return next(each for each in recomposition.plan.members if each.name == member.name)


def _records(recomposition: Recomposition, loss: CastLoss) -> list[ManifestMember]:
    entries, kept = recomposition.bundle.manifest.members, recomposition.kept
    return [
        entries[kept[each.name]]
        if each.name in kept
        else manifest_member(_planned(recomposition, each), each, loss, recomposition.plan.dtype)
        for each in recomposition.members
    ]


def _copy_experts(recomposition: Recomposition, folder: Path) -> dict[str, FileRecord]:
    """Copy each kept member's own files from the old bundle, whose manifest knows them, and the new one's."""
    known = recomposition.bundle.manifest.files
    copied = {}
    for member in recomposition.members:
        if member.name not in recomposition.kept:
            copy_expert(member, folder)
            continue
        for file in (names.CONFIG_FILE, names.WEIGHTS_FILE):
            name = f"{names.EXPERTS_FOLDER}/{member.name}/{file}"
            target = below(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(below(recomposition.bundle.folder, name), target)
            copied[name] = known[name]
    return copied


def check_kept(recomposition: Recomposition, folder: Path) -> Iterator[str]:
    """Yield the kept members whose factors in ``folder`` are not those of the old bundle, byte for byte."""
    new = Bundle.open(folder)
    with BundleTensors(recomposition.bundle) as before, BundleTensors(new) as after:
        for name, place in recomposition.kept.items():
            old = _digest_of(recomposition.bundle, before, place)
            if _digest_of(new, after, new.config.index_of(name)) != old:
                yield f"the factors of member `{name}` are not those of the bundle that it was kept from"


def _digest_of(bundle: Bundle, tensors: BundleTensors, place: int) -> Digest:
    hasher = Hasher()
    for path, layout in bundle.config.layouts.items():
        if rank := layout.ranks[place]:
            hasher.update(f"{path} {rank} {layout.scalings[place]!r}\n".encode())
            for tensor in names.FACTORS:
                hasher.update(bytes_of(tensors.read_factor(path, tensor, layout.rows_of(place))))
    return hasher.digest
