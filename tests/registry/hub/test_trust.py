"""A bundle's statements about itself: how far pull and push believe them, and what a refusal leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from meteora_registry.bundle.files import write_record
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.schemas.bundle import VERIFICATION_FILE
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.verification import Level
from support.hub import LoopbackHub
from support.hub_commands import Workplace
from support.tampering import Json, Tensors, change_manifest, change_tensors

GOLDEN = Path(__file__).parents[2] / "golden" / "1" / "bundles"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of an old bundle, to forge."""
    return shutil.copytree(GOLDEN / "arrow", tmp_path / "bundle")


def claim_a_pass(bundle: Path) -> None:
    """Write the record of a verification at level source that passed, whatever the bundle is now."""
    record = json.loads((bundle / VERIFICATION_FILE).read_bytes())
    found = verify_bundle(bundle, level=Level.INTEGRITY)
    del record["record_sha256"]
    write_record(
        bundle,
        type(found)
        .from_value(record, what="record")
        .model_copy(update={"manifest_sha256": found.manifest_sha256}),
    )


def negate_one_member(bundle: Path) -> None:
    """Turn the factors of the first member against it, with its genuine digests in the manifest."""

    def change(tensors: Tensors) -> None:
        for name, found in tensors.items():
            if name.endswith("meteora_B"):
                found[:4] *= -5

    change_tensors(bundle, change)
    claim_a_pass(bundle)


def pull(here: Workplace, hub: LoopbackHub, bundle: Path, *, code: int) -> Any:
    hub.create("org/bundle", bundle)
    result = here.run("pull", "org/bundle", "--out", "pulled", "--name", "pulled")
    assert result.code == code, result.err
    return result


def assert_nothing_is_left(here: Workplace) -> None:
    assert sorted(path.name for path in here.folder.iterdir()) == ["home"]
    assert here.run("list", "--format", "json").data == {"adapters": [], "bundles": []}
    assert here.blobs() == set()
    here.assert_whole()


def test_factors_that_are_not_those_of_the_quoted_digests_are_refused(
    hub: LoopbackHub, here: Workplace, bundle: Path
) -> None:
    negate_one_member(bundle)
    refused = pull(here, hub, bundle, code=1)
    assert "are not those of the file that the manifest names" in refused.err
    assert_nothing_is_left(here)
    pushed = here.run("push", bundle, "org/copy")
    assert (pushed.code, "is not intact: the factors of member" in pushed.err) == (1, True)
    assert "org/copy" not in hub.repositories


def test_factors_are_compared_with_the_digests_where_the_members_are_known(
    hub: LoopbackHub, here: Workplace, bundle: Path
) -> None:
    # A genuine copy first: its members are then in the catalog, by the digests that the forgery quotes.
    pull(here, hub, GOLDEN / "arrow", code=0)
    negate_one_member(bundle)
    hub.create("org/forged", bundle)
    assert here.run("pull", "org/forged").code == 1


def test_members_that_cannot_be_compared_are_named_and_not_taken_for_catalogued_ones(
    hub: LoopbackHub, here: Workplace
) -> None:
    pulled = pull(here, hub, GOLDEN / "cast-bfloat16", code=0)
    assert "note: not compared with the digests of their own files" in pulled.err
    shown = here.run("show", "pulled", "--format", "json").data
    names = [member["name"] for member in shown["members"] if member["adapter"] is None]
    assert names
    assert pulled.err.splitlines()[0].endswith(f": {', '.join(names)}")


def test_record_that_came_with_a_bundle_is_kept_as_a_claim(hub: LoopbackHub, here: Workplace) -> None:
    pull(here, hub, GOLDEN / "arrow", code=0)
    commit = hub.repositories["org/bundle"].head.oid
    made = here.run("show", "pulled", "--format", "json").data["verifications"]
    assert [(each["level"], each["claimed_by"]) for each in made] == [
        ("source", f"org/bundle@{commit}"),
        ("integrity", None),
    ]


def test_broken_member_is_refused_before_anything_is_kept(
    hub: LoopbackHub, here: Workplace, bundle: Path
) -> None:
    def misstate(manifest: Json) -> None:
        # PEFT would fail to load it; ranks and scalings can be worked out all the same.
        member = manifest["members"][-1]
        config = json.loads(member["config_text"]) | {"target_modules": "["}
        member["config_text"] = json.dumps(config)
        member["config_sha256"] = Digest.of_bytes(member["config_text"].encode())

    change_manifest(bundle, misstate)
    claim_a_pass(bundle)
    refused = pull(here, hub, bundle, code=1)
    assert "is broken" in refused.err
    assert_nothing_is_left(here)


