from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from meteora_registry.files.digests import CHUNK_BYTES, Hasher, copy_chunks, hash_file, read_chunks
from meteora_registry.files.progress import Step
from meteora_registry.schemas.errors import SourceUnreadable

SIZES = {"empty": 0, "one-byte": 1, "one-chunk": CHUNK_BYTES, "more": 2 * CHUNK_BYTES + 3}


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(request.param))
    return path


def test_a_files_digest_is_that_of_its_bytes_and_every_byte_is_counted(file: Path) -> None:
    read: list[int] = []
    found = hash_file(file, Step("hashing", 0, lambda _step, done, _total: read.append(done)))
    assert found == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [0, *read][-1] == file.stat().st_size


def test_a_copy_has_the_bytes_and_the_digest_of_its_source(file: Path, tmp_path: Path) -> None:
    with file.open("rb") as source, (tmp_path / "copy").open("xb") as target:
        hasher = copy_chunks(read_chunks(source), target)
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    assert (hasher.digest, hasher.size_bytes) == (hash_file(file), file.stat().st_size)


def test_the_digest_of_pieces_is_that_of_the_whole() -> None:
    hasher = Hasher()
    for piece in (b"ab", b"", memoryview(b"cde")):
        hasher.update(piece)
    assert hasher.digest == hashlib.sha256(b"abcde").hexdigest()


def test_what_is_not_a_file_has_no_digest_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("pipe", "is not a regular file"),
        ("nothing", "cannot be read: No such file or directory"),
    ):
        with pytest.raises(SourceUnreadable) as caught:
            hash_file(tmp_path / name)
        assert str(caught.value) == f"`{tmp_path / name}` {reason}"
