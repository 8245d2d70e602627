"""A bundle's statements about itself: how far pull and push believe them, and what a refusal leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from meteora_registry.bundle import Bundle
from meteora_registry.bundle.card_sections import without_sections
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import Home
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.evaluation import EvaluationSummary
from support.evaluations import make_evaluation
from support.hub import LoopbackHub, make_file
from support.hub_commands import Workplace, workplace
from support.small_adapters import make_adapter
from support.tampering import Json, Tensors, change_manifest, change_tensors, flip_byte
from support.trust import claim_a_pass

GOLDEN = Path(__file__).parents[2] / "golden" / "1" / "bundles"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of an old bundle, to forge."""
    return shutil.copytree(GOLDEN / "arrow", tmp_path / "bundle")


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


def make_up_training_state(bundle: Path) -> None:
    """Quote a tensor of each member that no bundle holds, so that no file can be written again."""

    def change(manifest: Json) -> None:
        for member in manifest["members"]:
            header = json.loads(member["weights_header"])
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max(entry["data_offsets"][1] for entry in entries.values())
            module = next(iter(entries)).partition(".lora_")[0]
            state = {"dtype": "F32", "shape": [4], "data_offsets": [end, end + 16]}
            text = json.dumps(header | {f"{module}.lora_velora_projection": state})
            member.update(weights_header=text, weights_bytes=8 + len(text) + end + 16)

    change_manifest(bundle, change)
    claim_a_pass(bundle)


@pytest.mark.parametrize("made_up", [False, True], ids=["cast", "made-up training state"])
def test_members_that_cannot_be_compared_are_named_and_not_taken_for_catalogued_ones(
    hub: LoopbackHub, here: Workplace, bundle: Path, made_up: bool
) -> None:
    if made_up:
        make_up_training_state(bundle)
    pulled = pull(here, hub, bundle if made_up else GOLDEN / "cast-bfloat16", code=0)
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
    pushed = here.run("push", bundle, "org/copy")
    assert (pushed.code, "is broken" in pushed.err) == (1, True)
    assert "org/copy" not in hub.repositories


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


def evaluate(here: Workplace, bundle: Path, items: int) -> None:
    """Record that the routing answered half of so many items, and the members all of them."""
    scores = {"routed": {"legal": [1.0, 0.0] * items}, "member": {"legal": [1.0, 1.0] * items}}
    summary = EvaluationSummary.of(make_evaluation(scores))
    with Catalog.open(Home(here.home)) as catalog:
        assert catalog.record_evaluation(Bundle(bundle).manifest_sha256, summary)


def test_evaluation_goes_on_the_card_and_is_not_an_edit_of_it(hub: LoopbackHub, here: Workplace) -> None:
    hub.create("org/bundle", GOLDEN / "arrow")
    assert here.run("pull", "org/bundle", "--out", "pulled").code == 0
    own = (GOLDEN / "arrow" / "README.md").read_bytes()
    for items in (1, 2):
        evaluate(here, here.folder / "pulled", items)
        assert here.run("push", "pulled", "org/bundle").code == 0
        card = hub.repositories["org/bundle"].head.files["README.md"].data
        assert b"50.0 % of the score of its members" in card
        assert f"| `legal` | exact | {2 * items} | 50.0 | 100.0 |".encode() in card
        assert without_sections(card) == own
        assert here.run("push", "pulled", "org/bundle").out.startswith("nothing to do: ")
    assert (here.folder / "pulled" / "README.md").read_bytes() == own
    # Elsewhere it is the card of the bundle; a push from there does not repeat what was not measured there.
    again = here.run("pull", "org/bundle", "--out", "again", "--name", "again")
    assert (again.code, "card" in again.err) == (0, False)
    assert b"## Evaluation" in (here.folder / "again" / "README.md").read_bytes()
    assert here.run("--home", "other", "push", "again", "org/other").code == 0
    assert hub.repositories["org/other"].head.files["README.md"].data == own


