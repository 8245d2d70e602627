"""The files of a bundle: whether they are those of the manifest, and the record that is put beside them."""

from __future__ import annotations

import os
from pathlib import Path

from ..files.scratch import staged_path
from ..schemas import bundle as names
from ..schemas.digest import Digest
from ..schemas.errors import MeteoraError, SourceUnreadable
from ..schemas.manifest import Manifest
from ..schemas.names import below
from ..schemas.verification import VerificationRecord
from .opened import Bundle

# A record on its way in; a process that died may have left it.
PARTIAL_RECORD = staged_path(Path(names.VERIFICATION_FILE)).name
# What hosts and version control put beside the files; it is no part of the bundle.
_FOREIGN = frozenset({".git", ".gitattributes", ".gitignore", ".cache", PARTIAL_RECORD})
_UNLISTED = frozenset({names.MANIFEST_FILE, names.VERIFICATION_FILE})


def check_files(folder: Path, manifest: Manifest) -> list[str]:
    """Check that every file of the manifest has its digest and that the folder holds no other file."""
    problems = []
    for name, record in sorted(manifest.files.items()):
        path = below(folder, name)
        if not path.is_file():
            problems.append(f"`{name}` is missing")
        elif (size := path.stat().st_size) != record.size_bytes:
            problems.append(f"`{name}` has {size} bytes, the manifest says {record.size_bytes}")
        elif (digest := Digest.of_file(path)) != record.sha256:
            problems.append(f"`{name}` has digest `{digest}`, the manifest says `{record.sha256}`")
    required = {names.CONFIG_FILE, names.WEIGHTS_FILE}
    problems += [f"the manifest does not list `{name}`" for name in sorted(required - set(manifest.files))]
    problems += [
        f"`{name}` is not in the manifest"
        for name in sorted(_files_in(folder) - set(manifest.files) - _UNLISTED)
    ]
    return problems + check_experts(manifest)


def check_experts(manifest: Manifest) -> list[str]:
    """Check that ``experts/``, where there is one, holds each member's own two files and nothing else."""
    found = {
        name: record.sha256
        for name, record in manifest.files.items()
        if name.startswith(f"{names.EXPERTS_FOLDER}/")
    }
    if not found:
        return []
    own = {
        f"{names.EXPERTS_FOLDER}/{member.name}/{file}": digest
        for member in manifest.members
        for file, digest in (
            (names.CONFIG_FILE, member.config_sha256),
            (names.WEIGHTS_FILE, member.weights_sha256),
        )
    }
    problems = [f"the manifest does not list `{name}`" for name in sorted(own.keys() - found.keys())]
    problems += [f"`{name}` is not a file of a member" for name in sorted(found.keys() - own.keys())]
    problems += [
        f"`{name}` has digest `{found[name]}`, the manifest gives the member's own as `{own[name]}`"
        for name in sorted(own.keys() & found.keys())
        if found[name] != own[name]
    ]
    return problems


def _files_in(folder: Path) -> set[str]:
    # A linked folder counts as a file: what lies behind it is no part of the bundle.
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    relative = (path.relative_to(folder) for path in files)
    return {path.as_posix() for path in relative if path.parts[0] not in _FOREIGN}


def check_record(bundle: Bundle) -> list[str]:
    """Check that the verification record, where there is one, is unchanged and for this very manifest."""
    try:
        record = bundle.record
    except MeteoraError as error:
        return [str(error)]
    if record is None or record.manifest_sha256 == bundle.manifest_sha256:
        return []
    return [
        f"`{names.VERIFICATION_FILE}` is for the manifest `{record.manifest_sha256.short}`, "
        f"this one is `{bundle.manifest_sha256.short}`"
    ]


def write_record(folder: Path, record: VerificationRecord) -> None:
    """Put a record into the bundle it is about, in one step: the old one stays until the new one is whole."""
    target, partial = folder / names.VERIFICATION_FILE, folder / PARTIAL_RECORD
    try:
        # A bundle from elsewhere may have a link under this name, and writing would follow it.
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(record.seal())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise SourceUnreadable(
            f"cannot write `{target}`: {error.strerror or error}",
            hint="check its permissions and the free space",
        ) from error
