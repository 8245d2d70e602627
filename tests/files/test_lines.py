"""Files of lines that grow: what a killed process leaves, and what is not touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meteora_registry.files import lines as files_lines
from meteora_registry.files.lines import growing_lines
from meteora_registry.schemas.errors import SourceUnreadable, UsageError

BEGINS = b'{"kind":1'


def lines_of(path: Path) -> tuple[bytes, ...]:
    with growing_lines(path, begins=BEGINS) as file:
        return file.lines


def test_lines_are_there_again_and_more_can_follow(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with growing_lines(path, begins=BEGINS) as file:
        assert file.lines == ()
        file.append(b'{"kind":1}')
        file.append(b"two")
    with growing_lines(path, begins=BEGINS) as file:
        assert file.lines == (b'{"kind":1}', b"two")
        file.append(b"three")
    assert path.read_bytes() == b'{"kind":1}\ntwo\nthree\n'


@pytest.mark.parametrize("left", range(len(b'{"kind":1}\ntwo\n') + 1))
def test_unfinished_last_line_is_dropped_wherever_it_ends(tmp_path: Path, left: int) -> None:
    whole = b'{"kind":1}\ntwo\n'
    path = tmp_path / "run.jsonl"
    path.write_bytes(whole[:left])
    kept = whole[: whole[:left].rfind(b"\n") + 1]
    assert lines_of(path) == tuple(kept.splitlines())
    assert path.read_bytes() == kept


@pytest.mark.parametrize("text", [b"my only copy", b'{"kind":2}\n', b"\n"])
def test_another_kind_of_file_is_refused_and_stays(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(text)
    with pytest.raises(UsageError, match="has other contents"):
        lines_of(path)
    assert path.read_bytes() == text


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with growing_lines(path, begins=BEGINS), pytest.raises(UsageError, match="another process is writing"):
        lines_of(path)


def test_file_does_not_grow_beyond_what_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    monkeypatch.setattr(files_lines, "MAX_LINES_BYTES", 15)
    with growing_lines(path, begins=BEGINS) as file:
        file.append(b'{"kind":1}')
        with pytest.raises(SourceUnreadable, match="more than 15 bytes"):
            file.append(b"four")
        file.append(b"two")
    assert lines_of(path) == (b'{"kind":1}', b"two")
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(SourceUnreadable, match="more than 15 bytes"):
        lines_of(path)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(SourceUnreadable, match="is not a regular file"):
        lines_of(tmp_path / "pipe")
    with pytest.raises(SourceUnreadable, match="cannot write"):
        lines_of(tmp_path / "link")
    with pytest.raises(SourceUnreadable, match="there is no folder"):
        lines_of(tmp_path / "nothing" / "run.jsonl")
    assert not (tmp_path / "target").exists()