def test_examples_go_on_the_card_and_are_not_an_edit_of_it(
    hub: LoopbackHub, here: Workplace, bundle: Path
) -> None:
    (here.folder / "examples.jsonl").write_text('{"prompt": "What is 2?", "response": "two"}\n')
    assert here.run("push", bundle, "org/bundle", "--examples", "examples.jsonl").code == 0
    card = hub.repositories["org/bundle"].head.files["README.md"].data
    assert b"```text\nWhat is 2?\n```" in card
    pulled = here.run("pull", "org/bundle", "--out", "pulled")
    assert (pulled.code, "the card was changed" in pulled.err) == (0, False)
    assert (here.folder / "pulled" / "README.md").read_bytes() == card
    assert here.run("push", "pulled", "org/bundle").out.startswith("nothing to do")
    assert here.run("push", bundle, "org/bundle").code == 0
    assert b"What is 2?" not in hub.repositories["org/bundle"].head.files["README.md"].data


def test_examples_of_another_shape_send_nothing(hub: LoopbackHub, here: Workplace, bundle: Path) -> None:
    (here.folder / "examples.jsonl").write_text('{"text": "from the data of a fit"}\n')
    refused = here.run("push", bundle, "org/bundle", "--examples", "examples.jsonl")
    assert refused.code == 1
    assert refused.err == (
        'error: `examples.jsonl, line 1` has text, expected {"prompt": "...", "response": "..."}\n'
    )
    assert "org/bundle" not in hub.repositories


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


@pytest.fixture
def published(hub: LoopbackHub, here: Workplace, tmp_path: Path) -> Workplace:
    """Another person's workplace; ``org/bundle`` was fused here of adapters from the Hub, and pushed."""
    for seed, name in enumerate(("legal", "medical")):
        # Weights of their own, which the machine's cache cannot have from another test.
        card = "---\nlicense: mit\n---\n"
        adapter = make_adapter(tmp_path / name, seed=1000 * hub.generation + seed, card=card)
        hub.create(f"org/{name}", adapter)
    for words in (
        ("add", "org/legal", "org/medical"),
        ("fuse", "legal", "medical", "--out", "bundle"),
        ("push", "bundle", "org/bundle"),
    ):
        result = here.run(*words)
        assert result.code == 0, result.err
    catalog = tmp_path / "there" / "empty" / "catalog.db"
    catalog.parent.mkdir(parents=True)
    with Catalog.open(Home(catalog.parent)):
        pass
    return workplace(tmp_path / "there" / "place", here.machine, catalog)


def test_members_of_a_pulled_bundle_take_no_name_and_their_origins_are_claims(
    hub: LoopbackHub, published: Workplace, tmp_path: Path
) -> None:
    own = make_adapter(tmp_path / "own", seed=7)
    assert published.run("add", own, "--name", "legal").code == 0
    assert published.run("pull", "org/bundle", "--name", "theirs").code == 0
    names = [each["name"] for each in published.run("list", "--format", "json").data["adapters"]]
    assert names == ["legal", "theirs:legal", "theirs:medical"]
    claim = f"org/bundle@{hub.repositories['org/bundle'].head.oid}"
    shown = published.run("show", "theirs:medical")
    origin = f"hf://org/medical@{hub.repositories['org/medical'].head.oid}"
    assert f"hub {origin} (claimed by {claim})" in shown.out
    assert published.run("show", "theirs:medical@1", "--format", "json").data["claimed_by"] == claim
    assert f"nothing: claimed by {claim}" in published.run("show", "theirs").out
    members = published.run("show", "theirs", "--format", "json").data["verifications"]
    assert [(each["claimed_by"], each["established"]) for each in members] == [
        (claim, []),
        (None, ["intact"]),
    ]
    (line,) = [line for line in published.run("list").out.splitlines() if line.startswith("theirs ")]
    assert "  not fitted  intact  " in line
    # Only the bundle claims that they are from there, so nothing there is asked.
    assert "theirs" not in published.run("refresh").out
    # A name of one's own can be given to it later, and a next version does not become the other's.
    assert published.run("add", own, "--name", "theirs:legal").code == 2


