"""Adapters and members in a real engine: served as `validate --for vllm` predicts, and as PEFT loads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.extraction import extract_member
from meteora_registry.registry.face import Registry
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_adapter
from support.vllm_matrix import AS_PEFT, LLAMA, ServedRow, Subject, row_of, served, subjects
from support.vllm_rows import read_rows

from .conftest import BASE_NAME, Served

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

ROWS = {row.name: row for row in read_rows() if row.base == LLAMA.name}
SUBJECTS = {
    f"{each.kind.name}: {each.name}": each for each in subjects() if f"{each.kind.name}: {each.name}" in ROWS
}
# Loaded for the tests of bundles: different in rank, scaling and targets.
MEMBERS = {
    "wide": {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ["k_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj", "gate_proj"],
        "rank_pattern": {"o_proj": 6},
        "alpha_pattern": {"gate_proj": 3},
    },
}


@pytest.fixture(scope="module")
def bundle(llama: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the members with their own files beside it."""
    folder = tmp_path_factory.mktemp("bundle")
    with Registry(folder / "home") as registry:
        for seed, (name, options) in enumerate(MEMBERS.items()):
            made = make_adapter(LLAMA.model, folder / name, seed=seed, base=BASE_NAME, **options)
            registry.add(made, name=name)
        registry.fuse(list(MEMBERS), folder / "bundle", base_folder=llama.base, with_experts=True)
    return folder / "bundle"


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_adapter_is_served_as_its_committed_row_states(name: str, llama: Served, tmp_path: Path) -> None:
    subject: Subject = SUBJECTS[name]
    expected: ServedRow = ROWS[name]
    assert row_of(llama.engine, subject, tmp_path / "adapter", llama.base) == expected


@pytest.mark.parametrize("member", MEMBERS)
def test_files_beside_a_bundle_are_served_as_peft_loads_them(
    member: str, llama: Served, bundle: Path
) -> None:
    assert served(llama.engine, LLAMA, bundle / "experts" / member) == (AS_PEFT, "")


@pytest.mark.parametrize("member", MEMBERS)
def test_extracted_member_is_served_as_peft_loads_it(
    member: str, llama: Served, bundle: Path, tmp_path: Path
) -> None:
    extract_member(Bundle.open(bundle), member, tmp_path / member)
    assert served(llama.engine, LLAMA, tmp_path / member) == (AS_PEFT, "")
