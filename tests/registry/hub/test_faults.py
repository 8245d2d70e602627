"""Faults between here and the Hub: the message, the exit code, what is left, and the next run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.hub import SIGNATURE, TOKEN, LoopbackHub
from support.hub_commands import START, Workplace, finish
from support.hub_faults import ALL, NOTHING, Case
from support.hub_faults import CASES as USUAL
from support.hub_hostile import CASES as HOSTILE
from support.patience import PATIENCE_SECONDS
from support.small_adapters import make_adapter

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
        result = here.run_alone(*case.command, prelude=case.prelude, **case.environment)
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
    hub.fault("GET", "^/api/models/org/legal$", status=429, headers={"Retry-After": "2"})
    assert here.run("add", "org/legal", TEST_PAUSES="1").code == 0
    first, second = hub.requests[:2]
    assert (first.status, second.status) == (429, 200)
    # The server saw the second no earlier than it had asked for.
    assert second.at - first.at >= 2


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
    result = finish(process, interrupt=True)
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


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/tmp"]
    return subprocess.run(probe, capture_output=True).returncode == 0


SMALL_DISK = """
mount -t tmpfs -o size={size}k tmpfs "{place}" && cp -r "{place}.before/." "{place}/" || exit 99
"$0" -c "$1" --home "{home}" add org/legal 2>"{err}"; echo $? >"{code}"
find "{home}/blobs" -type f ! -name lock >"{left}"
mount -o remount,size=64m "{place}" || exit 98
exec "$0" -c "$1" --home "{home}" add org/legal
"""


@pytest.mark.skipif(not _can_mount(), reason="no small disk can be mounted here without being root")
@pytest.mark.parametrize("place", ["home", "cache", "scratch"])
def test_a_full_disk_is_named_and_the_next_run_with_room_finishes_the_job(
    hub: LoopbackHub, here: Workplace, tmp_path: Path, place: str
) -> None:
    hub.create("org/legal", make_adapter(tmp_path / "large", rank=1024, layers=6))
    folders = {"home": here.home, "cache": tmp_path / "cache", "scratch": tmp_path / "scratch"}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    full = folders[place]
    shutil.copytree(full, f"{full}.before")
    err, code, left = (tmp_path / name for name in ("err", "code", "left"))
    script = SMALL_DISK.format(size=900, place=full, home=here.home, err=err, code=code, left=left)
    environment = here.machine.environment | {
        "HF_HOME": str(folders["cache"]),
        "TMPDIR": str(folders["scratch"]),
    }
    finished = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable, START],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert code.read_text() == "2\n", err.read_text()
    assert "no space left on device" in err.read_text().lower()
    assert left.read_text() == ""
    assert (finished.returncode, finished.stdout) == (0, "added: legal@1 (sound, fusable)\n"), finished.stderr
    assert list(folders["scratch"].iterdir()) == []
