"""Parts that the members have and the bundle lacks, and the reverse: no verification passes either."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from meteora_registry.files.digests import hash_file
from meteora_registry.fuser.fuse_member import Member, MemberFiles
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.verification import Level, Outcome
from support.members import fuse, read_members
from support.models import make_adapter, tiny_llama
from support.tampering import (
    Json,
    change_config,
    change_manifest,
    change_tensors,
    copy_bundle,
    make_digests_right,
)
from support.verifying import assert_fails, check

HIDDEN = "model.layers.1.mlp.down_proj"
EXPERT = "experts/rank4/adapter_model.safetensors"


def change_header(member: Json, change: Callable[[Json], Json]) -> None:
    """Change the header that a manifest quotes of a member, and the size of the file accordingly."""
    before = len(member["weights_header"])
    header = change(json.loads(member["weights_header"]))
    text = json.dumps(header, separators=(",", ":"))
    member["weights_header"] = text + " " * max(0, before - len(text))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    member["weights_bytes"] = 8 + len(member["weights_header"]) + max(ends)


def hide_module(bundle: Path, disguise: str) -> None:
    """Take one module out of a bundle; its factors bear other names in what the manifest quotes."""

    def rename(header: Json) -> Json:
        return {
            name.replace(".lora_A.weight", f"{disguise}a").replace(".lora_B.weight", f"{disguise}b")
            if HIDDEN in name
            else name: entry
            for name, entry in header.items()
        }

    def quote(manifest: Json) -> None:
        for member in manifest["members"]:
            change_header(member, rename)

    def leave_out(config: Json) -> None:
        config["target_modules"].remove(HIDDEN)
        for member in config["members"]:
            member["overrides"].pop(HIDDEN, None)

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if HIDDEN in name]:
            del tensors[name]

    change_manifest(bundle, quote)
    change_config(bundle, leave_out)
    change_tensors(bundle, drop)


def test_module_dropped_under_names_that_are_no_factors_fails(fused: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    hide_module(bundle, ".stat_")
    assert_fails(check(bundle), "member `rank8` has 2 tensors that the bundle does not have (unknown)")


def test_module_dropped_under_names_of_training_state_fails_at_level_source(
    fused: Path, members: list[Member], tmp_path: Path
) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    hide_module(bundle, ".lora_velora_")
    # Nothing in the folder distinguishes it from an adapter that never had the module.
    assert check(bundle).outcome is Outcome.PASS
    for name in ("rank8", "rslora16"):
        assert_fails(
            check(bundle, members), f"does not quote the header of the own weights of member `{name}`"
        )


def test_module_that_only_the_config_leaves_out_fails(fused: Path, tmp_path: Path) -> None:
    def leave_out(config: Json) -> None:
        config["target_modules"].remove(HIDDEN)
        for member in config["members"]:
            member["overrides"].pop(HIDDEN, None)

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if HIDDEN in name]:
            del tensors[name]

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_config(bundle, leave_out)
    change_tensors(bundle, drop)
    assert_fails(check(bundle), f"member `rank8` has factors for `{HIDDEN}`, which the bundle does not have")


def test_size_of_a_member_that_is_not_that_of_its_file_fails_at_level_source(
    fused: Path, members: list[Member], tmp_path: Path
) -> None:
    def lengthen(manifest: Json) -> None:
        member = manifest["members"][0]
        member["weights_header"] += " " * 8
        member["weights_bytes"] += 8

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_manifest(bundle, lengthen)
    assert_fails(check(bundle, members), "does not quote the header of the own weights of member `rank4`")


def test_own_file_that_is_longer_than_its_header_says_fails(tmp_path: Path) -> None:
    folder = make_adapter(tiny_llama, tmp_path / "one", seed=1, base="org/base", r=4)
    members = read_members({"one": folder})
    bundle = fuse(members, tmp_path / "bundle", top_k=1)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"more")
    change_manifest(bundle, lambda manifest: manifest["members"][0].update(weights_sha256=hash_file(weights)))
    files = {"one": MemberFiles(folder / "adapter_config.json", weights)}
    record = verify_bundle(bundle, level=Level.SOURCE, sources=files)
    assert_fails(record, "does not quote the header of the own weights of member `one`")


@pytest.mark.parametrize(
    ("factor", "axis", "found"), [("A", 1, "64 -> 32"), ("B", 0, "32 -> 64")], ids=["in", "out"]
)
def test_shape_of_a_quoted_member_that_is_not_the_bundles_fails(
    fused: Path, tmp_path: Path, factor: str, axis: int, found: str
) -> None:
    path = "model.layers.0.self_attn.q_proj"
    widened = f"base_model.model.{path}.lora_{factor}.weight"

    def widen(header: Json) -> Json:
        header[widened]["shape"][axis] *= 2
        begin = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [-1])):
            if name != "__metadata__":
                size = 4 * entry["shape"][0] * entry["shape"][1]
                entry["data_offsets"] = [begin, begin + size]
                begin += size
        return header

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_manifest(bundle, lambda manifest: change_header(manifest["members"][0], widen))
    record = check(bundle)
    assert record.outcome is Outcome.FAIL
    assert record.problems == (f"`{path}` is 32 -> 32, `rank4` has {found}",)


@pytest.fixture(scope="module")
def with_experts(members: list[Member], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "bundle"
    return fuse(members[:2], folder, with_experts=True)


def test_expert_that_is_another_members_file_fails(with_experts: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(with_experts, tmp_path / "bundle")
    shutil.copy(bundle / "experts/rank8/adapter_model.safetensors", bundle / EXPERT)
    make_digests_right(bundle)
    assert_fails(check(bundle), f"`{EXPERT}` has digest")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_expert_that_was_changed_fails(with_experts: Path, tmp_path: Path, file: str) -> None:
    bundle = copy_bundle(with_experts, tmp_path / "bundle")
    with (bundle / "experts/rank8" / file).open("ab") as opened:
        opened.write(b" ")
    make_digests_right(bundle)
    assert_fails(check(bundle), f"`experts/rank8/{file}` has digest")


def test_expert_that_is_missing_fails(with_experts: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(with_experts, tmp_path / "bundle")
    (bundle / EXPERT).unlink()
    change_manifest(bundle, lambda manifest: manifest["files"].pop(EXPERT))
    assert_fails(check(bundle), f"the manifest does not list `{EXPERT}`")


@pytest.mark.parametrize("name", ["experts/rank4/notes.txt", "experts/stranger/adapter_config.json"])
def test_file_among_the_experts_that_is_not_a_members_fails(
    with_experts: Path, tmp_path: Path, name: str
) -> None:
    bundle = copy_bundle(with_experts, tmp_path / "bundle")
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"{}")
    record = {"sha256": Digest.of_bytes(b"{}"), "size_bytes": 2}
    change_manifest(bundle, lambda manifest: manifest["files"].update({name: record}))
    assert_fails(check(bundle), f"`{name}` is not a file of a member")


def test_cast_that_the_manifest_does_not_record_fails(members: list[Member], tmp_path: Path) -> None:
    bundle = fuse(members[:1], tmp_path / "bundle", dtype="bfloat16")
    change_manifest(bundle, lambda manifest: manifest["members"][0].update(cast=None))
    assert_fails(
        check(bundle), "states that `rank4` was cast from nothing, its own header and the bundle's BF16"
    )


@pytest.mark.parametrize(
    ("cast", "problem"),
    [
        (
            {"source": ["F32"], "target": "F16", "max_relative_error": 0.0},
            "cast from F32, its own header",
        ),
        ({"source": [], "target": "F16", "max_relative_error": 0.0}, "cast to F16, the bundle has F32"),
    ],
    ids=["source", "target"],
)
def test_cast_that_did_not_happen_fails(fused: Path, tmp_path: Path, cast: Json, problem: str) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_manifest(bundle, lambda manifest: manifest["members"][0].update(cast=cast))
    assert_fails(check(bundle), problem)


def test_own_file_with_values_that_are_not_finite_fails(tmp_path: Path) -> None:
    folder = make_adapter(tiny_llama, tmp_path / "one", seed=1, base="org/base", r=4)
    members = read_members({"one": folder})
    bundle = fuse(members, tmp_path / "bundle", top_k=1)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = sorted(tensors)[0]
    tensors[first][0, 0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    change_manifest(bundle, lambda manifest: manifest["members"][0].update(weights_sha256=hash_file(weights)))
    files = {"one": MemberFiles(folder / "adapter_config.json", weights)}
    record = verify_bundle(bundle, level=Level.SOURCE, sources=files)
    assert_fails(record, "the factors of `one` are not those of its own files")
