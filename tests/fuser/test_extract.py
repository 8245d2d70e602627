from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import VeloraConfig
from safetensors.torch import load_file

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.extraction import extract_member
from meteora_registry.fuser.fuse_member import Member
from meteora_registry.schemas.errors import BundleRefused, UsageError
from support.members import fuse, read_members
from support.models import LOADS_WITH_PEFT, logits_alone, make_adapter, some_tokens, tiny_llama
from support.tampering import Json, Tensors, change_manifest, change_tensors, copy_bundle

FILES = ("adapter_config.json", "adapter_model.safetensors")


def test_every_member_comes_out_byte_for_byte(fused: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    for name, original in adapters.items():
        extraction = extract_member(Bundle.open(fused), name, tmp_path / name)
        assert extraction.identical
        for file in FILES:
            assert (tmp_path / name / file).read_bytes() == (original / file).read_bytes()


def test_members_of_different_element_types_come_out_in_their_own(tmp_path: Path) -> None:
    folders = {
        "half": make_adapter(tiny_llama, tmp_path / "half", seed=1, dtype=torch.bfloat16, r=4),
        "full": make_adapter(tiny_llama, tmp_path / "full", seed=2, r=4),
    }
    bundle = fuse(read_members(folders), tmp_path / "bundle")
    for name, original in folders.items():
        assert extract_member(Bundle.open(bundle), name, tmp_path / f"out-{name}").identical
        assert (tmp_path / f"out-{name}" / FILES[1]).read_bytes() == (original / FILES[1]).read_bytes()


def test_a_lossy_cast_is_said_to_be_no_identical_copy(members: list[Member], tmp_path: Path) -> None:
    bundle = fuse(members[:1], tmp_path / "bundle", dtype="bfloat16")
    extraction = extract_member(Bundle.open(bundle), "rank4", tmp_path / "out")
    assert not extraction.identical
    own = load_file(members[0].weights_path)
    out = load_file(tmp_path / "out" / FILES[1])
    assert all(torch.equal(out[name], own[name].bfloat16().float()) for name in own)


@LOADS_WITH_PEFT
def test_training_state_is_left_out_of_a_member_that_loads_without_it(tmp_path: Path) -> None:
    folder = make_adapter(
        tiny_llama,
        tmp_path / "velora",
        seed=1,
        base="org/base",
        r=4,
        target_modules=["q_proj"],
        velora_config=VeloraConfig(num_groups=4),
    )
    bundle = fuse(read_members({"velora": folder}), tmp_path / "bundle")
    extraction = extract_member(Bundle.open(bundle), "velora", tmp_path / "out")
    assert not extraction.identical
    assert len(extraction.left_out) == 2
    own, out = load_file(folder / FILES[1]), load_file(tmp_path / "out" / FILES[1])
    assert own.keys() - out.keys() == set(extraction.left_out)
    assert all(torch.equal(own[name], out[name]) for name in out)
    tokens = some_tokens()
    with pytest.warns(UserWarning, match="lora_velora_embed"):
        found = logits_alone(tiny_llama(), tmp_path / "out", tokens)
    assert torch.equal(found, logits_alone(tiny_llama(), folder, tokens))


def test_a_damaged_bundle_gives_nothing_out(fused: Path, tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        tensors["base_model.model.model.layers.0.self_attn.q_proj.meteora_A"][0, 0] += 1

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_tensors(bundle, damage)
    with pytest.raises(BundleRefused, match="come out with another digest than was fused"):
        extract_member(Bundle.open(bundle), "rank4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_an_unknown_member_is_refused_with_the_known_ones(fused: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleRefused) as caught:
        extract_member(Bundle.open(fused), "nobody", tmp_path / "out")
    assert str(caught.value) == (
        "the bundle has no member `nobody`, it has `rank4`, `rank8`, `rslora16`, `patterns`, `last-layer`"
    )


def test_a_target_that_is_not_empty_is_left_alone(fused: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(UsageError, match="exists and is not empty"):
        extract_member(Bundle.open(fused), "rank4", tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "keep"


def test_a_manifest_with_other_members_than_the_config_is_refused(fused: Path, tmp_path: Path) -> None:
    def shorten(manifest: Json) -> None:
        del manifest["members"][1:]

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_manifest(bundle, shorten)
    with pytest.raises(BundleRefused, match="the bundle is damaged: the config has the members"):
        extract_member(Bundle.open(bundle), "patterns", tmp_path / "out")


def test_a_quoted_header_of_another_kind_is_refused(fused: Path, tmp_path: Path) -> None:
    def make_integers(manifest: Json) -> None:
        member = manifest["members"][0]
        member["weights_header"] = member["weights_header"].replace('"F32"', '"I32"')

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_manifest(bundle, make_integers)
    with pytest.raises(BundleRefused, match="the bundle is damaged"):
        extract_member(Bundle.open(bundle), "rank4", tmp_path / "out")
