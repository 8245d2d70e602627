"""``add`` from the Hub: what is pinned, what is fetched, and in which order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.adapters import safetensors_bytes
from support.hub import READ_TOKEN, SIGNATURE, LoopbackHub
from support.hub_commands import Workplace
from support.small_adapters import make_adapter

CARD = "---\nlicense: mit\n---\n"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def fetched(hub: LoopbackHub) -> set[str]:
    """Return the files of which any byte was asked for."""
    return {request.path.split("/", 5)[-1] for request in hub.requests if "/resolve/" in request.path}


def test_add_pins_the_commit_and_fetches_only_config_weights_and_texts(
    hub: LoopbackHub, here: Workplace, legal: Path
) -> None:
    commit = hub.repositories["org/legal"].head.oid
    result = here.run("add", "org/legal", "--tag", "candidate", "--format", "json")
    assert (result.code, result.err) == (0, "")
    version = result.data[0]["version"]
    assert version["origin"] == {"kind": "hub", "location": f"hf://org/legal@{commit}", "commit": commit}
    assert version["license"] == "mit"
    assert version["tags"] == ["candidate"]
    assert {file["name"] for file in version["files"]} == {CONFIG, WEIGHTS, "README.md", "LICENSE"}
    assert fetched(hub) == {CONFIG, WEIGHTS, "README.md", "LICENSE"}
    stored = here.home / "blobs/sha256" / version["weights_sha256"][:2] / version["weights_sha256"][2:]
    assert stored.read_bytes() == (legal / WEIGHTS).read_bytes()


def test_add_of_the_same_again_downloads_nothing_and_a_new_commit_is_the_next_version(
    hub: LoopbackHub, here: Workplace, legal: Path, tmp_path: Path
) -> None:
    first = hub.repositories["org/legal"].head.oid
    assert here.run("add", "org/legal").out == "added: legal@1 (sound, fusable)\n"
    hub.requests.clear()
    assert here.run("add", "org/legal").out == "already there: legal@1 (sound, fusable)\n"
    assert not [request for request in hub.requests if request.method == "HEAD"]
    other = make_adapter(tmp_path / "other", seed=1, rank=8, card=CARD)
    second = hub.push("org/legal", {name: (other / name).read_bytes() for name in (CONFIG, WEIGHTS)})
    assert here.run("add", "hf://org/legal@main").out == "added: legal@2 (sound, fusable)\n"
    found = [json.loads(here.run("show", f"legal@{n}", "--format", "json").out)["origin"] for n in (1, 2)]
    assert [origin["commit"] for origin in found] == [first, second]
    assert here.run("add", f"org/legal@{first}").out == "already there: legal@1 (sound, fusable)\n"


def test_a_repository_with_several_adapters_lists_them_and_takes_one_or_all(
    hub: LoopbackHub, here: Workplace, tmp_path: Path
) -> None:
    for seed, name in enumerate(("legal", "medical/v2")):
        make_adapter(tmp_path / "many" / name, seed=seed)
    hub.create("org/many", tmp_path / "many")
    result = here.run("add", "org/many")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "error: `org/many` holds 2 adapters: `legal`, `medical/v2`\n"
        "hint: name one with `--subfolder`, or take them with `--all`\n"
    )
    assert here.run("add", "org/many", "--subfolder", "medical/v2").out == (
        "added: many-medical-v2@1 (sound, fusable)\n"
    )
    assert here.run("add", "org/many", "--all").out == (
        "added: many-legal@1 (sound, fusable)\nalready there: many-medical-v2@1 (sound, fusable)\n"
    )


def test_a_collection_is_added_whole_and_one_failure_does_not_stop_the_others(
    hub: LoopbackHub, here: Workplace, legal: Path, tmp_path: Path
) -> None:
    hub.create("org/medical", make_adapter(tmp_path / "medical", seed=1))
    hub.collections["org/ours-0123456789abcdef01234567"] = ["org/legal", "org/gone", "org/medical"]
    result = here.run("add", "--collection", "org/ours-0123456789abcdef01234567")
    assert result.code == 1
    assert result.out == "added: legal@1 (sound, fusable)\nadded: medical@1 (sound, fusable)\n"
    assert result.err == (
        "error: the Hub has no repository `org/gone`, or none that you may see (404)\n"
        "hint: check the spelling, and that the token may read it\n"
        "2 added, 1 not added; 2 can be fused\n"
    )


LARGE_BYTES = 84_000_000


def _broken_config(folder: Path) -> dict[str, bytes]:
    config = json.loads((folder / CONFIG).read_text()) | {"r": -4}
    return {CONFIG: json.dumps(config).encode()}


def _large(folder: Path, *, overlapping: bool) -> bytes:
    """Return an adapter's weights of 84 MB, with the header that 448 tensors need."""
    tensors, rank, features = 448, 16, 2929
    size = rank * features * 4
    header = {}
    for number in range(tensors):
        layer, rest = divmod(number, 14)
        kind = ("q", "k", "v", "o", "x", "y", "z")[rest // 2]
        factor = "AB"[rest % 2]
        name = f"base_model.model.model.layers.{layer}.self_attn.{kind}_proj.lora_{factor}.weight"
        shape = [rank, features] if factor == "A" else [features, rank]
        begin = 0 if overlapping else number * size
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, begin + size]}
    return safetensors_bytes(header, bytes(tensors * size))


