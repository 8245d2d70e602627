"""The extraction of a member from its bundle: the plain PEFT adapter that was fused, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..bundle import Bundle
from ..bundle.agreement import check_member, check_names
from ..bundle.files import staged_target
from ..bundle.member import QuotedMember
from ..files.digests import hash_chunks, hash_file
from ..inspection.header import TensorEntry
from ..inspection.keys import TensorKind, parse_key
from ..schemas import bundle as names
from ..schemas.bundle import TensorSpec
from ..schemas.errors import BundleRefused
from ..schemas.inventory import Dtype
from .bundle_reader import BundleTensors
from .tensor_files import TORCH_DTYPES, WeightsWriter, bytes_of


@dataclass(frozen=True, slots=True)
class Extraction:
    """An extracted adapter: ``identical`` if its weights are the very bytes that were fused.

    They are not if the bundle was made with a cast that loses, or if the member's file also held the state of
    a training run; ``left_out`` names those tensors.
    """

    name: str
    folder: Path
    identical: bool
    left_out: tuple[str, ...]


def extract_member(bundle: Bundle, name: str, target: Path) -> Extraction:
    """Write one member as a PEFT adapter into a new folder.

    Raises:
        BundleRefused: no such member, the bundle's parts do not agree, or what comes out does not have
            the digest of what was fused although no cast explains it.
        UsageError: the target exists and is not empty.
    """
    index = bundle.config.index_of(name)
    if problems := check_names(bundle) or check_member(bundle, index):
        raise BundleRefused(
            f"the bundle is damaged: {problems[0]}", hint="run `meteora-registry verify` on it"
        )
    member = bundle.members[index]
    left_out = tuple(entry.name for entry in member.tensors.of_kind(TensorKind.TRAINING_STATE))
    with staged_target(target) as folder:
        (folder / names.CONFIG_FILE).write_bytes(member.entry.config_text.encode("utf-8"))
        weights = folder / names.WEIGHTS_FILE
        if left_out:
            _write_factors_alone(bundle, index, member, weights)
        else:
            _write_member_weights(bundle, index, member, weights)
        identical = hash_file(weights) == member.entry.weights_sha256
        if not identical and member.entry.cast is None and not left_out:
            raise BundleRefused(
                f"the weights of `{name}` come out with another digest than was fused: the bundle is damaged",
                hint="run `meteora-registry verify` on it",
            )
    return Extraction(name, target, identical, left_out)


def can_be_rewritten(member: QuotedMember) -> bool:
    """Return whether a bundle still has every byte of the member's own weights file.

    It does not where a cast lost numbers, or where the file also held the state of a training run.
    """
    return member.entry.cast is None and not member.tensors.of_kind(TensorKind.TRAINING_STATE)


def check_member_bytes(bundle: Bundle) -> Iterator[str]:
    """Yield the members that, written as the files that were fused, do not have the digests of the manifest.

    The bundle's parts agree, as ``check_members`` finds. Nothing is written, and members that cannot be
    rewritten are passed over.
    """
    for index, member in enumerate(bundle.members):
        if not can_be_rewritten(member):
            continue
        digest = hash_chunks(_member_bytes(bundle, index, member))
        if digest != member.entry.weights_sha256:
            yield (
                f"the factors of member `{member.name}` are not those of the file that the manifest names: "
                f"written as that file they have the digest `{digest}`, the manifest has "
                f"`{member.entry.weights_sha256}`"
            )


def _member_bytes(bundle: Bundle, index: int, member: QuotedMember) -> Iterator[bytes | memoryview]:
    yield member.start
    with BundleTensors(bundle) as tensors:
        for entry in member.header.tensors:
            yield bytes_of(_member_factor(bundle, tensors, index, member, entry))


def _write_member_weights(bundle: Bundle, index: int, member: QuotedMember, path: Path) -> None:
    with path.open("xb") as file:
        file.writelines(_member_bytes(bundle, index, member))


def _write_factors_alone(bundle: Bundle, index: int, member: QuotedMember, path: Path) -> None:
    entries = [entry for entry in member.header.tensors if parse_key(entry.name)]
    specs = [TensorSpec(entry.name, Dtype(entry.dtype), entry.shape) for entry in entries]
    with BundleTensors(bundle) as tensors, WeightsWriter(path, specs, metadata={"format": "pt"}) as writer:
        for entry in entries:
            writer.write(entry.name, _member_factor(bundle, tensors, index, member, entry))


def _member_factor(
    bundle: Bundle, tensors: BundleTensors, index: int, member: QuotedMember, entry: TensorEntry
) -> Tensor:
    """Return a member's tensor in its own shape and element type.

    ``check_member`` found each of them in the bundle.

    Raises:
        BundleRefused: its shape differs from the member's header.
    """
    key = parse_key(entry.name)
    if key is None:
        raise BundleRefused(f"`{entry.name}` of `{member.name}` is not a LoRA factor")
    path = member.entry.renamed_modules.get(key.path, key.path)
    rows = bundle.config.layouts[path].rows_of(index)
    if key.factor == "A":
        factor = tensors.read_factor(path, names.TENSOR_A, rows)
    else:
        factor = tensors.read_factor(path, names.TENSOR_B, rows).T
    if tuple(factor.shape) != entry.shape:
        raise BundleRefused(f"`{entry.name}` is {tuple(factor.shape)}, its header has {entry.shape}")
    return factor.to(TORCH_DTYPES[Dtype(entry.dtype)])
