"""Making a bundle wrong on purpose, and hiding it: files changed, digests made right again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from meteora_registry.files.digests import hash_file
from meteora_registry.schemas import bundle as names
from meteora_registry.schemas.document import canonical_json

Json = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def copy_bundle(bundle: Path, target: Path) -> Path:
    """Return a bundle to break, without its verification record."""
    shutil.copytree(bundle, target)
    (target / names.VERIFICATION_FILE).unlink(missing_ok=True)
    return target


def flip_byte(path: Path, offset: int) -> None:
    """Change one bit of one byte."""
    path.write_bytes(with_flipped_byte(path.read_bytes(), offset))


def with_flipped_byte(data: bytes, offset: int) -> bytes:
    """Return bytes of which one bit of one byte is changed."""
    changed = bytearray(data)
    changed[offset] ^= 1
    return bytes(changed)


def change_config(bundle: Path, change: Callable[[Json], None]) -> None:
    """Change the config and make the manifest agree."""
    _change_json(bundle / names.CONFIG_FILE, change)
    make_digests_right(bundle)


def change_manifest(bundle: Path, change: Callable[[Json], None]) -> None:
    """Change the manifest."""
    _change_json(bundle / names.MANIFEST_FILE, change)


def change_tensors(bundle: Path, change: Callable[[Tensors], None]) -> None:
    """Change the tensors and make the manifest agree."""
    path = bundle / names.WEIGHTS_FILE
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no dict
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    make_digests_right(bundle)


def make_digests_right(bundle: Path) -> None:
    """Make the manifest list the present files of the folder."""

    def update(manifest: Json) -> None:
        for name in manifest["files"]:
            path = bundle / name
            manifest["files"][name] = {"sha256": hash_file(path), "size_bytes": path.stat().st_size}

    change_manifest(bundle, update)


def _change_json(path: Path, change: Callable[[Json], None]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(canonical_json(value))
