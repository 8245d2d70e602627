"""``diff`` of versions on the Hub: what is fetched, what is named, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.hub import LoopbackHub
from support.hub_commands import Workplace
from support.small_adapters import make_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BUNDLES = Path(__file__).parents[2] / "golden" / "1" / "bundles"


@pytest.fixture
def retrained(hub: LoopbackHub, legal: Path, tmp_path: Path) -> tuple[str, str]:
    """The commits of an adapter before and after it was trained again."""
    first = hub.repositories["org/legal"].head.oid
    folder = make_adapter(tmp_path / "retrained", seed=2000 + hub.generation, alpha=16)
    hub.push("org/legal", {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)})
    return first, hub.repositories["org/legal"].head.oid


def test_two_revisions_are_compared_and_named_by_their_commits(
    here: Workplace, retrained: tuple[str, str]
) -> None:
    first, second = retrained
    result = here.run("diff", f"org/legal@{first}", "org/legal", "--format", "json")
    assert (result.code, result.err) == (0, "")
    names = [result.data[side]["name"] for side in ("first", "second")]
    assert names == [f"`hf://org/legal@{commit}`" for commit in (first, second)]
    assert [change["key"] for change in result.data["config"]] == ["lora_alpha"]
    assert {module["change"] for module in result.data["modules"]} == {"changed"}


def test_folder_is_compared_with_the_hub(here: Workplace, legal: Path) -> None:
    result = here.run("diff", "org/legal", legal)
    assert result.code == 0
    assert "both have the same bytes" in result.out


def test_nothing_is_left_behind(here: Workplace, legal: Path) -> None:
    before = sorted(path.name for path in here.folder.iterdir())
    assert here.run("diff", "org/legal", legal).code == 0
    assert sorted(path.name for path in here.folder.iterdir()) == before
    here.assert_whole()


def test_bundle_on_the_hub_is_compared(here: Workplace, hub: LoopbackHub) -> None:
    hub.create("org/bundle", BUNDLES / "fitted-token")
    commit = hub.repositories["org/bundle"].head.oid
    result = here.run("diff", BUNDLES / "normal", "org/bundle", "--format", "json")
    assert (result.code, result.err) == (0, "")
    assert result.data["second"]["name"] == f"`org/bundle@{commit}`"
    assert {gate["change"] for gate in result.data["gates"]} >= {"changed"}


@pytest.mark.parametrize(
    ("source", "message"),
    [("org/absent", "org/absent"), ("org/legal@gone", "gone"), ("org/legal/elsewhere", "elsewhere")],
)
def test_what_the_hub_does_not_have_is_refused(
    here: Workplace, legal: Path, source: str, message: str
) -> None:
    result = here.run("diff", source, legal)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert message in result.err
