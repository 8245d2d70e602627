"""Bundles from another party, with digests that agree, and what may be believed about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from meteora_registry.bundle.files import write_record
from meteora_registry.files.digests import hash_file
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.registry.workflows.uploads import bundle_upload
from meteora_registry.schemas.bundle import CONFIG_FILE, MANIFEST_FILE, VERIFICATION_FILE, WEIGHTS_FILE
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.document import canonical_json
from meteora_registry.schemas.errors import MeteoraError
from meteora_registry.schemas.verification import Level, Outcome
from support.members import files_of, fuse, read_members
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_llama_adapters, tiny_llama
from support.tampering import (
    Json,
    change_config,
    change_manifest,
    change_tensors,
    copy_bundle,
    make_digests_right,
)

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

QUERY = "model.layers.{}.self_attn.q_proj"


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the record of a pass at level source."""
    folder = tmp_path_factory.mktemp("genuine")
    members = read_members(make_llama_adapters(folder / "adapters", base="org/base"))[:2]
    bundle = fuse(members, folder / "bundle", top_k=2)
    write_record(bundle, verify_bundle(bundle, level=Level.SOURCE, sources=files_of(members)))
    return bundle


@pytest.fixture
def forged(genuine: Path, tmp_path: Path) -> Path:
    """A copy to forge, without a record."""
    return copy_bundle(genuine, tmp_path / "bundle")


def intact(bundle: Path) -> Outcome:
    """Return the outcome of a verification that needs nothing but the folder."""
    return verify_bundle(bundle, level=Level.INTEGRITY).outcome


@pytest.mark.parametrize("name", ["adapter_model.bin", "modeling_own.py", "config.json", "install.sh"])
def test_file_that_no_bundle_has_fails_even_when_it_is_listed(forged: Path, name: str) -> None:
    (forged / name).write_bytes(b"{}")
    listed = {"sha256": Digest.of_bytes(b"{}"), "size_bytes": 2}
    change_manifest(forged, lambda manifest: manifest["files"].update({name: listed}))
    assert intact(forged) is Outcome.FAIL


def test_signature_beside_a_bundle_does_not_break_it(forged: Path) -> None:
    (forged / "model.sig").write_bytes(b"{}")
    assert intact(forged) is Outcome.PASS


def test_edited_card_does_not_break_a_bundle(forged: Path) -> None:
    with (forged / "README.md").open("a") as card:
        card.write("\nA line of the publisher's own.\n")
    assert intact(forged) is Outcome.PASS


def reseal_record(genuine: Path, bundle: Path, change: Callable[[Json], None]) -> None:
    """Write a changed copy of the genuine record that agrees with the manifest and with itself."""
    record = json.loads((genuine / VERIFICATION_FILE).read_bytes())
    del record["record_sha256"]
    change(record)
    record["manifest_sha256"] = hash_file(bundle / MANIFEST_FILE)
    record["record_sha256"] = Digest.of_bytes(canonical_json(record))
    (bundle / VERIFICATION_FILE).write_bytes(canonical_json(record))


def test_bundle_with_its_own_record_is_ready_for_a_push(genuine: Path, forged: Path) -> None:
    # The control of the next test: writing a record anew is not what is refused there.
    reseal_record(genuine, forged, lambda record: None)
    assert VERIFICATION_FILE in bundle_upload(forged).files


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(problems=["all factors are wrong"]),
        lambda record: record.update(unchecked=["everything"]),
        lambda record: record.update(backends_run=[]),
        lambda record: record["backends_run"][0].update(max_error=9e9),
    ],
    ids=["problems", "unchecked parts", "no backend", "error above tolerance"],
)
def test_record_of_a_pass_that_contradicts_itself_is_refused_by_push(
    genuine: Path, forged: Path, change: Callable[[Json], Any]
) -> None:
    reseal_record(genuine, forged, change)
    with pytest.raises(MeteoraError):
        bundle_upload(forged)


def state_a_key_twice(bundle: Path) -> None:
    """Let the config name `top_k` twice, with different values."""
    path = bundle / CONFIG_FILE
    text = path.read_text()
    assert text.count('"top_k": 2') == 1
    path.write_text(text.replace('"top_k": 2', '"top_k": 2, "top_k": 1'))
    make_digests_right(bundle)


def state_another_format(bundle: Path) -> None:
    """Let the weights say that they are of format 2."""
    path = bundle / WEIGHTS_FILE
    save_file(load_file(path), path, metadata={"format": "pt", "meteora_format": "2"})
    make_digests_right(bundle)


def put_nan_into_a_gate(bundle: Path) -> None:
    """Make one value of one gate not a number."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(tensors) if name.endswith("meteora_gate"))
        tensors[name][0, 0] = float("nan")

    change_tensors(bundle, change)


def take_a_decision_from_a_later_module(bundle: Path) -> None:
    """Let a module of the first layer follow the decision of one in the second."""

    def change(config: Json) -> None:
        config["gate"]["sources"] = {QUERY.format(0): QUERY.format(1)}
        config["required_features"] = ["gate-sources"]

    change_config(bundle, change)
    gate = f"base_model.model.{QUERY.format(0)}.meteora_gate"
    change_tensors(bundle, lambda tensors: tensors.pop(gate))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "forge",
    [state_a_key_twice, state_another_format, put_nan_into_a_gate, take_a_decision_from_a_later_module],
    ids=["duplicate key", "another format", "gate not finite", "decision from a later module"],
)
def test_loader_refuses_what_can_be_seen_cheaply(forged: Path, forge: Callable[[Path], None]) -> None:
    forge(forged)
    with pytest.raises(MeteoraError):
        PeftModel.from_pretrained(tiny_llama(), forged)
