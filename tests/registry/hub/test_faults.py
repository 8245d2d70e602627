"""Faults between here and the Hub: the message, the exit code, what is left, and the next run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from support.hub import SIGNATURE, TOKEN, LoopbackHub
from support.hub_commands import Workplace
from support.hub_faults import ALL, NOTHING, Case
from support.hub_faults import CASES as USUAL
from support.hub_hostile import CASES as HOSTILE
from support.patience import PATIENCE_SECONDS
from support.small_adapters import make_adapter
from support.small_disks import needs_root, remount, small_disk

CASES = (*USUAL, *HOSTILE)
DOCUMENT = Path(__file__).parents[3] / "docs" / "hub-faults.md"


def without_ids(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{12}\b", "HASH", re.sub(r"\b[0-9a-f]{40}\b", "COMMIT", text))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_is_named_and_leaves_everything_whole(
    hub: LoopbackHub, here: Workplace, legal: Path, case: Case
) -> None:
    if case.command[0] == "push":
        assert here.run("add", legal).code == 0
    before = here.blobs()
    case.arrange(hub)
    if case.prelude:
        result = here.run_alone(*case.command, prelude=case.prelude)
    else:
        result = here.run(*case.command, **case.environment)
    said = without_ids(result.out + result.err)
    assert result.code == case.code, said
    assert case.said in said
    assert "Traceback" not in said
    assert "a defect of" not in said
    if case.code:
        # The message stands for itself, with nothing made up around it.
        assert f"error: {case.said}\n" in said
    assert not [secret for secret in (TOKEN, SIGNATURE) if secret in result.out + result.err]
    here.assert_whole()
    if case.left == NOTHING:
        assert here.blobs() == before
    if case.left == ALL:
        assert len(here.blobs()) == 4
    hub.faults.clear()
    hub.repositories["org/legal"].gated = False
    assert (here.run(*case.command).code == 0) is case.second_run_succeeds
    here.assert_whole()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_documentation_has_every_fault(case: Case) -> None:
    assert case.row in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_the_weights_are_taken_up_where_the_connection_broke(
    hub: LoopbackHub, here: Workplace, tmp_path: Path
) -> None:
    hub.create("org/large", make_adapter(tmp_path / "large", rank=1 << 14))
    hub.fault("GET", "^/storage/", action="cut", after_bytes=11 << 20, skip=1)
    assert here.run("add", "org/large").code == 0
    _, whole, rest = [request for request in hub.requests if request.path.startswith("/storage/")]
    assert "range" not in whole.headers
    # huggingface_hub keeps what it has in pieces of 10 MiB.
    assert rest.headers["range"] == f"bytes={10 << 20}-"
    assert rest.status == 206


def test_retry_after_is_waited_for(hub: LoopbackHub, here: Workplace, legal: Path) -> None:
    hub.fault("GET", "^/api/models/org/legal$", status=429, headers={"Retry-After": "1"})
    assert here.run("add", "org/legal", TEST_PAUSES="1").code == 0
    first, second = hub.requests[:2]
    assert (first.status, second.status) == (429, 200)
    # The server saw the second no earlier than it had asked for.
    assert second.at - first.at >= 1


POINTS = {
    "asking for the commit": ("add", "GET", "^/api/models/org/legal$", 0),
    "asking for the files": ("add", "GET", "/tree/", 0),
    "reading the header": ("add", "GET", "^/storage/", 0),
    "downloading the weights": ("add", "GET", "^/storage/", 1),
    "uploading": ("push", "PUT", "^/storage/", 0),
    "committing": ("push", "POST", "/commit/", 0),
    "tagging": ("push", "POST", "/tag/", 0),
}


@pytest.mark.parametrize("point", POINTS)
def test_an_interrupted_run_leaves_everything_whole_and_the_next_finishes_the_job(
    hub: LoopbackHub, here: Workplace, legal: Path, point: str
) -> None:
    command, method, pattern, skip = POINTS[point]
    if command == "push":
        assert here.run("add", legal).code == 0
    arguments = ("add", "org/legal") if command == "add" else ("push", "legal", "org/mine")
    held = hub.fault(method, pattern, action="hold", skip=skip)
    process = here.start(*arguments)
    assert held.reached.wait(PATIENCE_SECONDS)
    result = process.finish(interrupt=True)
    assert (result.code, result.out) == (130, "")
    assert result.err.splitlines()[-1] == "error: interrupted"
    held.release.set()
    here.assert_whole()
    assert here.run(*arguments).code == 0
    here.assert_whole()
    assert len(here.blobs()) == (4 if command == "add" else 3)
    if command == "push":
        repository = hub.repositories["org/mine"]
        assert len(repository.commits) == 2
        assert list(repository.tags.values()) == [repository.head.oid]


@needs_root
@pytest.mark.parametrize("place", ["home", "cache", "scratch"])
def test_a_full_disk_is_named_and_the_next_run_with_room_finishes_the_job(
    hub: LoopbackHub, here: Workplace, tmp_path: Path, place: str
) -> None:
    hub.create("org/legal", make_adapter(tmp_path / "large", rank=1024, layers=6))
    folders = {"home": here.home, "cache": tmp_path / "cache", "scratch": tmp_path / "scratch"}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    environment = {"HF_HOME": str(folders["cache"]), "TMPDIR": str(folders["scratch"])}
    before = shutil.copytree(folders[place], tmp_path / "before")
    with small_disk(folders[place], 900) as full:
        shutil.copytree(before, full, dirs_exist_ok=True)
        refused = here.run_alone("add", "org/legal", **environment)
        assert refused.code == 2, refused.err
        assert "no space left on device" in refused.err.lower()
        assert here.blobs() == set()
        remount(full, "size=64m")
        finished = here.run_alone("add", "org/legal", **environment)
        assert (finished.code, finished.out) == (0, "added: legal@1 (sound, fusable)\n"), finished.err
        assert list(folders["scratch"].iterdir()) == []
