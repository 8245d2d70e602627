"""Adapters of expert weights in the catalog: added, found, shown, and refused by a fuse with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from support.expert_adapters import both_parameters


def test_adapter_of_experts_is_catalogued_found_and_shown_and_fuse_names_the_reason(
    tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["add", str(both_parameters(tmp_path / "experts"))]) == 0
    capsys.readouterr()
    assert run(["search", "--target", "gate_up_proj", "--min-rank", "8", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["adapters"]
    assert found["name"] == "experts"
    assert run(["show", "experts", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(each["kind"], each["min_rank"], each["max_rank"]) for each in shown["targets"]] == [
        ("down_proj", 4, 4),
        ("gate_up_proj", 8, 8),
    ]
    assert run(["fuse", "experts", "--out", str(tmp_path / "bundle")]) == 1
    assert "MR326 The file adapts the experts of a mixture model" in capsys.readouterr().err


def test_adapter_of_experts_is_extracted_as_it_was_added(tmp_path: Path, home: Home) -> None:
    folder = both_parameters(tmp_path / "experts")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(["add", str(folder)]) == 0
    assert run(["extract", "experts@1", "--out", str(tmp_path / "again")]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == files