def test_bundle_that_was_pulled_is_not_a_witness_of_itself(hub: LoopbackHub, published: Workplace) -> None:
    pulled = published.run("pull", "org/bundle", "--out", "bundle")
    assert "established here: intact\n" in pulled.out
    assert "not established: from its members, attached to its base\n" in pulled.out
    checked = published.run("verify", "bundle", "--level", "source")
    claim = f"org/bundle@{hub.repositories['org/bundle'].head.oid}"
    assert checked.code == 3
    assert (
        "not checked: that member `legal` is from its own files: those that are at hand came with the bundle "
        f"`{claim}`\n" in checked.out
    )
    assert "established here  nothing" in checked.out


def test_members_that_are_fetched_from_where_they_are_said_to_be_from_are_witnesses(
    hub: LoopbackHub, published: Workplace
) -> None:
    assert published.run("pull", "org/bundle", "--out", "bundle").code == 0
    checked = published.run("verify", "bundle", "--level", "source", "--refetch")
    assert checked.code == 0, checked.out
    assert "established here  intact, from its members\n" in checked.out
    # From now on that is known here, without asking again.
    assert published.run("show", "bundle:legal", "--format", "json").data["claimed_by"] is None
    assert published.run("verify", "bundle", "--level", "source").code == 0
    events = published.run("history", "bundle:legal", "--format", "json").data["events"]
    assert [each["action"] for each in events] == ["confirm", "add"]
    assert "from its members" in published.run("list").out


def test_licence_that_the_origin_does_not_state_stays_a_claim(hub: LoopbackHub, published: Workplace) -> None:
    assert published.run("pull", "org/bundle", "--out", "bundle").code == 0
    claim = f"(claimed by org/bundle@{hub.repositories['org/bundle'].head.oid})"
    # The card at the commit that the manifest names, as if the bundle's maker had written another licence.
    files = hub.repositories["org/legal"].head.files
    files["README.md"] = make_file("README.md", b"---\nlicense: cc-by-nc-4.0\n---\n")
    checked = published.run("verify", "bundle", "--level", "source", "--refetch")
    assert checked.code == 0, checked.out
    note = "the bundle claims the licence `mit` for member `legal`, its origin states `cc-by-nc-4.0`"
    assert f"note: {note}\n" in checked.out
    shown = published.run("show", "bundle:legal").out
    assert f"mit {claim}\n" in shown
    assert f"@{hub.repositories['org/legal'].head.oid} {claim}\n" in shown
    assert claim not in published.run("show", "bundle:medical").out


def test_member_whose_origin_cannot_be_had_is_not_called_from_its_members(
    hub: LoopbackHub, published: Workplace
) -> None:
    assert published.run("pull", "org/bundle", "--out", "bundle").code == 0
    del hub.repositories["org/legal"]
    checked = published.run("verify", "bundle", "--level", "source", "--refetch")
    assert checked.code == 3
    assert "note: member `legal` was not fetched from its origin: the Hub has no repository" in checked.out
    assert "not checked: that member `legal` is from its own files" in checked.out
    claims = [
        published.run("show", f"bundle:{each}", "--format", "json").data for each in ("legal", "medical")
    ]
    assert [each["claimed_by"] is None for each in claims] == [False, True]


def test_origin_that_has_other_files_fails(hub: LoopbackHub, published: Workplace, tmp_path: Path) -> None:
    assert published.run("pull", "org/bundle", "--out", "bundle").code == 0
    # The same name, the same sizes, other numbers; the commit is the one that the manifest names.
    repository = hub.repositories["org/legal"]
    other = make_adapter(tmp_path / "other", seed=99)
    files = repository.head.files
    name = "adapter_model.safetensors"
    files[name] = make_file(name, (other / name).read_bytes())
    shutil.rmtree(published.machine.hub_home, ignore_errors=True)
    checked = published.run("verify", "bundle", "--level", "source", "--refetch")
    assert checked.code == 1
    assert "problem: member `legal` is not what `hf://org/legal@" in checked.out
    assert published.run("show", "bundle:legal", "--format", "json").data["claimed_by"] is not None


