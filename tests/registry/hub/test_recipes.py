"""Recipes whose members are named by the repository on the Hub that they were added from."""

from __future__ import annotations

import json
import re
from pathlib import Path

from support.hub import LoopbackHub
from support.hub_commands import Workplace
from support.small_adapters import make_adapter


def members_of(here: Workplace, *adapters: str) -> list[str]:
    result = here.run("fuse", *adapters, "--dry-run", "--format", "json")
    assert result.code == 0, result.err
    return [member["adapter"] for member in json.loads(result.out)["members"]]


def test_member_is_found_by_its_repository_and_commit(
    hub: LoopbackHub, here: Workplace, legal: Path, tmp_path: Path
) -> None:
    first = hub.repositories["org/legal"].head.oid
    here.run("add", "org/legal", "--name", "law")
    other = make_adapter(tmp_path / "other", seed=1)
    hub.push("org/legal", {path.name: path.read_bytes() for path in other.iterdir()})
    here.run("add", "org/legal", "--name", "law")
    assert members_of(here, "org/legal") == ["law@2"]
    assert members_of(here, f"org/legal@{first}") == ["law@1"]
    assert members_of(here, f"hf://org/legal@{first}") == ["law@1"]
    for unknown in ("org/lega", "org/legal@main", f"org/legal@{first[:7]}", f"org/legal@{first}/sub"):
        assert here.run("fuse", unknown, "--dry-run").code == 1, unknown


def test_recipe_in_a_card_fuses_the_same_bundle_in_another_catalog(
    hub: LoopbackHub, here: Workplace, legal: Path, tmp_path: Path
) -> None:
    make_adapter(tmp_path / "medical", seed=1)
    commit = hub.repositories["org/legal"].head.oid
    here.run("add", "org/legal", "--name", "law", "--base", "org/base")
    here.run("add", str(tmp_path / "medical"), "--base", "org/base")
    recipe = tmp_path / "written.toml"
    fused = here.run(
        "fuse", "org/legal", "medical", "--out", str(tmp_path / "one"), "--write-recipe", str(recipe)
    )
    assert fused.code == 0, fused.err
    assert f'"org/legal@{commit}"' in recipe.read_text()
    card = (tmp_path / "one" / "README.md").read_text()
    assert f'{{adapter = "org/legal@{commit}", name = "law"}}' in card
    quoted = re.search(r"## Recipe\n.*?```toml\n(.*?)```", card, re.DOTALL)
    assert quoted is not None
    (tmp_path / "quoted.toml").write_text(quoted[1])
    elsewhere = ("--home", str(tmp_path / "another"))
    here.run(*elsewhere, "add", "org/legal", "--base", "org/base")
    here.run(*elsewhere, "add", str(tmp_path / "medical"), "--base", "org/base")
    again = here.run(
        *elsewhere, "fuse", "--recipe", str(tmp_path / "quoted.toml"), "--out", str(tmp_path / "two")
    )
    assert again.code == 0, again.err
    for name in ("adapter_model.safetensors", "meteora_manifest.json", "README.md"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
