"""What a pull believes of a bundle's statements about itself, and what it leaves behind when it refuses."""

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
