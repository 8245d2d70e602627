"""``search-hub`` and ``refresh``: what is there for a base, and what moved on."""

from __future__ import annotations

from pathlib import Path

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import Home
from meteora_registry.schemas.manifest import Origin
from support.catalogued import new_adapter
from support.hub import LoopbackHub
from support.hub_commands import Workplace
from support.small_adapters import make_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TAGS = ["peft", "base_model:adapter:org/base"]


def test_search_lists_rank_and_size_from_headers_and_adds_the_chosen(
    hub: LoopbackHub, here: Workplace, tmp_path: Path
) -> None:
    large = make_adapter(tmp_path / "large", rank=1024, seed=hub.generation)
    hub.create("org/small", make_adapter(tmp_path / "small", rank=4), meta=TAGS)
    hub.create("org/large", large, meta=TAGS)
    hub.create("org/gated", make_adapter(tmp_path / "gated"), meta=TAGS, gated=True)
    hub.create("org/elsewhere", make_adapter(tmp_path / "elsewhere"), meta=["peft"])
    found = here.run("search-hub", "--base", "org/base", "--format", "json").data
    assert [(each["repository"], each["max_rank"], each["size_bytes"]) for each in found] == [
        ("org/small", 4, (tmp_path / "small" / WEIGHTS).stat().st_size),
        ("org/large", 1024, (large / WEIGHTS).stat().st_size),
        ("org/gated", None, None),
    ]
    assert found[2]["problem"] == "`org/gated` is gated: its owner decides who may read it (403)"
    assert hub.bytes_over_the_wire < (large / WEIGHTS).stat().st_size / 2
    added = here.run("search-hub", "--base", "org/base", "--add", "2")
    assert added.out.splitlines()[-1] == "added: large@1 (sound, fusable)"
    beyond = here.run("search-hub", "--base", "org/base", "--add", "4")
    assert (beyond.code, beyond.err) == (2, "error: the list has 3 adapters, found `--add 4`\n")


def test_refresh_says_what_moved_on_and_what_changed(
    hub: LoopbackHub, here: Workplace, tmp_path: Path
) -> None:
    names = ("same", "touched", "changed", "gone", "local")
    folders = {name: make_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(names)}
    for name in names[:-1]:
        hub.create(f"org/{name}", folders[name])
    assert here.run("add", *(f"org/{name}" for name in names[:-1]), folders["local"]).code == 0
    hub.push("org/touched", {"notes.md": b"notes"})
    other = make_adapter(tmp_path / "other", rank=8)
    hub.push("org/changed", {name: (other / name).read_bytes() for name in (CONFIG, WEIGHTS)})
    del hub.repositories["org/gone"]
    hub.requests.clear()
    result = here.run("refresh", "--format", "json")
    assert result.code == 0
    found = {each["version"]["name"]: (each["state"], each["changes"]) for each in result.data}
    assert found == {
        "same": ("current", []),
        "touched": ("same files", []),
        "changed": (
            "changed",
            [f"{CONFIG}: r: 4 -> 8", f"{WEIGHTS}: 4608 bytes, now {(other / WEIGHTS).stat().st_size}"],
        ),
        "gone": ("gone", ["the Hub has no repository `org/gone`, or none that you may see (404)"]),
    }
    assert [request for request in hub.requests if request.path.startswith("/storage/")] == []
    assert here.run("add", "org/changed").out == "added: changed@2 (sound, fusable)\n"
    shown = here.run("refresh", "changed")
    assert shown.out.splitlines()[1].split()[1] == "current"


def test_refresh_says_which_origin_cannot_be_read(here: Workplace) -> None:
    origin = Origin(kind="hub", location="hf://nothing@abc", commit="abc")
    with Catalog.open(Home(here.home)) as catalog:
        catalog.add_version(new_adapter(origin=origin))
    result = here.run("refresh")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: `legal@1` came from `hf://nothing@abc`, which cannot be read\n"
