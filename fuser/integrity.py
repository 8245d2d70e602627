"""The checks of a bundle that need no other file: digests, the record, and whether its parts agree.

Each function returns the problems it found, in words; an empty list means that all is well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from ..inspection.config import Config
from ..inspection.header import Header, parse_header
from ..inspection.tensors import Tensors, build_inventory
from ..schemas import bundle as names
from ..schemas.bundle import BundleConfig, ModuleLayout
from ..schemas.digest import Digest
from ..schemas.document import load_json
from ..schemas.errors import BundleRefused, MeteoraError
from ..schemas.inventory import Inventory
from ..schemas.manifest import Manifest, ManifestMember
from ..schemas.names import below
from ..schemas.verification import VerificationRecord
from .bundle import ModuleTensors, read_bounded
from .member import modules_by_path

# A record on its way in; a process that died may have left it.
PARTIAL_RECORD = f".{names.VERIFICATION_FILE}.partial"
# What hosts and version control put beside the files; it is no part of the bundle.
_FOREIGN = frozenset({".git", ".gitattributes", ".gitignore", ".cache", PARTIAL_RECORD})
_UNLISTED = frozenset({names.MANIFEST_FILE, names.VERIFICATION_FILE})
MAX_RECORD_BYTES = 64 << 20


def check_files(folder: Path, manifest: Manifest) -> list[str]:
    """Every file of the manifest has its digest, and no other file lies in the folder."""
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


def check_members(config: BundleConfig, manifest: Manifest, shapes: dict[str, tuple[int, int]]) -> list[str]:
    """Config and manifest name the same members, and each member's own config gives these ranks and scalings.

    Args:
        config: the bundle's config.
        manifest: the bundle's manifest, with each member's config and header word for word.
        shapes: ``(in, out)`` of every module, from the bundle's header.
    """
    found = tuple(member.name for member in manifest.members)
    if found != config.names:
        return [f"the config has the members {list(config.names)}, the manifest {list(found)}"]
    problems: list[str] = []
    for index, member in enumerate(manifest.members):
        try:
            inventory = member_inventory(member)
        except MeteoraError as error:
            problems.append(f"the files of member `{member.name}` as the manifest quotes them: {error}")
        else:
            problems += _compare_member(config, index, member, inventory, shapes)
    return problems


def member_inventory(member: ManifestMember) -> Inventory:
    """The member's modules, worked out again from the config and header that the manifest quotes.

    Raises:
        MeteoraError: they are no adapter that can be fused.
    """
    value = load_json(member.config_text.encode(), what=names.CONFIG_FILE)
    if not isinstance(value, dict):
        raise BundleRefused(f"its config is a {type(value).__name__}, expected an object")
    inventory = build_inventory(Tensors.sort(member_header(member), Config(value)))
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
