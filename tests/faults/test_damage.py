"""Bytes that go missing, or change, behind the catalog's back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meteora_registry.files.digests import hash_file
from meteora_registry.schemas.digest import Digest
from support.faults import run_command
from support.faults_calls import why_unavailable
from support.faults_home import look_at
from support.small_adapters import make_adapter

if reason := why_unavailable():
    pytest.skip(reason, allow_module_level=True)


def flip_a_byte(blob: Path) -> str:
    """Change one byte in the middle; return the expected message."""
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    blob.chmod(0o444)
    return f"the blob `{blob}` was changed: its bytes have the digest `{Digest.of_bytes(bytes(data))}`"


def remove(blob: Path) -> str:
    """Delete it; return the expected message."""
    blob.unlink()
    return f"the content store has no blob `{blob.parent.name}{blob.name}`, expected the file `{blob}`"


@pytest.mark.parametrize("damage", [flip_a_byte, remove], ids=["a byte flipped", "a blob removed"])
def test_damage_to_a_blob_is_said_before_anything_is_made_of_it_and_adding_again_mends_it(
    tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    home = ["--home", tmp_path / "home"]
    adapters = [make_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("legal", "medical"))]
    assert run_command([*home, "add", *adapters]).code == 0
    whole = look_at(tmp_path)
    digest = hash_file(adapters[0] / "adapter_model.safetensors")
    said = damage(tmp_path / "home" / "blobs" / "sha256" / digest[:2] / digest[2:])
    fuse = [*home, "fuse", "legal", "medical", "--out", tmp_path / "team"]
    refused = run_command(fuse)
    assert (refused.code, refused.stdout) == (2, "")
    message, hint, end = refused.stderr.split("\n")
    assert (message, end) == (f"error: {said}", "")
    assert hint.startswith("hint: add ")
    assert not (tmp_path / "team").exists()
    examined = run_command([*home, "doctor"])
    assert examined.code == 1
    assert digest[:12] in examined.stdout
    mended = run_command([*home, "add", adapters[0]])
    assert (mended.code, mended.stdout) == (0, "already there: legal@1 (sound, fusable)\n")
    assert look_at(tmp_path) == whole
    assert run_command(fuse).code == 0
    assert list(look_at(tmp_path).bundles) == ["team"]
