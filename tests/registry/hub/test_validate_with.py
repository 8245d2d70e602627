"""``validate --with org/name``: whether adapters would still fuse, by configs and headers from the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.hub import LoopbackHub
from support.hub_commands import Workplace
from support.small_adapters import make_adapter

GOLDEN = Path(__file__).parents[2] / "golden" / "1" / "bundles"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def bare(here: Workplace) -> Workplace:
    """A workplace without a catalog."""
    shutil.rmtree(here.home)
    return here


@pytest.fixture
def like_the_bundle(tmp_path: Path) -> Path:
    """An adapter for the base of the golden bundle, of modules that it does not have."""
    return make_adapter(tmp_path / "new", seed=3, base="org/base", targets=["up_proj"])


def fetched(hub: LoopbackHub, name: str) -> int:
    """Return the bytes that were sent of a file."""
    return sum(each.bytes_out for each in hub.requests if name in each.path and each.method == "GET")


def test_bundle_on_the_hub_is_compared_without_its_weights_and_without_a_catalog(
    bare: Workplace, hub: LoopbackHub, like_the_bundle: Path
) -> None:
    hub.create("org/bundle", GOLDEN / "arrow")
    hub.repositories["org/bundle"].tags["v2"] = hub.repositories["org/bundle"].head.oid
    for source in ("org/bundle", "org/bundle@v2", "hf://org/bundle@v2"):
        found = bare.run("validate", like_the_bundle, "--for", "fuse", "--with", source)
        assert found.code == 0, found.out + found.err
    other = make_adapter(bare.folder / "other", base="org/elsewhere", targets=["up_proj"])
    found = bare.run("validate", other, "--for", "fuse", "--with", "org/bundle@v2", "--format", "json")
    assert found.code == 1
    assert {each["code"] for each in found.data["together"]} == {"MR602", "MR605"}
    assert "`org/bundle@v2:" in found.data["together"][0]["found"]
    assert fetched(hub, WEIGHTS) == 0
    assert not bare.home.exists()


def test_adapter_on_the_hub_is_compared_by_its_header(
    bare: Workplace, hub: LoopbackHub, like_the_bundle: Path
) -> None:
    shipped = make_adapter(bare.folder / "shipped", seed=4, rank=16, targets=["q_proj"], layers=40)
    size = (shipped / WEIGHTS).stat().st_size
    hub.create("org/many", {f"legal/{path.name}": path.read_bytes() for path in shipped.iterdir()})
    found = bare.run("validate", like_the_bundle, "--for", "fuse", "--with", "org/many", "--format", "json")
    assert found.code == 0, found.err
    assert [each["code"] for each in found.data["together"]] == ["MR605"]
    assert 0 < fetched(hub, WEIGHTS) < size / 3


def test_equal_adapter_on_the_hub_is_known_by_its_listed_digest(
    bare: Workplace, hub: LoopbackHub, legal: Path
) -> None:
    found = bare.run("validate", legal, "--for", "fuse", "--with", "org/legal", "--format", "json")
    assert found.code == 1
    assert [each["code"] for each in found.data["together"]] == ["MR608"]


def test_repository_of_several_adapters_asks_for_one(
    bare: Workplace, hub: LoopbackHub, like_the_bundle: Path
) -> None:
    files = {
        f"{name}/{path.name}": path.read_bytes()
        for name in ("legal", "medical")
        for path in make_adapter(bare.folder / name, seed=len(name)).iterdir()
    }
    hub.create("org/many", files)
    found = bare.run("validate", like_the_bundle, "--with", "org/many")
    assert found.code == 2
    assert "`org/many` holds 2 adapters: `legal`, `medical`" in found.err
    assert "--with org/name@REVISION/FOLDER" in found.err
    assert bare.run("validate", like_the_bundle, "--with", "org/many/legal").code == 0


def test_bundle_whose_list_of_files_is_not_its_manifests_is_refused(
    bare: Workplace, hub: LoopbackHub, like_the_bundle: Path
) -> None:
    hub.create("org/bundle", GOLDEN / "arrow")
    hub.push("org/bundle", {WEIGHTS: b"other weights"})
    found = bare.run("validate", like_the_bundle, "--with", "org/bundle")
    assert found.code == 1
    assert "was changed" in found.err


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("org/absent", 1, "org/absent"),
        ("org/legal@no-such-branch", 1, "no-such-branch"),
        ("org/legal/below", 1, "has no adapter in `below`"),
    ],
)
def test_what_is_not_there_is_refused_in_words(
    bare: Workplace, hub: LoopbackHub, legal: Path, source: str, code: int, message: str
) -> None:
    found = bare.run("validate", legal, "--with", source)
    assert found.code == code
    assert message in found.err


def test_broken_adapter_on_the_hub_cannot_be_fused_with(
    bare: Workplace, hub: LoopbackHub, legal: Path, like_the_bundle: Path
) -> None:
    hub.push("org/legal", {"adapter_config.json": b'{"peft_type": "LORA"}'})
    found = bare.run("validate", like_the_bundle, "--for", "fuse", "--with", "org/legal", "--format", "json")
    assert found.code == 1
    assert "MR603" in [each["code"] for each in found.data["together"]]
