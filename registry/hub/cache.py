"""The Hub's cache on this machine, as far as it is looked into without asking the Hub anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from ...schemas.base_name import base_key, parse_cache_path

BASE_CONFIG_FILE = "config.json"


def find_cached_base(name: str, revision: str | None = None) -> Path | None:
    """Return the folder in the cache that has a base's config; None if the cache has none.

    The repository may be there under any spelling of the name, in any case. Without a revision it is the
    commit at which the main branch was last seen.
    """
    for repository in _cached_repositories(base_key(name)):
        try:
            found = try_to_load_from_cache(
                repository, BASE_CONFIG_FILE, cache_dir=constants.HF_HUB_CACHE, revision=revision
            )
        except ValueError:
            # The library refuses some names that a folder may have.
            continue
        if isinstance(found, str):
            return Path(found).parent
    return None


def _cached_repositories(key: str) -> Iterator[str]:
    try:
        names = sorted(path.name for path in Path(constants.HF_HUB_CACHE).iterdir())
    except OSError:
        return
    for name in names:
        cached = parse_cache_path(name)
        if cached is not None and base_key(cached.name) == key:
            yield cached.name
