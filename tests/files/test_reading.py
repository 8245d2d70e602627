"""Files are opened without being led elsewhere, and read within a bound."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from meteora_registry.files.reading import (
    open_folder,
    open_regular,
    read_bounded,
    read_errors,
    read_start,
    real_path,
)
from meteora_registry.schemas.errors import SourceUnreadable, StoreUnavailable


def test_a_link_is_followed_only_where_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(SourceUnreadable, match="is a symbolic link, which is never followed"):
        open_regular(tmp_path / "link")
    with open_regular(tmp_path / "link", follows_links=True) as file:
        assert file.read() == b"12345"
    with open_folder(tmp_path) as folder:
        assert read_start("file", 3, folder=folder) == b"1234"
        with pytest.raises(SourceUnreadable, match="`link` is a symbolic link"):
            read_start("link", 3, folder=folder)


@pytest.mark.parametrize(("size", "is_refused"), [(3, False), (4, True)], ids=["at-the-bound", "beyond"])
def test_a_file_is_read_up_to_its_bound(tmp_path: Path, size: int, is_refused: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    if not is_refused:
        assert read_bounded(path, 3) == b"xxx"
        return
    with pytest.raises(SourceUnreadable) as caught:
        read_bounded(path, 3)
    assert str(caught.value) == f"`{path}` has more than 3 bytes"


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_not_a_file_is_neither_opened_nor_waited_for(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/null") if kind == "device" else tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(SourceUnreadable) as caught:
        open_regular(path)
    assert str(caught.value) == f"`{path}` is not a regular file"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_name_that_no_file_can_have_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="cannot be read: embedded null byte"):
        open_regular(tmp_path / "a\0b")
    with pytest.raises(SourceUnreadable, match="cannot be read: Not a directory"):
        open_folder(Path("/dev/null")).__enter__()


def test_a_long_path_is_shown_whole_and_its_control_characters_escaped(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200) / "e\x1b[31m"
    with pytest.raises(SourceUnreadable) as caught:
        open_regular(deep)
    assert f"{'d' * 200}/e\\x1b[31m` cannot be read" in str(caught.value)


def test_a_link_to_itself_has_a_path(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert real_path(loop) == real_path(tmp_path) / "loop"


def test_a_disk_that_fails_while_it_is_read_is_named_once_by_everyone_who_reads(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable) as caught, read_errors(tmp_path / "file"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert str(caught.value) == f"`{tmp_path / 'file'}` cannot be read: Input/output error"
    refusal = StoreUnavailable("the store is away")
    with pytest.raises(StoreUnavailable) as kept, read_errors(tmp_path / "file"):
        raise refusal
    assert kept.value is refusal
