"""A bundle in which modules take the routing of others: written, verified, taken apart, exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.extraction import extract_member
from meteora_registry.fuser.official import MOE_FILE, export_official
from meteora_registry.fuser.refit import refit_bundle
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.schemas.bundle import WEIGHTS_FILE
from meteora_registry.schemas.errors import BundleRefused
from meteora_registry.schemas.gate_choices import Scope
from meteora_registry.schemas.verification import Level, Outcome
from support.members import draw_gates, files_of, fuse, read_members

ATTENTION = "model.layers.0.self_attn"
SOURCES = {f"{ATTENTION}.k_proj": f"{ATTENTION}.q_proj", f"{ATTENTION}.v_proj": f"{ATTENTION}.q_proj"}
GATE = "base_model.model.{}.meteora_gate"


@pytest.fixture
def share(adapters: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes a bundle with these sources and scope."""

    def write(sources: dict[str, str], scope: Scope = "token") -> Path:
        bundle = Bundle.open(fuse(read_members(adapters), tmp_path / "fused"))
        folder = tmp_path / "shared"
        folder.mkdir()
        refit_bundle(bundle, draw_gates(bundle, sources, scope=scope), folder)
        return folder

    return write


@pytest.mark.parametrize("scope", ["token", "segment"])
def test_shared_gates_verify_at_both_levels(
    share: Callable[..., Path], adapters: dict[str, Path], scope: Scope
) -> None:
    folder = share(SOURCES, scope)
    for level in Level:
        record = verify_bundle(folder, level=level, sources=files_of(read_members(adapters)))
        assert record.outcome is Outcome.PASS, record.problems
        assert record.modules.keys() == set(Bundle.open(folder).config.target_modules)


def test_source_of_another_width_verifies_and_has_no_export(
    share: Callable[..., Path], tmp_path: Path
) -> None:
    folder = share({"model.layers.0.mlp.down_proj": f"{ATTENTION}.q_proj"})
    assert verify_bundle(folder, level=Level.INTEGRITY).outcome is Outcome.PASS
    with pytest.raises(BundleRefused) as caught:
        export_official(Bundle.open(folder), tmp_path / "official")
    assert str(caught.value) == (
        f"`model.layers.0.mlp.down_proj` takes its routing from `{ATTENTION}.q_proj`, which has another "
        "input: their layout has no place for that"
    )


@pytest.mark.parametrize(
    ("module", "tensor", "message"),
    [
        ("k_proj", torch.zeros(5, 32), "the bundle has 1 tensors that its config does not name"),
        ("q_proj", None, "the bundle lacks 1 of"),
        ("q_proj", torch.zeros(4, 32), r"is \(4, 32\) of F32, expected \(5, 32\) of F32"),
    ],
    ids=["a gate too many", "no source", "misshaped"],
)
def test_reader_refuses_other_gates_than_the_config_says(
    share: Callable[..., Path], module: str, tensor: torch.Tensor | None, message: str
) -> None:
    folder = share(SOURCES)
    tensors, name = load_file(folder / WEIGHTS_FILE), GATE.format(f"{ATTENTION}.{module}")
    tensors.pop(name, None)
    tensors |= {} if tensor is None else {name: tensor}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"meteora_format": "1"})
    with pytest.raises(BundleRefused, match=message):
        Bundle.open(folder)


def test_extract_and_export_know_of_sources(
    share: Callable[..., Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = share(SOURCES)
    for name, adapter in adapters.items():
        assert extract_member(Bundle.open(folder), name, tmp_path / name).identical
        assert (tmp_path / name / WEIGHTS_FILE).read_bytes() == (adapter / WEIGHTS_FILE).read_bytes()
    export_official(Bundle.open(folder), tmp_path / "official")
    exported = load_file(tmp_path / "official" / MOE_FILE)
    gate = load_file(folder / WEIGHTS_FILE)[GATE.format(f"{ATTENTION}.q_proj")]
    for module in ("q_proj", "k_proj", "v_proj"):
        assert torch.equal(exported[f"base_model.model.{ATTENTION}.{module}.moe_gate.weight"], gate)
