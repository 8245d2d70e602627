"""The model card beside an adapter, of which only the license is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..files.reading import read_start
from ..schemas.errors import SourceUnreadable
from ..schemas.quotation import escape

MAX_FRONT_MATTER_BYTES = 32 << 10
_FENCE = "---"
_OTHER = "other"


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, with which a few lines can expand without bound, and without tags.

    A tag can declare any text a date or a truth value, to which PyYAML may respond with any exception.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML leaves it untyped
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise yaml.YAMLError("an alias or a tag")
        return super().compose_node(parent, index)


def read_license(card: Path | str, folder: int | None = None) -> str | None:
    """Return the license in the front matter of a card; None without a readable one.

    ``folder`` is an open one that ``card`` is in.
    """
    try:
        data = read_start(card, MAX_FRONT_MATTER_BYTES, folder=folder)
    except SourceUnreadable:
        return None
    return parse_license(data)


def parse_license(data: bytes) -> str | None:
    """Return the license that the front matter at the beginning of a card's bytes names."""
    lines = (
        data[:MAX_FRONT_MATTER_BYTES].decode("utf-8", errors="replace").removeprefix("\ufeff").splitlines()
    )
    if not lines or lines[0].strip() != _FENCE:
        return None
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() == _FENCE), None)
    if end is None:
        return None
    try:
        # A SafeLoader: it builds plain values only.
        front = yaml.load("\n".join(lines[1:end]), Loader=_PlainLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError):
        return None
    return _license_of(front) if isinstance(front, dict) else None


def _license_of(front: dict[Any, Any]) -> str | None:
    found = front.get("license")
    if isinstance(found, list):
        found = next((name for name in found if isinstance(name, str)), None)
    if found == _OTHER and isinstance(front.get("license_name"), str):
        found = front["license_name"]
    return escape(found.strip()) if isinstance(found, str) and found.strip() else None
