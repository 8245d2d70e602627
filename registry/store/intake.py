"""Files on their way into a store.

They are in a folder of their own below ``incoming``, which their process keeps locked; a folder there that
is not locked was left by a process that died.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...files.digests import read_chunks
from ...files.locks import claim_folder, hold_lock
from ...files.progress import UNCOUNTED, Step
from ...files.reading import open_regular, read_errors
from ...files.scratch import incoming_folder
from ...schemas.digest import Digest
from ...schemas.errors import MeteoraError, SourceUnreadable, StoreUnavailable
from .blob import Blob, write_chunks

if TYPE_CHECKING:
    from .local import Store


class Intake:
    """Files on their way into the store: copied and hashed, not yet under their digests.

    One thread at a time; several intakes may be open at once.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._staged: dict[Digest, Path] = {}
        self._published: tuple[Digest, ...] = ()

    def copy(self, source: Path, *, max_bytes: int | None = None, step: Step = UNCOUNTED) -> Blob:
        """Copy one file, hashing it on the way; memory: one chunk of 1 MiB.

        Raises:
            SourceUnreadable: missing, a symbolic link, not a regular file, or larger than ``max_bytes``.
            StoreUnavailable: the store cannot be written.
        """
        path = self._folder / str(len(self._staged))
        with open_regular(source) as file, written(self._store.incoming), path.open("xb") as target:
            chunks = _limited(read_chunks(file, step), source, max_bytes)
            try:
                blob = write_chunks(chunks, target)
            except BaseException:
                path.unlink()
                raise
        if blob.sha256 in self._staged:
            path.unlink()
        else:
            self._staged[blob.sha256] = path
        return blob

    @contextmanager
    def published(self) -> Iterator[None]:
        """Publish everything copied; until the block ends, no removal takes it away.

        Where the store is elsewhere, that holds only for a record made with ``confirm``.

        Raises:
            StoreUnavailable: the store cannot be written, or is elsewhere and did not take it.
        """
        for digest, path in self._staged.items():
            self._store.send(digest, path)
        with hold_lock(self._store.lock_path, shared=True):
            with written(self._store.incoming):
                for digest, path in self._staged.items():
                    self._store.publish(digest, path)
            self._published += tuple(self._staged)
            self._staged.clear()
            yield

    def confirm(self, catalog: Digest) -> None:
        """Make sure that what was published is still there, in the transaction that records it.

        Args:
            catalog: which catalog records it.

        Raises:
            StoreUnavailable: the store is elsewhere, and does not answer.
        """
        self._store.confirm(self._published, catalog)


def _limited(chunks: Iterator[bytes], source: Path, max_bytes: int | None) -> Iterator[bytes]:
    size_bytes = 0
    while chunk := _next_chunk(chunks, source):
        size_bytes += len(chunk)
        if max_bytes is not None and size_bytes > max_bytes:
            raise SourceUnreadable(f"`{source}` is larger than {max_bytes} bytes")
        yield chunk


def _next_chunk(chunks: Iterator[bytes], source: Path) -> bytes:
    # Caught here, so that an error of the source's disk is not blamed on the store's.
    with read_errors(source):
        return next(chunks, b"")


@contextmanager
def written(incoming: Path) -> Iterator[None]:
    """Turn errors of the store's own folder into ``StoreUnavailable``."""
    try:
        yield
    except MeteoraError:
        raise
    except OSError as error:
        raise StoreUnavailable(
            f"the content store `{incoming.parent}` cannot be written: {error.strerror or error}",
            hint="check its permissions and the free space, or name another home with `--home`",
        ) from error


@contextmanager
def claimed_folder(incoming: Path, lock_path: Path) -> Iterator[Path]:
    """Yield a new folder below ``incoming``, locked while the block runs and gone afterwards.

    Raises:
        StoreUnavailable: none can be made there.
    """
    with written(incoming):
        incoming.mkdir(parents=True, exist_ok=True)
        # Checked first, so that the message names the store and not its lock.
        if not os.access(incoming, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        # Until it is locked, another process could take it for a leftover.
        with hold_lock(lock_path, shared=True):
            folder = incoming_folder(incoming)
            # Waiting, for a process that looks for leftovers may hold it for a moment.
            claim = claim_folder(folder, waits=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(claim)