def test_adopted_member_has_a_name_of_its_own_and_keeps_its_claims(
    hub: LoopbackHub, published: Workplace
) -> None:
    assert published.run("pull", "org/bundle", "--out", "bundle").code == 0
    adopted = published.run("adopt", "bundle:legal", "--name", "law")
    assert adopted.out == "adopted: law@1 (bundle:legal)\n"
    shown = published.run("show", "law", "--format", "json").data
    original = published.run("show", "bundle:legal", "--format", "json").data
    for fact in ("claimed_by", "origin", "license", "weights_sha256", "config_sha256"):
        assert shown[fact] == original[fact], fact
    assert published.run("adopt", "bundle:legal", "--name", "law").out.startswith("already there: law@1")
    assert published.run("verify", "bundle", "--level", "source").code == 3
    # Added again from there, it is had from there, under each of its names.
    assert published.run("add", "org/legal", "--name", "law").out.startswith("already there: law@1")
    for name in ("law", "bundle:legal"):
        assert published.run("show", name, "--format", "json").data["claimed_by"] is None
    for words, code in ((("adopt", "law"), 2), (("adopt", "bundle:none"), 1), (("adopt", "none:legal"), 1)):
        assert published.run(*words).code == code, words


def test_member_whose_bytes_were_changed_in_the_store_is_not_adopted(
    hub: LoopbackHub, published: Workplace
) -> None:
    assert published.run("pull", "org/bundle", "--out", "bundle").code == 0
    digest = published.run("show", "bundle:legal", "--format", "json").data["weights_sha256"]
    blob = published.home / "blobs" / "sha256" / digest[:2] / digest[2:]
    blob.chmod(0o644)
    flip_byte(blob, -1)
    refused = published.run("adopt", "bundle:legal", "--name", "law")
    assert (refused.code, "was changed" in refused.err) == (2, True), refused.err
    assert published.run("show", "law").code == 1


def test_bundle_of_pulled_members_names_the_bundle_that_they_are_from(
    hub: LoopbackHub, published: Workplace
) -> None:
    assert published.run("pull", "org/bundle", "--out", "bundle").code == 0
    fused = published.run("fuse", "bundle:legal", "bundle:medical", "--out", "next")
    assert fused.code == 0, fused.err
    members = json.loads((published.folder / "next" / "meteora_manifest.json").read_bytes())["members"]
    claim = f"org/bundle@{hub.repositories['org/bundle'].head.oid}"
    assert [(each["name"], each["origin"]["location"]) for each in members] == [
        ("legal", f"hf://{claim}"),
        ("medical", f"hf://{claim}"),
    ]
    # The files are indeed from where the manifest names them, so the bundle that they were taken out of is
    # not witnessed by them, and the next one is.
    assert published.run("verify", "bundle", "--level", "source").code == 3
    # A bundle is not an adapter that could be fetched.
    checked = published.run("verify", "next", "--level", "source", "--refetch")
    assert checked.code == 0
    assert f"was not fetched from its origin: `hf://{claim}` is a bundle" in checked.out
    card = " ".join((published.folder / "next" / "README.md").read_text(encoding="utf-8").split())
    assert "To you it is a claim, and so are the members' origins" in card
    assert "shows on your machine that the bundle is intact, and with" in card
    assert "that it is from its members." in card


def test_base_that_a_bundle_claims_for_a_member_is_not_learned(
    hub: LoopbackHub, here: Workplace, bundle: Path
) -> None:
    change_manifest(bundle, lambda manifest: manifest["members"][0].update(base="evil/base"))
    claim_a_pass(bundle)
    pull(here, hub, bundle, code=0)
    assert "evil/base" not in here.run("list").out
    assert "evil/base" not in here.run("history").out


def test_names_that_are_too_long_together_are_refused_before_anything_is_fetched(
    hub: LoopbackHub, here: Workplace, bundle: Path
) -> None:
    hub.create("org/bundle", bundle)
    refused = here.run("pull", "org/bundle", "--name", "x" * 96)
    assert refused.code == 2
    assert "hint: choose a shorter name for the bundle" in refused.err
    assert_nothing_is_left(here)
