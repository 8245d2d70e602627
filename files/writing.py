"""A file that appears in its place whole, on the disk, or not at all.

It is written into a new folder beside its target and moved from there in one step, so at every moment there
is the old file or the new one. Several processes may write one target: the last one wins, and no two share a
temporary name. Neither the target nor a temporary name is ever written through a link. A process that dies
leaves the folder, which the doctor knows by its name (``scratch``). Folders are written by ``staging``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..schemas.errors import MeteoraError, SourceUnreadable, UsageError
from .scratch import unfinished_folder

_HINT = "check the path, its permissions and the free space"
# What file systems answer that cannot flush a folder, such as some network shares.
_NO_FLUSH = frozenset({errno.EINVAL, errno.ENOTSUP})


@contextmanager
def whole_file(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield the path of a file to make, which becomes ``target`` when the block ends without an exception.

    Whatever the block leaves beside that file is deleted with its folder. What the block itself raises is not
    changed; ``write_errors`` is for what it writes.

    Args:
        target: the file's place.
        overwrite: whether to replace what is there; of a link the link itself, and not the file behind it.

    Raises:
        UsageError: something is there, and is not to be replaced.
        SourceUnreadable: it cannot be written.
    """
    if not overwrite and os.path.lexists(target):
        raise _is_there(target)
    with ExitStack() as stack:
        with write_errors(target):
            path = stack.enter_context(unfinished_folder(target)) / "file"
        yield path
        with write_errors(target):
            flush_file(path)
            if overwrite:
                path.replace(target)
            else:
                _link(path, target)
    confirm_name(target)


def write_whole(target: Path, data: bytes) -> None:
    """Write a file in one step: what was there stays until the new one is whole.

    Raises:
        SourceUnreadable: it cannot be written.
    """
    with whole_file(target) as path, write_errors(target):
        path.write_bytes(data)


def check_writable(path: Path) -> None:
    """Pass if a file can be put there, so that no long work ends at a folder that does not exist.

    Raises:
        SourceUnreadable: the folder does not exist or may not be written to, or a folder is there.
    """
    folder = path.parent
    if path.is_dir():
        raise SourceUnreadable(f"`{path}` is a folder, expected the name of a file")
    if not folder.is_dir():
        raise SourceUnreadable(f"cannot write `{path}`: there is no folder `{folder}`", hint="make it first")
    if not os.access(folder, os.W_OK):
        raise SourceUnreadable(f"cannot write `{path}`: `{folder}` may not be written to")


@contextmanager
def write_errors(target: Path, *, hint: str = _HINT) -> Iterator[None]:
    """Raise what a disk refuses as ``SourceUnreadable`` about ``target``; the project's own errors pass."""
    try:
        yield
    except MeteoraError:
        raise
    except OSError as error:
        raise SourceUnreadable(f"cannot write `{target}`: {error.strerror or error}", hint=hint) from error


def confirm_name(target: Path) -> None:
    """Have the name of what was just moved to ``target`` on the disk.

    Raises:
        SourceUnreadable: the disk does not say so.
    """
    try:
        # A folder that may be written and not read cannot be opened to flush it.
        with suppress(PermissionError):
            flush_folder(target.absolute().parent)
    except OSError as error:
        raise SourceUnreadable(
            f"`{target}` is whole, but its disk does not confirm it: {error.strerror or error}",
            hint="check the disk, then give the same command again",
        ) from error


def move_into_place(path: Path, place: Path) -> None:
    """Move a file that is on the disk, replacing what is there, and have its new name on the disk too."""
    path.replace(place)
    flush_folder(place.parent)


def flush_file(path: Path) -> None:
    """Have the bytes of a file on the disk."""
    _flush(path, os.O_RDONLY | os.O_NOFOLLOW)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where its file system can do that."""
    try:
        _flush(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise


def flush_tree(folder: Path) -> None:
    """Have everything below a folder on the disk."""
    for root, _, files in os.walk(folder):
        for path in (Path(root, name) for name in files):
            if not path.is_symlink():
                flush_file(path)
        flush_folder(Path(root))


def flush_open(descriptor: int) -> None:
    """Have the bytes of an open file on the disk; what Python buffers must be written before."""
    os.fsync(descriptor)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(path: Path, target: Path) -> None:
    try:
        # A link, and no move, for that would replace what has appeared there meanwhile.
        os.link(path, target)
    except FileExistsError as error:
        raise _is_there(target) from error


def _is_there(target: Path) -> UsageError:
    return UsageError(f"`{target}` exists already", hint="name a new file, or move that one away")
