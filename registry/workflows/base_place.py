"""A base model as a command names it: what it is called, and where its config is.

The two are apart. A name goes into bundles, cards and comparisons; a folder is only read. The folder is the
one that was given, or the one that the local Hub cache has for the name: nothing is fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...bundle import Bundle
from ...schemas.base_name import (
    common_hub_name,
    is_hub_id,
    is_local_path,
    is_other_base,
    parse_cache_path,
    present_name,
)
from ...schemas.errors import MeteoraError, SourceUnreadable, UsageError
from ..workspace import StrPath, Workspace

MAX_BASE_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class BasePlace:
    """A base as it was given: by its name, by a folder or a config on this machine, or by both.

    ``path`` is the text of a folder that was given in place of a name.
    """

    name: str | None = None
    folder: Path | None = None
    path: str | None = None

    def name_for(self, declared: Iterable[str | None]) -> str | None:
        """Return the name that adapters with these declared bases get, None to leave it to them.

        A folder stands for the one base on the Hub that the adapters declare. Only where none of them
        declares one does a folder that was given as the base become the base's name.
        """
        if self.name is not None or self.folder is None:
            return self.name
        names = list(declared)
        if any(name and is_hub_id(name) for name in names):
            return common_hub_name(names)
        return self.path


def place_base(base: StrPath | None, folder: StrPath | None = None) -> BasePlace:
    """Return the base that ``--base`` and ``--base-folder`` mean.

    A ``base`` that is a folder or a file of this machine is looked into unless ``folder`` is given; one
    inside a Hub cache is called by its repository's name.

    Raises:
        UsageError: the base is not a name, or is a path although its folder is given.
        SourceUnreadable: the folder does not exist.
    """
    text = None if base is None else check_base(os.fspath(base))
    if folder is not None:
        place = Path(folder)
        if not place.exists():
            raise SourceUnreadable(f"the base's folder `{place}` does not exist")
        if text is not None and is_local_path(text):
            raise UsageError(
                f"the base is named by the path `{text}`, expected a name: its folder is given too",
                hint="name it as `--base ORG/MODEL --base-folder FOLDER`",
            )
        return BasePlace(_named(text) or _cached_name(place), place)
    if text is None:
        return BasePlace()
    place = Path(text)
    if place.exists():
        # `models/base` would read as a name on the Hub.
        return BasePlace(_cached_name(place), place, path=text if is_local_path(text) else f"./{text}")
    return BasePlace(_named(text))


def choose_base_to_run(
    workspace: Workspace, bundle: Path, base: StrPath | None, folder: StrPath | None
) -> str:
    """Return the folder or the name that the base of a bundle is loaded from.

    It is the one that the bundle was fused for unless another is given. One whose name is another is used
    with a warning, and so is one that the bundle names and that is not on this machine.

    Raises:
        UsageError: they contradict each other, or neither is given and the bundle does not name one.
        SourceUnreadable, InvalidDocument, BundleRefused: the bundle's config or the folder cannot be read.
    """
    place = place_base(base, folder)
    source = base if folder is None else folder
    fused_for = Bundle.open(bundle).config.base_model_name_or_path
    if source is None:
        return _recorded_base(workspace, fused_for)
    if is_other_base(place.name, fused_for):
        workspace.warn(f"the bundle was fused for `{fused_for}` and is used with `{place.name}`")
    return os.fspath(source)


def _recorded_base(workspace: Workspace, fused_for: str | None) -> str:
    """Return the base that a bundle names, if it can be loaded by that name; a download is announced."""
    # The publisher of the bundle chose the name.
    hint = "name it with `--base ORG/MODEL`, or its folder with `--base-folder`"
    if fused_for is None:
        raise UsageError("no base model was named, and the bundle does not name one", hint=hint)
    check_base(fused_for)
    if is_local_path(fused_for) and not Path(fused_for).exists():
        raise SourceUnreadable(
            f"the bundle was fused for the base in `{fused_for}`, which does not exist here", hint=hint
        )
    if not Path(fused_for).exists() and find_cached(fused_for) is None:
        workspace.warn(f"the bundle names the base `{fused_for}`, which is downloaded from the Hub")
    return fused_for


def find_cached(name: str, revision: str | None = None) -> Path | None:
    """Return the folder in the local Hub cache that has a base's config; None if there is none."""
    if not is_hub_id(name):
        return None
    try:
        from ..hub.cache import find_cached_base
    except MeteoraError:
        # The Hub's client refuses this environment, so it has no cache here.
        return None
    return find_cached_base(name, revision)


def check_base(base: str) -> str:
    """Return ``base``, if it may name a base model: 1 to 512 printable characters.

    Raises:
        UsageError: any other text.
    """
    if not base.strip() or len(base) > MAX_BASE_CHARACTERS or not base.isprintable():
        raise UsageError(
            f"{base[:80]!r} names no base model, expected 1 to {MAX_BASE_CHARACTERS} printable characters",
            hint="such as `meta-llama/Llama-3.1-8B`",
        )
    return base


def _named(text: str | None) -> str | None:
    return None if text is None else present_name(text)


def _cached_name(folder: Path) -> str | None:
    cached = parse_cache_path(str(folder.absolute()))
    return None if cached is None else present_name(cached.name)
