"""A member out of its bundle: the plain PEFT adapter that went in, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..inspection.header import TensorEntry
from ..inspection.keys import TensorKind, classify, parse_key
from ..schemas import bundle as names
from ..schemas.digest import Digest
from ..schemas.errors import BundleRefused
from ..schemas.inventory import Dtype
from ..schemas.manifest import ManifestMember
from .bundle import Bundle, BundleTensors, open_bundle, read_manifest
from .factors import TORCH_DTYPES, bytes_of
from .integrity import check_members, member_header
from .staging import staged_folder
from .weights import TensorSpec, WeightsWriter


@dataclass(frozen=True, slots=True)
class Extraction:
    """What came out: ``identical`` says whether the weights are the very bytes that were fused.

    They are not where the bundle was made with a cast that loses, or where the member's file also held what a
    training run keeps for its next step; ``left_out`` names those tensors.
    """

    name: str
    folder: Path
    identical: bool
    left_out: tuple[str, ...]


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
    header = member_header(member)
    left_out = tuple(e.name for e in header.tensors if classify(e.name) is TensorKind.TRAINING_STATE)
    with staged_folder(target) as folder:
        (folder / names.CONFIG_FILE).write_bytes(member.config_text.encode("utf-8"))
        weights = folder / names.WEIGHTS_FILE
        if left_out:
            _write_factors_alone(bundle, index, member, weights)
        else:
            _write_member_weights(bundle, index, member, weights)
        identical = Digest.of_file(weights) == member.weights_sha256
        if not identical and member.cast is None and not left_out:
            raise BundleRefused(
                f"the weights of `{name}` come out with another digest than went in: the bundle is damaged",
                hint="run `meteora-registry verify` on it",
            )
    return Extraction(name, target, identical, left_out)


def _write_member_weights(bundle: Bundle, index: int, member: ManifestMember, path: Path) -> None:
    text = member.weights_header.encode("utf-8")
    with BundleTensors(bundle) as tensors, path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in member_header(member).tensors:
            file.write(bytes_of(_member_factor(bundle, tensors, index, member, entry)))


def _write_factors_alone(bundle: Bundle, index: int, member: ManifestMember, path: Path) -> None:
    entries = [entry for entry in member_header(member).tensors if parse_key(entry.name)]
    specs = [TensorSpec(entry.name, Dtype(entry.dtype), entry.shape) for entry in entries]
    with BundleTensors(bundle) as tensors, WeightsWriter(path, specs, metadata={"format": "pt"}) as writer:
        for entry in entries:
            writer.write(entry.name, _member_factor(bundle, tensors, index, member, entry))


def _member_factor(
    bundle: Bundle, tensors: BundleTensors, index: int, member: ManifestMember, entry: TensorEntry
) -> Tensor:
    """Return a member's tensor in its own shape and element type.

    ``check_members`` found each of them in the bundle.

    Raises:
        BundleRefused: it is of another shape than the member's header says.
    """
    key = parse_key(entry.name)
    if key is None:
        raise BundleRefused(f"`{entry.name}` of `{member.name}` is not a LoRA factor")
    path = member.renamed_modules.get(key.path, key.path)
    rows = bundle.config.layouts[path].rows_of(index)
    if key.factor == "A":
        factor = tensors.read_factor(path, names.TENSOR_A, rows)
    else:
        factor = tensors.read_factor(path, names.TENSOR_B, rows).T
    if tuple(factor.shape) != entry.shape:
        raise BundleRefused(f"`{entry.name}` is {tuple(factor.shape)}, its header says {entry.shape}")
    return factor.to(TORCH_DTYPES[Dtype(entry.dtype)])
