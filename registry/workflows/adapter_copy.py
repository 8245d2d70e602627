"""A catalogued adapter written as a folder again: its files out of the store, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...bundle.files import staged_target
from ...schemas.names import below, check_file_name
from ..catalog.records import AdapterVersion
from ..store import Store


def copy_adapter(store: Store, version: AdapterVersion, target: Path) -> None:
    """Write the files of a catalogued adapter into a new folder.

    Raises:
        StoreDamaged: a blob is missing or was changed; nothing is left.
        InvalidDocument: the catalog has a file under a name that no file of an adapter can have.
        UsageError: the target exists and is not empty.
        SourceUnreadable: the folder cannot be written.
    """
    with staged_target(target) as folder:
        for file in version.files:
            shutil.copyfile(store.check(file.sha256), below(folder, check_file_name(file.name)))