@pytest.mark.parametrize("wrong", ["config", "header"])
def test_a_broken_adapter_of_84_megabytes_is_refused_for_less_than_200_kilobytes(
    hub: LoopbackHub, here: Workplace, legal: Path, wrong: str, record_property: pytest.RecordProperty
) -> None:
    files: dict[str, bytes | None] = {WEIGHTS: _large(legal, overlapping=wrong == "header")}
    if wrong == "config":
        files |= _broken_config(legal)
    hub.push("org/legal", files)
    assert len(files[WEIGHTS] or b"") > LARGE_BYTES
    result = here.run("add", "org/legal")
    assert (result.code, result.out) == (1, "")
    assert "is broken and was not downloaded" in result.err
    record_property("bytes_over_the_wire", hub.bytes_over_the_wire)
    assert 0 < hub.bytes_over_the_wire < 200_000
    assert here.blobs() == set()
    here.assert_whole()


def test_a_file_over_the_limit_is_refused_before_anything_is_fetched(
    hub: LoopbackHub, here: Workplace, legal: Path
) -> None:
    commit = hub.repositories["org/legal"].head.oid
    size = (legal / WEIGHTS).stat().st_size
    result = here.run("add", "org/legal", "--max-bytes", size - 1)
    assert result.code == 1
    assert result.err == (
        f"error: `{WEIGHTS}` of `hf://org/legal@{commit}` has {size} bytes, the limit is {size - 1}; "
        "nothing was downloaded\nhint: raise the limit with `--max-bytes`\n"
    )
    assert fetched(hub) == set()
    assert here.run("add", "org/legal", "--max-bytes", size).code == 0


def test_pickled_weights_are_never_fetched(hub: LoopbackHub, here: Workplace, legal: Path) -> None:
    hub.push("org/legal", {WEIGHTS: None, "adapter_model.bin": b"pickle"})
    result = here.run("add", "org/legal")
    assert result.code == 1
    assert "is broken and was not downloaded" in result.err
    assert "adapter_model.bin" not in fetched(hub)


def test_offline_the_cache_is_all_there_is(hub: LoopbackHub, here: Workplace, legal: Path) -> None:
    assert here.run("add", "org/legal").code == 0
    hub.requests.clear()
    again = here.run_alone("add", "org/legal", "--name", "again", HF_HUB_OFFLINE="1")
    assert (again.code, again.out) == (0, "added: again@1 (sound, fusable)\n")
    other = here.run_alone("add", "org/other", HF_HUB_OFFLINE="1")
    assert other.code == 2
    assert other.err == (
        "error: `org/other` is not in the local cache, and offline mode is on\nhint: unset HF_HUB_OFFLINE\n"
    )
    assert hub.requests == []


def test_private_and_gated_repositories_need_the_usual_token(
    hub: LoopbackHub, here: Workplace, legal: Path
) -> None:
    hub.repositories["org/legal"].private = True
    refused = here.run("add", "org/legal", HF_TOKEN="")
    assert refused.code == 1
    assert refused.err == (
        "error: the Hub has no repository `org/legal`, or none that you may see (401)\n"
        "hint: check the spelling; for a private one log in with `hf auth login`, or set HF_TOKEN\n"
    )
    assert here.run("add", "org/legal").code == 0
    hub.repositories["org/legal"].private, hub.repositories["org/legal"].gated = False, True
    gated = here.run("add", "org/legal", "--name", "gated", HF_TOKEN=READ_TOKEN)
    assert gated.code == 1
    assert gated.err == (
        "error: `org/legal` is gated: its owner decides who may read it (403)\n"
        "hint: ask for access on its page, then log in with `hf auth login`, or set HF_TOKEN\n"
    )
    hub.repositories["org/legal"].readers.add(READ_TOKEN)
    assert here.run("add", "org/legal", "--name", "gated", HF_TOKEN=READ_TOKEN).code == 0


def test_a_download_of_more_than_a_second_shows_its_progress_and_no_signature(
    hub: LoopbackHub, here: Workplace, tmp_path: Path
) -> None:
    # Weights of its own: the machine's cache has what other tests downloaded.
    hub.create("org/large", make_adapter(tmp_path / "large", rank=1 << 14, seed=191))
    hub.fault("GET", "^/storage/", action="slow", skip=1)
    code, drawn = here.run_in_terminal("add", "org/large")
    assert code == 0
    assert f"{WEIGHTS}:" in drawn
    assert f"{CONFIG}:" not in drawn
    assert SIGNATURE not in drawn


def test_renamed_repository_is_recorded_under_its_present_name(
    hub: LoopbackHub, here: Workplace, legal: Path
) -> None:
    for end in ("", "/revision/main"):
        target = {"Location": f"{hub.url}/api/models/org/legal{end}"}
        hub.fault("GET", f"^/api/models/old/law{end}$", status=307, headers=target, times=99)
    assert here.run("add", "old/law").code == 0
    (version,) = json.loads(here.run("list", "--format", "json").out)["adapters"]
    assert version["name"] == "legal"
    assert "hf://org/legal@" in here.run("show", "legal").out


def test_address_from_a_browser_names_the_adapter(hub: LoopbackHub, here: Workplace, legal: Path) -> None:
    result = here.run("add", f"{hub.url}/org/legal/blob/main/adapter_config.json?download=true")
    assert (result.code, result.out) == (0, "added: legal@1 (sound, fusable)\n")
