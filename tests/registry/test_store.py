from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from meteora_registry.files.locks import hold_lock
from meteora_registry.files.progress import Step
from meteora_registry.registry.store import References, Store
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import SourceUnreadable, StoreDamaged

CONTENT = b"the bytes" * 300_000
DIGEST = Digest.of_bytes(CONTENT)
CATALOG = Digest.of_bytes(b"this catalog")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def keep(store: Store, source: Path) -> Digest:
    """Store one file, as one that this catalog recorded."""
    with store.intake() as intake:
        blob = intake.copy(source)
        with intake.published():
            intake.confirm(CATALOG)
            return blob.sha256


def files_below(folder: Path) -> list[str]:
    """Return every file of the store but its lock and its catalog's mark."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("lock", CATALOG)
    )


@contextmanager
def references_to(*digests: Digest) -> Iterator[References]:
    """Yield a catalog that refers to these."""
    yield References(CATALOG, lambda _: digests)


def test_a_blob_lies_under_its_digest_and_cannot_be_written(
    store: Store, source: Path, tmp_path: Path
) -> None:
    assert keep(store, source) == DIGEST
    place = tmp_path / "home" / "blobs" / "sha256" / DIGEST[:2] / DIGEST[2:]
    assert store.path_of(DIGEST) == place
    assert place.read_bytes() == CONTENT
    assert stat.S_IMODE(place.stat().st_mode) == 0o444
    assert files_below(tmp_path / "home") == [str(place.relative_to(tmp_path / "home"))]


def test_the_same_bytes_are_stored_once(store: Store, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(CONTENT)
    with store.intake() as intake:
        assert intake.copy(source) == intake.copy(other)
        with intake.published():
            pass
    keep(store, other)
    assert len(files_below(tmp_path / "home")) == 1


def test_nothing_is_visible_before_it_is_published(store: Store, source: Path, tmp_path: Path) -> None:
    with store.intake() as intake:
        intake.copy(source)
        with pytest.raises(StoreDamaged, match="the content store has no blob"):
            store.path_of(DIGEST)
    assert files_below(tmp_path / "home") == []


@pytest.mark.parametrize("kind", ["missing", "link", "folder", "pipe", "too large"])
def test_only_regular_files_of_bounded_size_are_taken(
    store: Store, source: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "given"
    if kind == "link":
        path.symlink_to(source)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "too large":
        path.write_bytes(CONTENT)
    reasons = {
        "missing": f"`{path}` cannot be read: No such file or directory",
        "link": f"`{path}` is a symbolic link, which is never followed",
        "folder": f"`{path}` is not a regular file",
        "pipe": f"`{path}` is not a regular file",
        "too large": f"`{path}` is larger than 1000 bytes",
    }
    with store.intake() as intake, pytest.raises(SourceUnreadable) as caught:
        intake.copy(path, max_bytes=1000)
    assert str(caught.value) == reasons[kind]
    assert files_below(tmp_path / "home") == []


def test_a_changed_blob_is_found_when_it_is_checked_and_healed_when_it_is_stored_again(
    store: Store, source: Path
) -> None:
    place = store.path_of(keep(store, source))
    place.chmod(0o644)
    place.write_bytes(CONTENT[:-1] + b"X")
    for read in (store.check, store.read):
        with pytest.raises(StoreDamaged, match="was changed: its bytes have the digest"):
            read(DIGEST)
    keep(store, source)
    assert store.check(DIGEST) == place
    assert store.read(DIGEST) == CONTENT


def test_progress_counts_every_byte(store: Store, source: Path) -> None:
    reported: list[tuple[str, int, int]] = []
    copying, checking = (
        Step(name, len(CONTENT), lambda *each: reported.append(each)) for name in ("copying", "checking")
    )
    with store.intake() as intake:
        intake.copy(source, step=copying)
        with intake.published():
            store.check(DIGEST, step=checking)
    for name in ("copying", "checking"):
        own = [each for each in reported if each[0] == name]
        assert len(own) > 1
        assert own[-1] == (name, len(CONTENT), len(CONTENT))


def test_drop_spares_what_is_referred_to_and_what_is_not_there(
    store: Store, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    kept, dropped = keep(store, source), keep(store, other)
    absent = Digest.of_bytes(b"absent")
    assert store.drop([kept, dropped, absent], references=lambda: references_to(kept)) == len(b"other")
    assert store.path_of(kept)
    assert not store.place_of(dropped).exists()


def test_drop_asks_what_is_referred_to_while_nothing_can_be_published(store: Store, source: Path) -> None:
    keep(store, source)

    def referenced(digests: Collection[Digest]) -> list[Digest]:
        with pytest.raises(BlockingIOError):
            _try_lock(store.lock_path)
        return []

    store.drop([DIGEST], references=lambda: nullcontext(References(CATALOG, referenced)))
    with store.intake() as intake:
        intake.copy(source)
        with intake.published(), pytest.raises(BlockingIOError):
            _try_lock(store.lock_path)
    with hold_lock(store.lock_path):
        pass


def _try_lock(path: Path) -> None:
    import fcntl

    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
