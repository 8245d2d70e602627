"""A member out of its bundle: the plain PEFT adapter that went in, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..inspection.keys import parse_key
from ..schemas import bundle as names
from ..schemas.digest import Digest
from ..schemas.errors import BundleRefused
from ..schemas.inventory import Dtype
from ..schemas.manifest import ManifestMember
from .bundle import Bundle, BundleTensors, open_bundle, read_manifest
from .factors import TORCH_DTYPES, bytes_of
from .integrity import check_members, member_header
from .staging import staged_folder


@dataclass(frozen=True, slots=True)
class Extraction:
    """What came out: ``identical`` says whether the weights are the very bytes that were fused.

    They are not where the bundle was made with a cast that loses.
    """

    name: str
    folder: Path
    identical: bool


def extract_member(bundle_folder: Path, name: str, target: Path) -> Extraction:
    """Write one member as a PEFT adapter into a new folder.

    Raises:
        BundleRefused: no such member, the bundle's parts do not agree, or what comes out does not have
            the digest of what went in although no cast explains it.
        UsageError: the target exists and is not empty.
    """
    bundle = open_bundle(bundle_folder)
    index = bundle.config.index_of(name)
    manifest = read_manifest(bundle_folder)
    if problems := check_members(bundle, manifest):
        raise BundleRefused(
            f"the bundle is damaged: {problems[0]}", hint="run `meteora-registry verify` on it"
        )
    member = manifest.members[index]
    with staged_folder(target) as folder:
        (folder / names.CONFIG_FILE).write_bytes(member.config_text.encode("utf-8"))
        weights = folder / names.WEIGHTS_FILE
        _write_member_weights(bundle, index, member, weights)
        identical = Digest.of_file(weights) == member.weights_sha256
        if not identical and member.cast is None:
            raise BundleRefused(
                f"the weights of `{name}` come out with another digest than went in: the bundle is damaged",
                hint="run `meteora-registry verify` on it",
            )
    return Extraction(name, target, identical)


def _write_member_weights(bundle: Bundle, index: int, member: ManifestMember, path: Path) -> None:
    header = member_header(member)
    text = member.weights_header.encode("utf-8")
    with BundleTensors(bundle) as tensors, path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in header.tensors:
            factor = _member_factor(bundle, tensors, index, member, entry.name)
            if tuple(factor.shape) != entry.shape:
                raise BundleRefused(f"`{entry.name}` is {tuple(factor.shape)}, its header says {entry.shape}")
            file.write(bytes_of(factor.to(TORCH_DTYPES[Dtype(entry.dtype)])))


def _member_factor(
    bundle: Bundle, tensors: BundleTensors, index: int, member: ManifestMember, tensor_name: str
) -> Tensor:
    key = parse_key(tensor_name)
    if key is None:
        raise BundleRefused(f"`{tensor_name}` of `{member.name}` is no LoRA factor")
    path = member.renamed_modules.get(key.path, key.path)
    if path not in bundle.config.layouts:
        raise BundleRefused(f"the bundle has no module `{path}`, which `{member.name}` has factors for")
    rows = bundle.config.layouts[path].rows_of(index)
    if key.factor == "A":
        return tensors.read_factor(path, names.TENSOR_A, rows)
    return tensors.read_factor(path, names.TENSOR_B, rows).T
