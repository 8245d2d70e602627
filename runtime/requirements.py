"""The checks that a bundle must pass before it is loaded, in every way of loading.

METEORA_REQUIRE holds for a whole process: `intact` verifies the folder before its tensors are loaded, and
`signed` also checks its signature against the signers of METEORA_SIGNERS. What can be seen without computing
is checked always. A folder is checked and then read again, so this protects from what is in it, and not from
a program that changes it meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..bundle.saved import refuse_saved_model
from ..bundle.signers import SIGNERS_VARIABLE, require_signing, signers_of_environment
from ..files.reading import read_bounded
from ..fuser.verifier import verify_bundle
from ..inspection.header import read_header
from ..schemas.bundle import (
    BUNDLE_FORMAT,
    CONFIG_FILE,
    GATE_TENSORS,
    MANIFEST_FILE,
    MAX_BUNDLE_CONFIG_BYTES,
    WEIGHTS_FILE,
    BundleConfig,
)
from ..schemas.digest import Digest
from ..schemas.errors import BundleRefused, MeteoraError, UsageError
from ..schemas.manifest import MAX_MANIFEST_BYTES
from ..schemas.verification import Level, Outcome

REQUIRE_VARIABLE = "METEORA_REQUIRE"
Requirement = Literal["intact", "signed"]
_SHOWN_PROBLEMS = 3


def required() -> Requirement | None:
    """Return what METEORA_REQUIRE asks of every bundle; None if it is not set or empty.

    Raises:
        UsageError: it has another value.
    """
    text = os.environ.get(REQUIRE_VARIABLE)
    return read_requirement(text, REQUIRE_VARIABLE) if text else None


def read_requirement(text: str, what: str) -> Requirement:
    """Return the requirement of that name.

    Raises:
        UsageError: there is none.
    """
    match text:
        case "intact" | "signed":
            return text
        case _:
            raise UsageError(f"{what} is `{text[:40]}`, expected `intact` or `signed`")


def check_folder(folder: Path) -> None:
    """Check a bundle's folder before it is loaded: its config as written, the format, and METEORA_REQUIRE.

    A folder that a training run saved has no manifest, and loads unless something is required.

    Raises:
        BundleRefused: it is of another format, or does not show what is required.
        InvalidDocument: its config breaks the schema, or states a key twice.
        SourceUnreadable: a file cannot be read.
    """
    # A library that loads from the Hub may have fetched only one of the two yet.
    if (folder / CONFIG_FILE).is_file():
        config = read_bounded(folder / CONFIG_FILE, MAX_BUNDLE_CONFIG_BYTES)
        BundleConfig.read(config, max_bytes=MAX_BUNDLE_CONFIG_BYTES)
    if (folder / WEIGHTS_FILE).is_file():
        check_weights_format(folder / WEIGHTS_FILE)
    requirement = required()
    if requirement is not None:
        require(folder, requirement)


def manifest_in(folder: Path) -> Digest | None:
    """Return the digest of a bundle's manifest; None for a folder without one, and for a name on the Hub."""
    path = folder / MANIFEST_FILE
    return Digest.of_bytes(read_bounded(path, MAX_MANIFEST_BYTES)) if path.is_file() else None


def check_weights_format(path: Path) -> None:
    """Check that weights do not state another format than the one that this reader knows.

    Raises:
        BundleRefused: they do.
        AdapterRefused: it is not a safetensors file.
    """
    found = read_header(path).metadata.get("meteora_format")
    if found is not None and found != str(BUNDLE_FORMAT):
        raise BundleRefused(
            f"`{path.name}` has meteora_format `{found[:40]}` in its metadata, this reader knows "
            f"`{BUNDLE_FORMAT}`",
            hint="upgrade meteora-registry, or get the bundle again",
        )


def check_gates(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Check that the gates among some tensors are finite: one that is not sends every token anywhere.

    Raises:
        BundleRefused: a value is not finite.
    """
    for name, tensor in tensors:
        if is_gate(name) and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            raise BundleRefused(
                f"`{name}` has values that are not finite",
                hint="get the bundle again, or fit its gates with `meteora-registry gate fit`",
            )


def is_gate(name: str) -> bool:
    """Return whether a tensor is one of a gate's, by its name."""
    return name.rpartition(".")[2] in GATE_TENSORS


def require(folder: Path, requirement: Requirement) -> None:
    """Check that a bundle shows what is required of it.

    Raises:
        BundleRefused: it does not.
    """
    refuse_saved_model(folder)
    if requirement == "signed":
        _require_signature(folder)
    try:
        record = verify_bundle(folder, level=Level.INTEGRITY)
    except MeteoraError as error:
        raise BundleRefused(
            f"`{folder}` cannot be shown to be intact: {error}",
            hint="fetch it with `meteora-registry pull`, and load the folder",
        ) from error
    if record.outcome is not Outcome.PASS:
        reasons = "; ".join((*record.problems, *record.unchecked)[:_SHOWN_PROBLEMS])
        raise BundleRefused(
            f"`{folder}` is not intact: {reasons}", hint="see all of it with `meteora-registry verify`"
        )


def _require_signature(folder: Path) -> None:
    """Check that an accepted signer signed the manifest, which has the digests of all that is loaded."""
    signers = signers_of_environment()
    if signers is None:
        raise UsageError(
            f"a bundle is to be signed, and {SIGNERS_VARIABLE} names no file of accepted signers",
            hint="see docs/signing.md for that file",
        )
    require_signing()
    from ..bundle.signing import check_signature

    check_signature(folder, signers)


def require_checked(*, is_checked: bool) -> None:
    """Refuse tensors whose folder was not checked, if METEORA_REQUIRE asks for something.

    Raises:
        BundleRefused: a config object or a state dict was passed in place of the folder.
    """
    requirement = None if is_checked else required()
    if requirement is not None:
        raise BundleRefused(
            f"{REQUIRE_VARIABLE} is `{requirement}`, and these tensors do not come with a bundle's folder",
            hint="load the folder itself, without `config=` or a state dict",
        )
