"""From adapters on the Hub to a bundle on the Hub to another machine, with the real client throughout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import meteora_registry.runtime  # noqa: F401 - registers the tuner
from support.hub import SIGNATURE, TOKEN, LoopbackHub, Repository
from support.hub_commands import Result, Workplace, machine, workplace
from support.hub_server import serve
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, some_tokens, tiny_llama
from support.patience import PATIENCE_SECONDS
from support.small_adapters import make_adapter

CARD, CONFIG, WEIGHTS = "README.md", "adapter_config.json", "adapter_model.safetensors"
MANIFEST, RECORD = "meteora_manifest.json", "verification.json"


@dataclass
class Journey:
    """Two machines and a Hub, and everything that any command printed."""

    hub: LoopbackHub
    here: Workplace
    there: Workplace
    originals: dict[str, Path]
    printed: list[str] = field(default_factory=list)

    @property
    def repository(self) -> Repository:
        return self.hub.repositories["org/bundle"]

    def run(self, place: Workplace, *arguments: object, code: int = 0) -> Result:
        result = place.run(*arguments, METEORA_DEBUG="1")
        self.printed += [result.out, result.err]
        assert result.code == code, result.err
        return result


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory, empty_catalog: Path) -> Iterator[Journey]:
    """Added, validated, fused, verified, pushed, and pulled into another empty home."""
    folder = tmp_path_factory.mktemp("journey")
    originals = {
        "legal": make_adapter(folder / "legal", card="---\nlicense: mit\n---\n"),
        "medical": make_adapter(
            folder / "medical", seed=1, rank=8, card="---\nlicense: cc-by-nc-4.0\n---\n", targets=["q_proj"]
        ),
    }
    with (
        serve() as hub,
        machine(folder / "first", hub, HF_DEBUG="1") as first,
        machine(folder / "second", hub, HF_DEBUG="1") as second,
    ):
        for name, adapter in originals.items():
            hub.create(f"org/{name}", adapter)
        here = workplace(first.folder / "here", first, empty_catalog)
        there = workplace(second.folder / "there", second, empty_catalog)
        journey = Journey(hub, here, there, originals)
        journey.run(here, "add", "org/legal", "org/medical")
        journey.run(here, "validate", *originals.values(), "--for", "fuse")
        journey.run(here, "fuse", "legal", "medical", "--out", "bundle")
        journey.run(here, "verify", "bundle", "--level", "source")
        journey.run(here, "push", "bundle", "org/bundle", "--private")
        journey.run(there, "pull", "org/bundle", "--out", "bundle")
        yield journey


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_what_was_pulled_is_what_was_pushed_byte_for_byte(journey: Journey) -> None:
    pushed = files_of(journey.here.folder / "bundle")
    assert set(pushed) == {CARD, CONFIG, WEIGHTS, MANIFEST, RECORD}
    assert files_of(journey.there.folder / "bundle") == pushed
    remote = {path: file.data for path, file in journey.repository.head.files.items()}
    assert remote.pop(".gitattributes")
    assert remote == pushed


def test_a_push_is_one_commit_with_a_tag_in_a_private_repository(journey: Journey) -> None:
    repository = journey.repository
    assert [commit.title for commit in repository.commits.values()][:1] == ["initial commit"]
    assert len(repository.commits) == 2
    assert repository.private
    assert list(repository.tags.values()) == [repository.head.oid]
    assert [tag.startswith("meteora-") for tag in repository.tags] == [True]
    events = json.loads(journey.run(journey.here, "history", "bundle", "--format", "json").out)["events"]
    (pushed,) = [each for each in events if each["action"] == "push"]
    (tag,) = repository.tags
    assert pushed["version"] == 1
    assert pushed["details"] == {"repository": "org/bundle", "commit": repository.head.oid, "tag": tag}


@LOADS_UNFITTED
@LOADS_WITH_PEFT
def test_what_was_pulled_loads_with_peft_and_computes_the_same(journey: Journey) -> None:
    logits = []
    for place in (journey.here, journey.there):
        model = PeftModel.from_pretrained(tiny_llama(), str(place.folder / "bundle")).eval()
        with torch.no_grad():
            logits.append(model(some_tokens()).logits)
    with torch.no_grad():
        bare = tiny_llama()(some_tokens()).logits
    assert torch.equal(*logits)
    assert not torch.allclose(logits[0], bare)


def test_a_pull_registers_the_bundle_and_its_members_with_where_they_came_from(journey: Journey) -> None:
    listed = json.loads(journey.run(journey.there, "list", "--format", "json").out)
    assert [adapter["name"] for adapter in listed["adapters"]] == ["bundle:legal", "bundle:medical"]
    assert [adapter["license"] for adapter in listed["adapters"]] == ["mit", "cc-by-nc-4.0"]
    bundle = listed["bundles"][0]
    assert [(member["name"], member["adapter"]["name"]) for member in bundle["members"]] == [
        ("legal", "bundle:legal"),
        ("medical", "bundle:medical"),
    ]
    assert [each["level"] for each in bundle["verifications"]] == ["source", "integrity"]
    shown = json.loads(journey.run(journey.there, "show", "bundle:medical", "--format", "json").out)
    commit = journey.hub.repositories["org/medical"].head.oid
    assert shown["origin"] == {"kind": "hub", "location": f"hf://org/medical@{commit}", "commit": commit}
    blob = journey.there.home / "blobs/sha256" / shown["weights_sha256"][:2] / shown["weights_sha256"][2:]
    assert blob.read_bytes() == (journey.originals["medical"] / WEIGHTS).read_bytes()
    journey.there.assert_whole()


def test_the_card_says_what_the_members_are_and_the_hub_accepts_it(journey: Journey) -> None:
    card = (journey.there.folder / "bundle" / CARD).read_text()
    commit = journey.hub.repositories["org/legal"].head.oid
    assert card.startswith(
        "---\nbase_model: org/base\nbase_model_relation: adapter\nlibrary_name: peft\nlicense: cc-by-nc-4.0\n"
    )
    link = f"[org/legal](https://huggingface.co/org/legal/tree/{commit}) at `{commit[:12]}`"
    row = f"| legal | 4 | 4 | mit | {link}"
    assert row in card
    assert "The most restrictive: `cc-by-nc-4.0` (no commercial use)." in card
    assert "**The gate is not fitted.**" in card
    assert "Its maker states in `verification.json` that" in card
    assert [request.status for request in journey.hub.requests if "validate-yaml" in request.path] == [200]


def test_the_same_push_again_does_nothing(journey: Journey) -> None:
    commits = len(journey.repository.commits)
    again = journey.run(journey.there, "push", "bundle", "org/bundle")
    assert (
        again.out == f"nothing to do: org/bundle@{journey.repository.head.oid} has the same files already\n"
    )
    assert len(journey.repository.commits) == commits


def test_the_same_pull_again_is_done_already_and_verify_keeps_nothing(journey: Journey) -> None:
    again = journey.run(journey.there, "pull", "org/bundle", "--out", "bundle")
    assert again.out.startswith("already there: bundle@1 in bundle: 2 members")
    before = set(journey.here.machine.folder.rglob("*"))
    verified = journey.run(journey.here, "verify", "org/bundle", "--format", "json")
    assert (verified.data["outcome"], verified.data["level"]) == ("pass", "integrity")
    assert set(journey.here.machine.folder.rglob("*")) - before == set()


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        (CONFIG, lambda data: data.replace(b'"temperature": 1.0', b'"temperature": 2.0')),
        (WEIGHTS, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    ],
    ids=["config", "weights"],
)
def test_a_changed_byte_is_refused_and_nothing_is_kept(
    journey: Journey, tmp_path: Path, empty_catalog: Path, name: str, edit: object
) -> None:
    data = journey.repository.head.files[name].data
    # Of its own: another one of the same name would have the same commits, and these are cached.
    repository = f"org/forged-{Path(name).stem}"
    journey.hub.create(repository, {path: file.data for path, file in journey.repository.head.files.items()})
    journey.hub.push(repository, {name: edit(data)})  # type: ignore[operator]  # a function of bytes
    place = workplace(tmp_path / "place", journey.here.machine, empty_catalog)
    result = journey.run(place, "pull", repository, "--out", "forged", code=1)
    commit = journey.hub.repositories[repository].head.oid
    assert f"error: `{repository}@{commit}` was changed: `{name}` " in result.err
    assert "nothing was kept" in result.err
    assert not (place.folder / "forged").exists()
    assert list(place.folder.glob(".forged*")) == []
    place.assert_whole()
    assert place.blobs() == set()


def test_a_bundle_with_a_scaling_that_no_bundle_holds_is_refused_before_its_weights_are_fetched(
    journey: Journey, tmp_path: Path, empty_catalog: Path
) -> None:
    files = {path: file.data for path, file in journey.repository.head.files.items()}
    config = json.loads(files[CONFIG])
    config["members"][0]["scaling"] = 1e300
    journey.hub.create("org/scaled", files | {CONFIG: json.dumps(config).encode()})
    place = workplace(tmp_path / "place", journey.here.machine, empty_catalog)
    result = journey.run(place, "pull", "org/scaled", code=1)
    assert "error: `adapter_config.json` breaks its schema: members.0.scaling: input should be" in result.err
    assert not (place.folder / "scaled").exists()
    place.assert_whole()


def test_a_bundle_without_a_record_of_level_source_is_neither_pushed_nor_pulled(
    journey: Journey, tmp_path: Path, empty_catalog: Path
) -> None:
    place = workplace(tmp_path / "place", journey.here.machine, empty_catalog)
    files = files_of(journey.here.folder / "bundle")
    del files[RECORD]
    for name, data in files.items():
        (place.folder / "bare" / name).parent.mkdir(exist_ok=True)
        (place.folder / "bare" / name).write_bytes(data)
    refused = journey.run(place, "push", "bare", "org/bare", code=1)
    assert "error: `bare` was never verified: it has no `verification.json`\n" in refused.err
    assert "org/bare" not in journey.hub.repositories
    journey.run(place, "verify", "bare", "--record")
    weak = journey.run(place, "push", "bare", "org/bare", code=1)
    assert (
        "error: `bare` is verified at level integrity with the outcome pass, expected level source "
        "(compared with the members' own files) and pass\n" in weak.err
    )
    journey.hub.create("org/bare", files)
    refused = journey.run(place, "pull", "org/bare", "--out", "elsewhere", code=1)
    assert "was never verified: it has no `verification.json`" in refused.err
    assert place.blobs() == set()


def test_a_changed_file_is_refused_before_anything_is_sent(
    journey: Journey, tmp_path: Path, empty_catalog: Path
) -> None:
    place = workplace(tmp_path / "place", journey.here.machine, empty_catalog)
    for name, data in files_of(journey.here.folder / "bundle").items():
        (place.folder / "bundle" / name).parent.mkdir(exist_ok=True)
        (place.folder / "bundle" / name).write_bytes(data + b"\n" if name == CONFIG else data)
    journey.hub.requests.clear()
    refused = journey.run(place, "push", "bundle", "org/changed", code=1)
    assert f"error: `{CONFIG}` in `bundle` was changed: it has the digest" in refused.err
    assert journey.hub.requests == []


def test_a_refusal_in_the_middle_of_a_pull_is_not_taken_for_a_fault_of_the_disk(
    journey: Journey, tmp_path: Path, empty_catalog: Path
) -> None:
    journey.hub.create("org/copy", {path: file.data for path, file in journey.repository.head.files.items()})
    place = workplace(tmp_path / "place", journey.here.machine, empty_catalog)
    journey.hub.fault("GET", "^/storage/", status=403)
    result = journey.run(place, "pull", "org/copy", code=1)
    commit = journey.hub.repositories["org/copy"].head.oid
    assert f"error: the Hub does not allow this for `org/copy@{commit}` (403)\n" in result.err
    assert sorted(path.name for path in place.folder.iterdir()) == ["home"]


def test_an_interrupted_pull_leaves_nothing_and_the_next_finishes_the_job(
    journey: Journey, tmp_path: Path, empty_catalog: Path
) -> None:
    place = workplace(tmp_path / "place", journey.here.machine, empty_catalog)
    held = journey.hub.fault("GET", "^/storage/", action="hold")
    process = place.start("pull", "org/bundle")
    assert held.reached.wait(PATIENCE_SECONDS)
    result = process.finish(interrupt=True)
    held.release.set()
    assert (result.code, result.out) == (130, "")
    assert sorted(path.name for path in place.folder.iterdir()) == ["home"]
    place.assert_whole()
    journey.run(place, "pull", "org/bundle")
    assert files_of(place.folder / "bundle") == files_of(journey.here.folder / "bundle")


def test_the_token_is_sent_to_the_hub_alone_and_stands_nowhere(journey: Journey) -> None:
    journey.run(journey.here, "push", "bundle", "hub-of-somebody/else", "--dry-run")
    sent = [request for request in journey.hub.requests if "authorization" in request.headers]
    assert sent
    assert [request.path for request in sent if request.path.startswith("/storage/")] == []
    for secret in (TOKEN, SIGNATURE):
        assert [text for text in journey.printed if secret in text] == []
        for place in (journey.here, journey.there):
            found = [path for path, data in files_of(place.machine.folder).items() if secret.encode() in data]
            assert found == []
        for repository in journey.hub.repositories.values():
            for commit in repository.commits.values():
                assert not any(secret.encode() in file.data for file in commit.files.values())
