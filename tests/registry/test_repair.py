"""``repair``: names that PEFT ignores become PEFT's, and no number changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.repair import repair
from support.small_adapters import make_adapter

PREFIX = "base_model.model."


def rename_tensors(folder: Path, old: str, new: str) -> Path:
    path = folder / "adapter_model.safetensors"
    renamed = {name.replace(old, new, 1): value for name, value in load_file(path).items()}
    save_file(renamed, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(PREFIX, "", id="no prefix"),
        pytest.param(PREFIX, f"_orig_mod.{PREFIX}", id="compiled"),
        pytest.param(".self_attn.", "._fsdp_wrapped_module.self_attn.", id="FSDP"),
        pytest.param(PREFIX, f"thinker.{PREFIX}", id="foreign prefix"),
        pytest.param(PREFIX, f"{PREFIX}{PREFIX}", id="twice"),
        pytest.param(".weight", ".default.weight", id="adapter's name"),
    ],
)
def test_repaired_copy_has_pefts_names_and_the_same_numbers(old: str, new: str, tmp_path: Path) -> None:
    plain = make_adapter(tmp_path / "plain")
    marked = rename_tensors(make_adapter(tmp_path / "marked", card="about"), old, new)
    repaired = repair(marked, tmp_path / "repaired")
    assert (repaired.renamed, str(repaired.verdict)) == (8, "sound, fusable")
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (repaired.folder, plain))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    with safe_open(repaired.folder / "adapter_model.safetensors", framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    config = (repaired.folder / "adapter_config.json").read_bytes()
    assert config == (marked / "adapter_config.json").read_bytes()
    assert (repaired.folder / "README.md").read_text() == "about"


def test_marked_names_are_broken_for_use_and_accepted_for_fuse(
    tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rename_tensors(make_adapter(tmp_path / "marked"), PREFIX, "")
    assert str(inspect_adapter(folder).verdict) == "broken for use, fusable"
    assert run(["validate", str(folder)]) == 1
    assert "meteora-registry repair" in capsys.readouterr().out
    assert run(["validate", str(folder), "--for", "fuse"]) == 0
    assert run(["add", str(folder)]) == 0
    assert run(["repair", str(folder), "--out", str(tmp_path / "repaired")]) == 0
    assert run(["validate", str(tmp_path / "repaired")]) == 0


def test_adapter_that_names_do_not_help_is_refused(
    tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = rename_tensors(make_adapter(tmp_path / "broken", lora_alpha=0), PREFIX, "")
    assert run(["repair", str(broken), "--out", str(tmp_path / "out")]) == 1
    assert "other names do not help" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_that_are_pefts_leave_nothing_to_repair(
    tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["repair", str(make_adapter(tmp_path / "good")), "--out", str(tmp_path / "out")]) == 2
    assert "have PEFT's names already" in capsys.readouterr().err
