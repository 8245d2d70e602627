from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meteora_registry.files.staging import staged_folder
from meteora_registry.schemas.errors import SourceUnreadable, UsageError


def test_the_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with staged_folder(target) as folder:
        (folder / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="under way"), staged_folder(tmp_path / "target") as folder:
        (folder / "file").write_text("content")
        raise RuntimeError("under way")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_replaced_and_a_full_one_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with staged_folder(target) as folder:
        (folder / "file").write_text("first")
    with pytest.raises(UsageError, match="exists and is not empty"), staged_folder(target):
        pass
    assert (target / "file").read_text() == "first"


def test_a_target_that_is_a_file_or_a_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="exists and is not a folder"), staged_folder(tmp_path / name):
            pass


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    target = tmp_path / "target"
    script = (
        "import pathlib, sys, time\n"
        "from meteora_registry.files.staging import staged_folder\n"
        "with staged_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half')\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, target], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        with pytest.raises(UsageError, match="another process is writing"), staged_folder(target):
            pass
        os.kill(process.pid, signal.SIGKILL)
    assert not target.exists()
    with staged_folder(target) as folder:
        assert list(folder.iterdir()) == []
        (folder / "whole").write_text("whole")
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable) as caught, staged_folder(tmp_path / "target"):
        Path("/dev/full").write_bytes(b"x" * 65536)
    assert str(caught.value) == f"cannot write `{tmp_path / 'target'}`: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_a_target_whose_name_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="is not valid UTF-8"),
        staged_folder(tmp_path / os.fsdecode(b"x\xff")),
    ):
        pass
