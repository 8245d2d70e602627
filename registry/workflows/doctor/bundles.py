"""Bundles: whether each lies where the catalog last saw it, with the manifest it had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ....files.digests import hash_file
from ....files.reading import read_bounded
from ....schemas.bundle import MANIFEST_FILE
from ....schemas.errors import MeteoraError
from ....schemas.manifest import MAX_MANIFEST_BYTES, Manifest
from ....schemas.names import below
from ...catalog.references import BundlePlace
from .problem import Code, Problem, join_some


def examine_bundles(places: Iterable[BundlePlace]) -> Iterator[Problem]:
    """What is wrong with the registered bundles, which ought to lie in these places.

    Of a bundle's files the manifest is read, and of the others the sizes; ``verify`` reads them whole.
    """
    for place in places:
        problem = _examine(place)
        if problem is not None:
            yield problem


def _examine(place: BundlePlace) -> Problem | None:
    manifest = place.path / MANIFEST_FILE
    again = f"fuse or pull it again, or forget it with `meteora-registry remove {place.version}`"
    if not manifest.is_file():
        what = "holds no bundle any more" if place.path.is_dir() else "is not there"
        found = f"`{place.path}` {what}"
        return Problem(Code.BUNDLE_GONE, f"`{place.version}`", found, f"put it back; {again}")
    if manifest.stat().st_size > MAX_MANIFEST_BYTES or hash_file(manifest) != place.manifest_sha256:
        found = f"`{manifest}` is not the one that was registered, `{place.manifest_sha256.short}`"
        return Problem(Code.BUNDLE_CHANGED, f"`{place.version}`", found, again)
    changed = _changed_files(place)
    if changed:
        found = f"in `{place.path}` these are missing or have another size: {join_some(changed)}"
        return Problem(Code.BUNDLE_CHANGED, f"`{place.version}`", found, again)
    return None


def _changed_files(place: BundlePlace) -> list[str]:
    try:
        data = read_bounded(place.path / MANIFEST_FILE, MAX_MANIFEST_BYTES)
        files = Manifest.read(data).files
    except MeteoraError:
        return [MANIFEST_FILE]
    paths = {name: (below(place.path, name), record.size_bytes) for name, record in files.items()}
    return [name for name, (path, size) in paths.items() if not path.is_file() or path.stat().st_size != size]