FOREIGN = {
    "adapter_model.bin": b"\x80\x04cos\nsystem\n",
    "config.json": b'{"auto_map": {"AutoModelForCausalLM": "modeling_own.Model"}}',
    "modeling_own.py": b"raise SystemExit",
    "pictures/routing.png": b"\x89PNG",
    "experts/notes.txt": b"notes",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_file_that_no_bundle_has_is_refused_where_the_manifest_lists_it(
    hub: LoopbackHub, here: Workplace, bundle: Path, name: str
) -> None:
    path = bundle / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(FOREIGN[name])
    listed = {"sha256": Digest.of_bytes(FOREIGN[name]), "size_bytes": len(FOREIGN[name])}
    change_manifest(bundle, lambda manifest: manifest["files"].update({name: listed}))
    claim_a_pass(bundle)
    problem = f"the manifest lists `{name}`, and a bundle of format 1 has no such file"
    requests = len(hub.requests)
    assert problem in pull(here, hub, bundle, code=1).err
    # Neither it nor the weights were asked for.
    asked = [request.path for request in hub.requests[requests:]]
    assert [
        path for path in asked if "/resolve/" in path and path.endswith((f"/{name}", ".safetensors"))
    ] == []
    assert_nothing_is_left(here)
    pushed = here.run("push", bundle, "org/copy")
    assert (pushed.code, problem in pushed.err) == (1, True)


def test_files_beside_a_bundle_on_the_hub_are_named_and_left_alone(
    hub: LoopbackHub, here: Workplace, bundle: Path
) -> None:
    hub.create("org/bundle", bundle)
    hub.push("org/bundle", dict(FOREIGN))
    pulled = here.run("pull", "org/bundle", "--out", "pulled")
    assert f"not part of the bundle: {', '.join(sorted(FOREIGN))}" in pulled.err
    assert {path.name for path in (here.folder / "pulled").iterdir()} == {
        path.name for path in bundle.iterdir()
    }
    nothing = here.run("push", "pulled", "org/bundle")
    assert nothing.out.startswith("nothing to do: org/bundle@")
    assert here.run("push", GOLDEN / "normal", "org/bundle").code == 0
    files = hub.repositories["org/bundle"].head.files
    assert {name: files[name].data for name in FOREIGN} == FOREIGN
    assert files["adapter_config.json"].data == (GOLDEN / "normal" / "adapter_config.json").read_bytes()


def test_members_of_an_earlier_bundle_do_not_stay_beside_the_next(hub: LoopbackHub, here: Workplace) -> None:
    hub.create("org/bundle", GOLDEN / "experts")
    assert here.run("push", GOLDEN / "arrow", "org/bundle").code == 0
    files = hub.repositories["org/bundle"].head.files
    assert [name for name in files if name.startswith("experts/")] == []


def test_changed_card_is_a_warning_on_pull_and_asks_for_a_word_on_push(
    hub: LoopbackHub, here: Workplace, bundle: Path
) -> None:
    hub.create("org/bundle", bundle)
    own = b"# Ours\n"
    hub.push("org/bundle", {"README.md": own})
    pulled = here.run("pull", "org/bundle", "--out", "pulled")
    assert pulled.code == 0, pulled.err
    assert "warning: the card was changed after the bundle was made: `README.md` has 7 bytes" in pulled.err
    assert (here.folder / "pulled" / "README.md").read_bytes() == own
    # What a person wrote on the Hub is not replaced, and what one wrote here is not published, unasked.
    refused = here.run("push", bundle, "org/bundle")
    assert (refused.code, "the card of `org/bundle` was edited on the Hub" in refused.err) == (1, True)
    refused = here.run("push", "pulled", "org/other")
    assert (refused.code, "`pulled`: the card was changed" in refused.err) == (1, True)
    assert "org/other" not in hub.repositories
    for source, repository in (("pulled", "org/other"), (bundle, "org/bundle")):
        assert here.run("push", source, repository, "--overwrite-card").code == 0
    assert hub.repositories["org/other"].head.files["README.md"].data == own
    assert hub.repositories["org/bundle"].head.files["README.md"].data == (bundle / "README.md").read_bytes()


def test_card_that_was_not_edited_goes_with_the_next_bundle(hub: LoopbackHub, here: Workplace) -> None:
    hub.create("org/bundle", GOLDEN / "arrow")
    assert here.run("push", GOLDEN / "normal", "org/bundle").code == 0
    found = hub.repositories["org/bundle"].head.files["README.md"].data
    assert found == (GOLDEN / "normal" / "README.md").read_bytes()


@pytest.mark.parametrize("size_bytes", [None, (4 << 20) + 1], ids=["missing", "too long"])
def test_bundle_without_a_readable_card_is_pulled_without_one(
    hub: LoopbackHub, here: Workplace, bundle: Path, size_bytes: int | None
) -> None:
    hub.create("org/bundle", bundle)
    hub.push("org/bundle", {"README.md": None if size_bytes is None else b"#" * size_bytes})
    pulled = here.run("pull", "org/bundle", "--out", "pulled")
    assert pulled.code == 0, pulled.err
    assert "warning: the card was changed after the bundle was made: `README.md` is missing" in pulled.err
    assert not (here.folder / "pulled" / "README.md").exists()
