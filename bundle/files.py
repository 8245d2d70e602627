"""The files of a bundle, compared with its manifest, and how they get to their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..files.digests import hash_file
from ..files.reading import read_bounded, real_path
from ..files.scratch import is_unfinished, staged_path
from ..files.staging import check_new_folder, staged_folder
from ..files.writing import write_whole
from ..schemas import bundle as names
from ..schemas.errors import MeteoraError, SourceUnreadable, UsageError
from ..schemas.inventory import Dtype
from ..schemas.manifest import FileRecord, Manifest
from ..schemas.names import below
from ..schemas.verification import VerificationRecord
from .card_sections import is_same_card
from .opened import Bundle

# Where earlier versions wrote a record before it was whole; a process that died may have left it.
OLD_PARTIAL_RECORD = staged_path(Path(names.VERIFICATION_FILE)).name
# Hosts and version control add these beside the files; they are not part of the bundle.
_FOREIGN = frozenset(
    {".git", ".gitattributes", ".gitignore", ".cache", names.SIGNATURE_FILE, OLD_PARTIAL_RECORD}
)
# A bundle in half precision is computed in float32 and in its own type.
_COMPUTED_IN = {Dtype.F32: "float32", Dtype.F16: "float16", Dtype.BF16: "bfloat16"}
_UNLISTED = frozenset({names.MANIFEST_FILE, names.VERIFICATION_FILE, names.CARD_FILE})


def check_files(folder: Path, manifest: Manifest) -> list[str]:
    """Check that every file of the manifest has its digest and that the folder holds no other file.

    The card is left to ``check_card``: people edit it, and nothing that is computed depends on it.
    """
    problems = check_listed(manifest)
    for name in sorted(manifest.files.keys() - {names.CARD_FILE}):
        problems += _compare(folder, name, manifest.files[name])
    required = {names.CONFIG_FILE, names.WEIGHTS_FILE}
    problems += [f"the manifest does not list `{name}`" for name in sorted(required - set(manifest.files))]
    problems += [
        f"`{name}` is not in the manifest"
        for name in sorted(_files_in(folder) - set(manifest.files) - _UNLISTED)
    ]
    return problems + check_experts(manifest)


def check_listed(manifest: Manifest) -> list[str]:
    """Check that the manifest lists only files that bundle format 1 has.

    A bundle with a pickle, a script or a config of another library would vouch for it with its digest.
    """
    return [
        f"the manifest lists `{name}`, and a bundle of format {names.BUNDLE_FORMAT} has no such file"
        for name in manifest.unknown_files
    ]


def check_card(folder: Path, manifest: Manifest) -> list[str]:
    """Return how the card differs from the one that the manifest lists; empty if it is that one.

    Sections that ``push`` added do not count.
    """
    listed = manifest.files.get(names.CARD_FILE)
    if listed is None:
        exists = (folder / names.CARD_FILE).exists()
        return ["the card was added after the bundle was made"] if exists else []
    found = _compare(folder, names.CARD_FILE, listed)
    path = below(folder, names.CARD_FILE)
    if found and path.is_file() and path.stat().st_size <= names.MAX_CARD_BYTES:
        with suppress(SourceUnreadable):
            if is_same_card(read_bounded(path, names.MAX_CARD_BYTES), listed.sha256):
                return []
    return [f"the card was changed after the bundle was made: {each}" for each in found]


def _compare(folder: Path, name: str, record: FileRecord) -> list[str]:
    path = below(folder, name)
    if not path.is_file():
        return [f"`{name}` is missing"]
    if (size := path.stat().st_size) != record.size_bytes:
        return [f"`{name}` has {size} bytes, the manifest lists {record.size_bytes}"]
    if (digest := hash_file(path)) != record.sha256:
        return [f"`{name}` has digest `{digest}`, the manifest lists `{record.sha256}`"]
    return []


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
    # A linked folder counts as a file: its content is not part of the bundle.
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    relative = (path.relative_to(folder) for path in files)
    return {path.as_posix() for path in relative if not _is_foreign(path.parts[0])}


def _is_foreign(name: str) -> bool:
    # Another process may be putting its record there.
    return name in _FOREIGN or is_unfinished(Path(name), of=names.VERIFICATION_FILE)


def check_record(bundle: Bundle) -> list[str]:
    """Check that the verification record, where there is one, is one of this very bundle."""
    try:
        record = bundle.record
    except MeteoraError as error:
        return [str(error)]
    return [] if record is None else judge_record(bundle, record)


def judge_record(bundle: Bundle, record: VerificationRecord) -> list[str]:
    """Return why a record cannot be that of a verification of this bundle; empty if it can be."""
    if record.manifest_sha256 != bundle.manifest_sha256:
        return [
            f"`{names.VERIFICATION_FILE}` is for the manifest `{record.manifest_sha256.short}`, "
            f"this one is `{bundle.manifest_sha256.short}`"
        ]
    try:
        found = record.contradictions(bundle.config.target_modules, _COMPUTED_IN[bundle.dtype])
    except MeteoraError:
        # Config and weights have checks of their own, which report it.
        return []
    return [f"`{names.VERIFICATION_FILE}` is not what a verification writes: {each}" for each in found]


def write_record(folder: Path, record: VerificationRecord) -> None:
    """Put a record into the bundle it is about, in one step: the old one stays until the new one is whole.

    Raises:
        SourceUnreadable: it cannot be written.
    """
    write_whole(folder / names.VERIFICATION_FILE, record.seal())


def bundle_around(path: Path) -> Path | None:
    """Return the bundle that a path is inside of, if there is one."""
    return next((each for each in real_path(path).parents if (each / names.MANIFEST_FILE).is_file()), None)


def check_target(target: Path) -> None:
    """Pass if a bundle or an adapter can be put there as a new folder.

    Raises:
        UsageError: something is there, it is inside a bundle, or its name cannot be recorded.
    """
    check_new_folder(target)
    around = bundle_around(target)
    if around is not None:
        raise UsageError(
            f"`{target}` is inside the bundle `{around}`, which may have only what its manifest lists",
            hint="choose another path with `--out`",
        )


@contextmanager
def staged_target(target: Path) -> Iterator[Path]:
    """Yield a new empty folder, which becomes ``target`` when the block ends without an exception.

    Raises:
        UsageError: ``target`` cannot be a new folder (``check_target``), or another process is making it.
        SourceUnreadable: the folder cannot be made, or the disk is full or fails.
    """
    check_target(target)
    with staged_folder(target) as folder:
        yield folder
        check_target(target)
