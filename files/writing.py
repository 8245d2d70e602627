"""Files that a person asked a result to be written to."""

from __future__ import annotations

import os
from pathlib import Path

from ..schemas.errors import SourceUnreadable
from .scratch import open_unfinished


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


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one step: what was there stays until the new one is whole.

    Raises:
        SourceUnreadable: it cannot be written.
    """
    partial = None
    try:
        descriptor, partial = open_unfinished(path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise SourceUnreadable(f"cannot write `{path}`: {error.strerror or error}") from error
