"""``push``: one commit, on top of the one that was looked at, and no other party's files."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from support.expert_adapters import both_parameters
from support.hub import READ_TOKEN, TOKEN, LoopbackHub
from support.hub_commands import Workplace
from support.patience import PATIENCE_SECONDS
from support.small_adapters import make_adapter

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"


@pytest.fixture
def adapters(here: Workplace, tmp_path: Path) -> dict[str, Path]:
    """Two catalogued adapters; only the first has a card."""
    folders = {
        "first": make_adapter(tmp_path / "first", card="---\nlicense: mit\n---\n# First\n"),
        "second": make_adapter(tmp_path / "second", seed=1),
    }
    assert here.run("add", *folders.values()).code == 0
    return folders


def content(hub: LoopbackHub, name: str) -> dict[str, bytes]:
    files = {path: file.data for path, file in hub.repositories[name].head.files.items()}
    files.pop(".gitattributes")
    return files


def pushes_noted(here: Workplace, name: str) -> list[tuple[str, int, dict[str, str]]]:
    """Return the pushes of that name in the catalog's history, the newest first."""
    events = json.loads(here.run("history", name, "--format", "json").out)["events"]
    return [(each["name"], each["version"], each["details"]) for each in events if each["action"] == "push"]


def test_adapter_of_experts_is_pushed_as_it_was_added(
    hub: LoopbackHub, here: Workplace, tmp_path: Path
) -> None:
    folder = both_parameters(tmp_path / "experts")
    assert here.run("add", folder).code == 0
    assert here.run("push", "experts@1", "org/experts").code == 0
    pushed = content(hub, "org/experts")
    assert {name: pushed[name] for name in (CONFIG, WEIGHTS)} == {
        name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)
    }


def test_an_adapter_is_pushed_as_it_was_added(
    hub: LoopbackHub, here: Workplace, adapters: dict[str, Path]
) -> None:
    result = here.run("push", "first@1", "org/first")
    repository = hub.repositories["org/first"]
    (tag,) = repository.tags
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"pushed: org/first@{repository.head.oid} as {tag}: 3 files, ")
    assert content(hub, "org/first") == {
        name: (adapters["first"] / name).read_bytes() for name in (CARD, CONFIG, WEIGHTS)
    }
    again = here.run("push", "first", "org/first")
    assert again.out == f"nothing to do: org/first@{repository.head.oid} has the same files already\n"
    assert len(repository.commits) == 2
    assert pushes_noted(here, "first") == [
        ("first", 1, {"repository": "org/first", "commit": repository.head.oid, "tag": tag})
    ]


def test_an_adapter_without_a_card_gets_one_that_the_hub_accepts(
    hub: LoopbackHub, here: Workplace, adapters: dict[str, Path]
) -> None:
    assert here.run("push", "second", "org/second").code == 0
    card = content(hub, "org/second")[CARD].decode()
    assert card.startswith(
        "---\nbase_model: org/base\nbase_model_relation: adapter\nlibrary_name: peft\nlicense: unknown\n"
    )


def test_a_dry_run_changes_nothing(hub: LoopbackHub, here: Workplace, adapters: dict[str, Path]) -> None:
    result = here.run("push", "first", "org/first", "--dry-run")
    assert result.code == 0
    assert result.out.splitlines()[1:] == [f"  {CARD}", f"  {CONFIG}", f"  {WEIGHTS}"]
    assert hub.repositories == {}
    assert pushes_noted(here, "first") == []


def test_a_pull_request_leaves_the_main_branch_alone_and_can_be_added_from(
    hub: LoopbackHub, here: Workplace, adapters: dict[str, Path]
) -> None:
    hub.create("org/first")
    before = hub.repositories["org/first"].head
    result = here.run("push", "first", "org/first", "--pr")
    repository = hub.repositories["org/first"]
    assert result.out.startswith(f"proposed: {hub.url}/org/first/discussions/1: 3 files, ")
    assert repository.head is before
    assert set(repository.commits[repository.refs["refs/pr/1"]].files) >= {CARD, CONFIG, WEIGHTS}
    assert repository.tags == {}
    ((_, _, details),) = pushes_noted(here, "first")
    assert details["pull_request"] == f"{hub.url}/org/first/discussions/1"
    added = here.run("add", "org/first@refs/pr/1", "--name", "proposed")
    assert added.out == "added: proposed@1 (sound, fusable)\n"


