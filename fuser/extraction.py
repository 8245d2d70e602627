"""The extraction of a member from its bundle: the plain PEFT adapter that was fused, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..bundle import Bundle
from ..bundle.agreement import check_member, check_names
from ..bundle.files import staged_target
from ..bundle.member import QuotedMember
from ..files.digests import hash_file
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


def _write_member_weights(bundle: Bundle, index: int, member: QuotedMember, path: Path) -> None:
    with BundleTensors(bundle) as tensors, path.open("xb") as file:
        file.write(member.start)
        for entry in member.header.tensors:
            file.write(bytes_of(_member_factor(bundle, tensors, index, member, entry)))


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
