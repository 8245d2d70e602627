"""The checks of a bundle that need no other file: digests, the record, and whether its parts agree.

Each function returns the problems it found, in words; an empty list means that all is well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..inspection.config import Config
from ..inspection.header import Header, parse_header
from ..inspection.keys import TensorKind
from ..inspection.tensors import Tensors, build_inventory
from ..schemas import bundle as names
from ..schemas.bundle import BundleConfig, ModuleLayout
from ..schemas.digest import Digest
from ..schemas.document import load_json
from ..schemas.errors import BundleRefused, MeteoraError
from ..schemas.inventory import Dtype, Inventory
from ..schemas.manifest import Manifest, ManifestMember
from ..schemas.names import below
from ..schemas.scratch import staged_path
from ..schemas.verification import VerificationRecord
from .bundle import Bundle, ModuleTensors, module_shapes, read_bounded
from .member import modules_by_path
from .plan import lossy_dtypes

# A record on its way in; a process that died may have left it.
PARTIAL_RECORD = staged_path(Path(names.VERIFICATION_FILE)).name
# What hosts and version control put beside the files; it is no part of the bundle.
_FOREIGN = frozenset({".git", ".gitattributes", ".gitignore", ".cache", PARTIAL_RECORD})
_UNLISTED = frozenset({names.MANIFEST_FILE, names.VERIFICATION_FILE})
MAX_RECORD_BYTES = 64 << 20


def check_files(folder: Path, manifest: Manifest) -> list[str]:
    """Check that every file of the manifest has its digest and that the folder holds no other file."""
    problems = []
    for name, record in sorted(manifest.files.items()):
        path = below(folder, name)
        if not path.is_file():
            problems.append(f"`{name}` is missing")
        elif (size := path.stat().st_size) != record.size_bytes:
            problems.append(f"`{name}` has {size} bytes, the manifest says {record.size_bytes}")
        elif (digest := Digest.of_file(path)) != record.sha256:
            problems.append(f"`{name}` has digest `{digest}`, the manifest says `{record.sha256}`")
    required = {names.CONFIG_FILE, names.WEIGHTS_FILE}
    problems += [f"the manifest does not list `{name}`" for name in sorted(required - set(manifest.files))]
    problems += [
        f"`{name}` is not in the manifest"
        for name in sorted(_files_in(folder) - set(manifest.files) - _UNLISTED)
    ]
    return problems + check_experts(manifest)


def check_experts(manifest: Manifest) -> list[str]:
    """Check that ``experts/``, where there is one, holds each member's own two files and nothing else."""
    found = {
        name: record.sha256
        for name, record in manifest.files.items()
        if name.startswith(f"{names.EXPERTS_FOLDER}/")
    }
    if not found:
        return []
    own = {
        f"{names.EXPERTS_FOLDER}/{member.name}/{file}": digest
        for member in manifest.members
        for file, digest in (
            (names.CONFIG_FILE, member.config_sha256),
            (names.WEIGHTS_FILE, member.weights_sha256),
        )
    }
    problems = [f"the manifest does not list `{name}`" for name in sorted(own.keys() - found.keys())]
    problems += [f"`{name}` is not a file of a member" for name in sorted(found.keys() - own.keys())]
    problems += [
        f"`{name}` has digest `{found[name]}`, the manifest gives the member's own as `{own[name]}`"
        for name in sorted(own.keys() & found.keys())
        if found[name] != own[name]
    ]
    return problems


def _files_in(folder: Path) -> set[str]:
    # A linked folder counts as a file: what lies behind it is no part of the bundle.
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    relative = (path.relative_to(folder) for path in files)
    return {path.as_posix() for path in relative if path.parts[0] not in _FOREIGN}


def read_record(folder: Path) -> VerificationRecord | None:
    """The verification record of a bundle, or None if it has none.

    Raises:
        InvalidDocument: it was changed after it was written.
    """
    path = folder / names.VERIFICATION_FILE
    if not path.is_file():
        return None
    data = read_bounded(path, MAX_RECORD_BYTES)
    value = load_json(data, what=names.VERIFICATION_FILE, max_bytes=MAX_RECORD_BYTES)
    return VerificationRecord.unseal(value, data, what=names.VERIFICATION_FILE)


def check_record(folder: Path, manifest_sha256: Digest) -> list[str]:
    """The verification record, where there is one, is unchanged and for this very manifest."""
    try:
        record = read_record(folder)
    except MeteoraError as error:
        return [str(error)]
    if record is None or record.manifest_sha256 == manifest_sha256:
        return []
    return [
        f"`{names.VERIFICATION_FILE}` is for the manifest `{record.manifest_sha256.short}`, "
        f"this one is `{manifest_sha256.short}`"
    ]


def check_members(bundle: Bundle, manifest: Manifest) -> list[str]:
    """Check that the bundle has what its members have, as the manifest quotes their configs and headers.

    Both ways: every tensor of a member is a factor in a module of the bundle, with the rank, scaling and
    shape that its own files give; and the bundle's config names no member, rank or loss beyond those.
    """
    config = bundle.config
    found = tuple(member.name for member in manifest.members)
    if found != config.names:
        return [f"the config has the members {list(config.names)}, the manifest {list(found)}"]
    shapes = module_shapes(bundle)
    problems: list[str] = []
    for index, member in enumerate(manifest.members):
        try:
            tensors = member_tensors(member)
            inventory = _inventory_of(tensors)
        except MeteoraError as error:
            problems.append(f"the files of member `{member.name}` as the manifest quotes them: {error}")
        else:
            problems += _check_carried(member, tensors)
            problems += _check_cast(bundle, member, inventory)
            problems += _compare_member(config, index, member, inventory, shapes)
    return problems