@pytest.mark.parametrize(
    ("files", "options", "token", "err"),
    [
        (
            {"model.py": b"print()", "data/notes.txt": b"notes", CARD: b"# Other\n"},
            (),
            TOKEN,
            "error: `org/taken` holds something else: `data/notes.txt`, `model.py`; nothing was pushed\n"
            "hint: choose a repository of its own\n",
        ),
        (
            {},
            ("--private",),
            TOKEN,
            "error: `org/taken` exists and is public, so `--private` would not hold; nothing was pushed\n"
            "hint: make it private in its settings, or choose another name\n",
        ),
        (
            {},
            (),
            READ_TOKEN,
            "error: the Hub does not allow this for `org/taken` (403)\n"
            "hint: the token must have the right to do it; see `hf auth whoami`\n",
        ),
    ],
    ids=["something else there", "public, not private", "token that may only read"],
)
def test_a_push_that_may_not_be_is_refused_and_commits_nothing(
    hub: LoopbackHub,
    here: Workplace,
    adapters: dict[str, Path],
    files: dict[str, bytes],
    options: tuple[str, ...],
    token: str,
    err: str,
) -> None:
    repository = hub.create("org/taken", files)
    before = dict(repository.commits)
    result = here.run("push", "first", "org/taken", *options, HF_TOKEN=token)
    assert (result.code, result.err) == (1, err)
    assert repository.commits == before


def test_private_makes_a_new_repository_private(
    hub: LoopbackHub, here: Workplace, adapters: dict[str, Path]
) -> None:
    assert here.run("push", "first", "org/closed", "--private").code == 0
    assert hub.repositories["org/closed"].private


def test_a_new_version_replaces_the_old_one_whole_and_a_tag_is_never_moved(
    hub: LoopbackHub, here: Workplace, adapters: dict[str, Path]
) -> None:
    assert here.run("push", "first", "org/adapter", "--tag", "v1").code == 0
    hub.push("org/adapter", {"LICENSE": b"MIT"})
    first = hub.repositories["org/adapter"].head.oid
    refused = here.run("push", "second", "org/adapter", "--tag", "v1")
    assert refused.code == 1
    assert "error: `org/adapter` has the tag `v1` at " in refused.err
    assert hub.repositories["org/adapter"].head.oid == first
    assert here.run("push", "second", "org/adapter", "--tag", "v2").code == 0
    assert set(content(hub, "org/adapter")) == {CARD, CONFIG, WEIGHTS}
    assert content(hub, "org/adapter")[WEIGHTS] == (adapters["second"] / WEIGHTS).read_bytes()


def test_of_two_pushes_at_once_one_wins_the_other_is_told_and_nothing_is_mixed(
    hub: LoopbackHub, here: Workplace, adapters: dict[str, Path]
) -> None:
    hub.create("org/shared")
    start = hub.repositories["org/shared"].head.oid
    held = [hub.fault("POST", "/commit/", action="hold") for _ in adapters]
    processes = {name: here.start("push", name, "org/shared") for name in adapters}
    # Both have looked at the repository and are about to commit.
    assert all(fault.reached.wait(PATIENCE_SECONDS) for fault in held)
    for fault in held:
        fault.release.set()
    results = {name: process.finish() for name, process in processes.items()}
    codes = {name: result.code for name, result in results.items()}
    assert sorted(codes.values()) == [0, 1]
    winner, loser = sorted(codes, key=lambda name: codes[name])
    repository = hub.repositories["org/shared"]
    assert results[loser].err == (
        f"error: another push to `org/shared` came in between: it was at `{start[:12]}` and is at "
        f"`{repository.head.oid[:12]}`; nothing of this push was committed\n"
        "hint: look at what it changed; the same command again makes a commit on top of it\n"
    )
    assert content(hub, "org/shared")[WEIGHTS] == (adapters[winner] / WEIGHTS).read_bytes()
    assert content(hub, "org/shared")[CONFIG] == (adapters[winner] / CONFIG).read_bytes()
    assert list(repository.tags.values()) == [repository.head.oid]
    assert len(repository.commits) == 2
    assert here.run("push", loser, "org/shared").code == 0
    assert content(hub, "org/shared")[WEIGHTS] == (adapters[loser] / WEIGHTS).read_bytes()


def test_a_commit_whose_answer_was_lost_is_recognised(
    hub: LoopbackHub, here: Workplace, adapters: dict[str, Path]
) -> None:
    hub.fault("POST", "/commit/", action="lost", status=502)
    result = here.run("push", "first", "org/first")
    repository = hub.repositories["org/first"]
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"pushed: org/first@{repository.head.oid} as ")
    assert len(repository.commits) == 2


def test_a_file_name_that_the_database_was_given_makes_no_link_outside(
    hub: LoopbackHub, here: Workplace, adapters: dict[str, Path], tmp_path: Path
) -> None:
    outside = tmp_path / "planted"
    with closing(sqlite3.connect(here.home / "catalog.db")) as connection, connection:
        # Only the first has a card.
        connection.execute("UPDATE adapter_files SET name = ? WHERE name = ?", (str(outside), CARD))
    result = here.run("push", "first", "org/first", "--dry-run")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(
        f"error: '{outside}' cannot name a file of an adapter, expected 1 to 255 of "
    )
    assert not outside.is_symlink()
