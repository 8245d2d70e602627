"""``repair``: a copy of an adapter under PEFT's tensor names; every number stays as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...bundle.files import staged_target
from ...files.reading import open_regular
from ...inspection.adapter import inspect_adapter
from ...inspection.header import Header, read_header_of
from ...inspection.keys import normalise
from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.errors import AdapterRefused, SourceUnreadable, UsageError
from ...schemas.finding import Verdict
from .additions import TEXT_FILES

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Repair:
    """A repaired copy: where it is, how many tensors got other names there, and its verdict."""

    folder: Path
    renamed: int
    verdict: Verdict


def repair(folder: Path, target: Path) -> Repair:
    """Write a copy of an adapter in which every tensor has the name that PEFT gives it.

    Args:
        folder: the adapter, which stays as it is.
        target: the new folder.

    Raises:
        AdapterRefused: the adapter is broken in another way, so that other names do not help.
        UsageError: its names are PEFT's already, or the target is not a new folder.
        SourceUnreadable: a file cannot be read.
    """
    original = inspect_adapter(folder).require_sound(f"`{folder}` is broken, and other names do not help")
    names = {entry.name: normalise(entry.name) for entry in original.header.tensors}
    renamed = sum(old != new for old, new in names.items())
    if not renamed:
        raise UsageError(f"the tensors of `{folder}` have PEFT's names already", hint="nothing needs doing")
    with staged_target(target) as staged:
        (staged / CONFIG_FILE).write_bytes(original.config_text.encode("utf-8"))
        _copy_weights(folder / WEIGHTS_FILE, original.header, names, staged / WEIGHTS_FILE)
        _copy_texts(folder, staged)
        repaired = inspect_adapter(staged)
        if not repaired.verdict.sound:
            raise AdapterRefused(f"`{folder}` is still broken under PEFT's names", findings=repaired.findings)
    return Repair(target, renamed, repaired.verdict)


def _copy_weights(source: Path, header: Header, names: Mapping[str, str], target: Path) -> None:
    """Copy a weights file with other names in its header; the data behind it is the same."""
    declared = json.loads(header.text)
    text = json.dumps({names.get(name, name): entry for name, entry in declared.items()}).encode("utf-8")
    # Readers map the data into memory, so it begins at a multiple of eight.
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with open_regular(source) as file, target.open("xb") as written:
        if read_header_of(file, WEIGHTS_FILE).text != header.text:
            raise SourceUnreadable(
                f"`{source}` changed while it was read", hint="give the same command again"
            )
        written.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        file.seek(header.data_start)
        shutil.copyfileobj(file, written)


def _copy_texts(folder: Path, target: Path) -> None:
    for name in TEXT_FILES:
        if (folder / name).is_file() and not (folder / name).is_symlink():
            shutil.copyfile(folder / name, target / name)