def member_inventory(member: ManifestMember) -> Inventory:
    """Return the member's modules, worked out again from the config and header that the manifest quotes.

    Raises:
        MeteoraError: they are not those of an adapter that can be fused.
    """
    return _inventory_of(member_tensors(member))


def member_tensors(member: ManifestMember) -> Tensors:
    """Return the member's tensors, sorted, from the config and header that the manifest quotes.

    Raises:
        MeteoraError: one of them cannot be read.
    """
    value = load_json(member.config_text.encode(), what=names.CONFIG_FILE)
    if not isinstance(value, dict):
        raise BundleRefused(f"its config is a {type(value).__name__}, expected an object")
    return Tensors.sort(member_header(member), Config(value))


def _inventory_of(tensors: Tensors) -> Inventory:
    inventory = build_inventory(tensors)
    if inventory is None:
        raise BundleRefused("ranks and scalings cannot be worked out from its config and header")
    return inventory


def member_header(member: ManifestMember) -> Header:
    """The header of the member's own weights file, as the manifest quotes it.

    Raises:
        AdapterRefused: it is no header of a safetensors file of the recorded size.
    """
    text = member.weights_header.encode("utf-8")
    return parse_header(len(text).to_bytes(8, "little") + text, member.weights_bytes)


def check_renaming(member: ManifestMember, inventory: Inventory) -> Iterator[str]:
    """The renaming takes own modules to other names, and no two to one."""
    own = {module.path for module in inventory.modules}
    for path in sorted(set(member.renamed_modules) - own):
        yield f"the manifest renames `{path}`, which member `{member.name}` does not have"
    for path in sorted(own & set(member.renamed_modules.values())):
        yield f"the manifest renames a module of `{member.name}` to `{path}`, which it has already"
    if len(modules_by_path(inventory, member.renamed_modules)) < len(own):
        yield f"the manifest renames two modules of `{member.name}` to one name"


def _check_carried(member: ManifestMember, tensors: Tensors) -> Iterator[str]:
    """Check that a member has no tensor that changes its output and that a bundle cannot hold."""
    for kind, entries in tensors.others.items():
        # The forward pass does not use it: what a training run keeps for its next step.
        if kind is not TensorKind.TRAINING_STATE:
            yield (
                f"member `{member.name}` has {len(entries)} tensors that the bundle does not have "
                f"({kind}), the first `{entries[0].name}`"
            )


def _check_cast(bundle: Bundle, member: ManifestMember, inventory: Inventory) -> Iterator[str]:
    lost = lossy_dtypes(inventory.dtypes, bundle.dtype)
    recorded = member.cast.source if member.cast else ()
    if recorded != lost:
        yield (
            f"the manifest says that `{member.name}` was cast from {_listed(recorded)}, "
            f"its own header and the bundle's {bundle.dtype} make it {_listed(lost)}"
        )
    elif member.cast and member.cast.target is not bundle.dtype:
        yield (
            f"the manifest says that `{member.name}` was cast to {member.cast.target}, "
            f"the bundle has {bundle.dtype}"
        )


def _listed(dtypes: Sequence[Dtype]) -> str:
    return ", ".join(dtypes) or "nothing"


def _compare_member(
    config: BundleConfig,
    index: int,
    member: ManifestMember,
    inventory: Inventory,
    shapes: dict[str, tuple[int, int]],
) -> Iterator[str]:
    yield from check_renaming(member, inventory)
    own = modules_by_path(inventory, member.renamed_modules)
    for path in sorted(set(own) - set(config.layouts)):
        yield f"member `{member.name}` has factors for `{path}`, which the bundle does not have"
    for path, layout in config.layouts.items():
        module = own.get(path)
        if module is None:
            if layout.ranks[index]:
                yield f"`{path}`: `{member.name}` has rank {layout.ranks[index]}, its own files have none"
            continue
        if layout.ranks[index] != module.rank:
            yield f"`{path}`: `{member.name}` has rank {layout.ranks[index]}, its own files say {module.rank}"
        if layout.scalings[index] != module.scaling:
            yield (
                f"`{path}`: `{member.name}` has scaling {layout.scalings[index]}, "
                f"its own config says {module.scaling}"
            )
        if shapes[path] != (module.in_features, module.out_features):
            yield (
                f"`{path}` is {shapes[path][0]} -> {shapes[path][1]}, "
                f"`{member.name}` has {module.in_features} -> {module.out_features}"
            )


def check_tensors(layout: ModuleLayout, tensors: ModuleTensors, member_names: tuple[str, ...]) -> list[str]:
    """Every value is finite and every padding row is zero."""
    problems = []
    named = {"A": tensors.A, "B": tensors.Bt, "gate": tensors.gate, "gate bias": tensors.bias}
    for name, tensor in named.items():
        if tensor is not None and not math.isfinite(tensor.abs().max().item()):
            problems.append(f"`{layout.path}`: {name} has values that are not finite")
    for index, member in enumerate(member_names):
        padding = layout.padding_of(index)
        if bool(tensors.A[padding].any()) or bool(tensors.Bt[padding].any()):
            problems.append(f"`{layout.path}`: the padding of `{member}` is not zero")
    return problems
