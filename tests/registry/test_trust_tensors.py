"""``--trust-tensors``: modules that a config does not declare are fused when asked for, and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.schemas.manifest import Manifest
from support.small_adapters import make_adapter


@pytest.fixture
def undeclared(tmp_path: Path) -> Path:
    """An adapter of two projections that declares one."""
    return make_adapter(tmp_path / "undeclared", target_modules=["q_proj"])


def test_undeclared_modules_are_refused_unless_the_tensors_are_trusted(undeclared: Path, home: Home) -> None:
    assert run(["validate", str(undeclared)]) == 1
    assert run(["validate", str(undeclared), "--for", "fuse"]) == 1
    assert run(["validate", str(undeclared), "--for", "fuse", "--trust-tensors"]) == 0
    assert run(["validate", str(undeclared), "--for", "use", "--trust-tensors"]) == 1


def test_fuse_takes_undeclared_modules_when_asked_and_the_manifest_records_it(
    undeclared: Path, tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_adapter(tmp_path / "other", seed=1)
    assert run(["add", str(undeclared), str(other)]) == 0
    fuse = ["fuse", "undeclared", "other", "--out", str(tmp_path / "bundle")]
    assert run(fuse) == 1
    assert "`--trust-tensors` takes the modules all the same" in capsys.readouterr().err
    assert run([*fuse, "--trust-tensors"]) == 0
    text = (tmp_path / "bundle" / "meteora_manifest.json").read_bytes()
    assert [member.trusts_tensors for member in Manifest.read(text).members] == [True, False]
    assert ["trusts_tensors" in member for member in json.loads(text)["members"]] == [True, False]


def test_recipe_states_that_tensors_are_trusted(undeclared: Path, tmp_path: Path, home: Home) -> None:
    assert run(["add", str(undeclared)]) == 0
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('meteora_recipe = 1\ntrust_tensors = true\n[[members]]\nadapter = "undeclared"\n')
    assert run(["fuse", "--recipe", str(recipe), "--dry-run"]) == 0
    recipe.write_text('meteora_recipe = 1\n[[members]]\nadapter = "undeclared"\n')
    assert run(["fuse", "--recipe", str(recipe), "--dry-run"]) == 1
