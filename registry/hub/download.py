"""Files of one commit into a folder, each compared with the digest that the Hub lists for it.

They come through huggingface_hub's cache: what was fetched whole once is not fetched again, so a run
that was cut off goes on where it stopped, and offline mode finds it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ...files.digests import read_chunks
from ...files.progress import UNCOUNTED, Step
from ...files.reading import open_regular, real_path
from ...files.writing import write_errors
from ...inspection.safetensors_file import LENGTH_BYTES, MAX_HEADER_BYTES
from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.document import MAX_CONFIG_BYTES
from ...schemas.errors import HubMismatch, HubRefused
from ...schemas.names import below
from .client import Hub
from .listing import Candidate, ContentHash, Listing, RemoteFile

# The header of an adapter with seven targets in 32 layers has about 60 kB.
_FIRST_BYTES = 64 << 10
_MAKE_ROOM = "make room and run it again; what was fetched whole is kept in huggingface_hub's cache"


def download_files(
    hub: Hub,
    listing: Listing,
    files: Mapping[str, RemoteFile],
    folder: Path,
    *,
    cache: Path | None = None,
    step: Step = UNCOUNTED,
) -> None:
    """Fetch files and copy each to its place below ``folder``; the keys are the places.

    Args:
        hub: where they are fetched.
        listing: the commit that they belong to.
        files: what to fetch, by its path below ``folder``.
        folder: the target; missing folders below it are made.
        cache: a cache of its own, in place of huggingface_hub's.
        step: counts the bytes that were hashed.

    Raises:
        HubMismatch: the bytes are not those of the listing; they were taken out of the cache.
        HubRefused, HubUnavailable: they cannot be had.
        SourceUnreadable: the disk is full or cannot be written.
    """
    for place, file in files.items():
        cached = hub.download(listing, file, cache=cache)
        target = below(folder, place)
        with write_errors(target, hint=_MAKE_ROOM):
            target.parent.mkdir(parents=True, exist_ok=True)
            is_right = _copy_checked(cached, target, file, step)
        if not is_right:
            target.unlink()
            hub.forget(cached)
            raise HubMismatch(
                f"{_place_of(file, listing)} came with other bytes than the Hub lists, and was not kept",
                hint="run it again; if it stays so, the repository or the mirror is damaged",
            )


def _copy_checked(source: Path, target: Path, file: RemoteFile, step: Step) -> bool:
    found = ContentHash(file.size_bytes)
    # The cache's names are links to its blobs.
    with open_regular(real_path(source)) as opened, target.open("xb") as copy:
        for chunk in read_chunks(opened, step):
            found.update(chunk)
            copy.write(chunk)
    return found.result().are_those_of(file)


def read_small_file(hub: Hub, listing: Listing, file: RemoteFile, *, max_bytes: int) -> bytes:
    """Read a small file by one request.

    Raises:
        HubRefused: it is larger than ``max_bytes``, or it cannot be had.
        HubMismatch: its bytes are not those of the listing.
        HubUnavailable: the Hub did not answer.
    """
    if file.size_bytes > max_bytes:
        raise HubRefused(
            f"{_place_of(file, listing)} has {file.size_bytes} bytes, expected at most {max_bytes}"
        )
    data = hub.read_start(listing, file, file.size_bytes)
    found = ContentHash(len(data))
    found.update(data)
    if not found.result().are_those_of(file):
        raise HubMismatch(
            f"{_place_of(file, listing)} came with other bytes than the Hub lists, and was not kept"
        )
    return data


def outline_adapter(hub: Hub, candidate: Candidate, folder: Path) -> None:
    """Write what an inspection without weights reads of an adapter: its config, and its weights' header.

    The weights file has its full length and a hole in place of its data, so it takes no room. Every
    other file is there by name only.

    Raises:
        HubRefused, HubUnavailable, HubMismatch: as ``read_small_file``.
    """
    listing = candidate.listing
    for name, file in candidate.files.items():
        if name == CONFIG_FILE and file.size_bytes <= MAX_CONFIG_BYTES:
            data = read_small_file(hub, listing, file, max_bytes=MAX_CONFIG_BYTES)
            below(folder, name).write_bytes(data)
        elif name in (CONFIG_FILE, WEIGHTS_FILE):
            with below(folder, name).open("xb") as target:
                target.write(_read_header(hub, listing, file) if name == WEIGHTS_FILE else b"")
                target.truncate(file.size_bytes)
        elif name.isprintable() and len(os.fsencode(name)) < 256:
            below(folder, name).touch()


def _read_header(hub: Hub, listing: Listing, file: RemoteFile) -> bytes:
    start = hub.read_start(listing, file, _FIRST_BYTES)
    end = LENGTH_BYTES + int.from_bytes(start[:LENGTH_BYTES], "little")
    if end <= len(start) or end > min(file.size_bytes, LENGTH_BYTES + MAX_HEADER_BYTES):
        # It is complete, or its length cannot be right, which the inspection reports.
        return start
    return start + hub.read_start(listing, file, end - len(start), skip=len(start))


def _place_of(file: RemoteFile, listing: Listing) -> str:
    return f"`{file.path}` of `{listing.repository}@{listing.commit}`"
