"""Real file systems: one that is full, one that is mounted read-only, and a user who may not write."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.faults import Outcome, run_command
from support.faults_calls import why_unavailable
from support.faults_home import look_at
from support.small_adapters import make_adapter
from support.small_disks import needs_root, remount, small_disk

NOBODY = 65534
if reason := why_unavailable():
    pytest.skip(reason, allow_module_level=True)


def run(folder: Path, *words: str | Path, user: int | None = None) -> Outcome:
    """Run a command in ``folder/home``, in a process of its own."""
    return run_command(["--home", folder / "home", *words], user=user)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder, 4096):
        yield folder


def fill(folder: Path, *, leaving_bytes: int) -> Path:
    """Return a file that takes all but so much of the free space."""
    place = folder / "ballast"
    free_bytes = shutil.disk_usage(folder).free
    place.write_bytes(bytes(free_bytes - leaving_bytes))
    return place


@needs_root
def test_a_full_disk_is_said_and_the_same_command_works_when_there_is_space(
    disk: Path, tmp_path: Path
) -> None:
    legal = make_adapter(tmp_path / "legal")
    # Larger than what is left for it, while the catalog itself would fit.
    large = make_adapter(tmp_path / "large", seed=1, rank=512)
    assert run(disk, "add", legal).code == 0
    before = look_at(disk)
    ballast = fill(disk, leaving_bytes=400_000)
    refused = run(disk, "add", large)
    assert (refused.code, refused.stdout, refused.stderr) == (
        2,
        "",
        f"error: the content store `{disk}/home/blobs` cannot be written: No space left on device\n"
        "hint: check its permissions and the free space, or name another home with `--home`\n",
    )
    assert look_at(disk).tables == before.tables
    assert look_at(disk).blobs == before.blobs
    ballast.unlink()
    assert run(disk, "add", large).stdout == "added: large@1 (sound, fusable)\n"
    ballast = fill(disk, leaving_bytes=200_000)
    full = run(disk, "fuse", "legal", "large", "--out", disk / "team")
    assert (full.code, full.stdout, full.stderr) == (
        2,
        "",
        f"error: cannot write `{disk}/team`: No space left on device\n"
        "hint: check the path, its permissions and the free space; nothing was left in its place\n",
    )
    assert sorted(path.name for path in disk.iterdir()) == ["ballast", "home"]
    ballast.unlink()
    assert run(disk, "fuse", "legal", "large", "--out", disk / "team").code == 0
    assert list(look_at(disk).bundles) == ["team"]


@needs_root
def test_a_disk_mounted_read_only_can_be_read_and_refuses_writers_in_words(
    disk: Path, tmp_path: Path
) -> None:
    legal, medical = (make_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b")))
    assert run(disk, "add", legal).code == 0
    remount(disk, "ro")
    assert run(disk, "show", "a").code == 0
    for words in (("add", medical), ("remove", "a", "--yes")):
        refused = run(disk, *words)
        check_refusal(refused.code, refused.stdout, refused.stderr)
    remount(disk, "rw")
    assert run(disk, "add", medical).code == 0


@needs_root
def test_a_user_who_may_not_write_is_told_so() -> None:
    # Not in pytest's folder, which other users may not enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        legal, medical = (make_adapter(folder / name, seed=seed) for seed, name in enumerate(("a", "b")))
        (medical / "adapter_model.safetensors").chmod(0o644)
        assert run(folder, "add", legal).code == 0
        before = look_at(folder)
        for words in (("add", medical), ("remove", "a", "--yes")):
            refused = run(folder, *words, user=NOBODY)
            check_refusal(refused.code, refused.stdout, refused.stderr)
        assert look_at(folder).tables == before.tables
        assert run(folder, "add", medical).code == 0


def check_refusal(code: int, stdout: str, stderr: str) -> None:
    """Check that there is one message with a way out, and the exit code for trouble with a disk."""
    assert (code, stdout) == (2, ""), stderr
    message, hint, end = stderr.split("\n")
    assert message.startswith("error: "), stderr
    assert "defect" not in message
    assert hint.startswith("hint: "), stderr
    assert end == ""
