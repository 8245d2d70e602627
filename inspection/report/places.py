"""Places of findings as a repository knows them: paths relative to its root, and lines of a config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...files.reading import read_start, real_path
from ...schemas.bundle import CONFIG_FILE
from ...schemas.document import load_json
from ...schemas.errors import InvalidDocument, SourceUnreadable
from ...schemas.finding import Finding
from ...schemas.quotation import escape
from ..config_file import MAX_CONFIG_BYTES

# The parts of a JSON text: a string, a bracket or mark, a number or word. The text was parsed before.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_FIRST_LINE = 1


@dataclass(frozen=True, slots=True)
class Region:
    """One line of a file, counted from 1, and the column behind its end; by default the file's start."""

    line: int = _FIRST_LINE
    end_column: int = 1


@dataclass(frozen=True, slots=True)
class Place:
    """The file of a finding, by its path below the root or an absolute one, and the region in it."""

    path: str
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of adapters below a root; without one each path stays as it was given."""

    root: Path | None = None

    def path_of(self, name: str) -> str:
        """Return an adapter's path below the root; outside of it, as it was given."""
        if self.root is None:
            return name
        try:
            return real_path(Path(name)).relative_to(real_path(self.root)).as_posix()
        except (OSError, ValueError):
            return name

    def locate(self, name: str, findings: tuple[Finding, ...]) -> Iterator[Place]:
        """Yield the place of each finding of the adapter at the path ``name``."""
        is_file = _is_file(name)
        config = Path(name) if is_file else Path(name) / CONFIG_FILE
        own = self.path_of(name)
        regions: dict[str, Region] | None = None
        for finding in findings:
            place = finding.place
            path = own if is_file or not place.file else f"{own}/{place.file}".removeprefix("./")
            if place.file != CONFIG_FILE or not place.field:
                yield Place(path)
                continue
            if regions is None:
                regions = _read_regions(config)
            yield Place(path, regions.get(place.field) or regions.get(place.field.partition(".")[0]))


def find_root(start: Path) -> Path | None:
    """Return the nearest folder at or above ``start`` that git manages; None if there is none."""
    try:
        place = real_path(start)
    except OSError:
        # The current folder is gone.
        return None
    return next((each for each in (place, *place.parents) if (each / ".git").exists()), None)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        # Too long, or with a zero byte.
        return False


def _read_regions(config: Path) -> dict[str, Region]:
    """Return the lines of a config's keys; none if it cannot be read any more."""
    try:
        data = read_start(config, MAX_CONFIG_BYTES, follows_links=True)
        if not isinstance(load_json(data, what=CONFIG_FILE, max_bytes=MAX_CONFIG_BYTES), dict):
            return {}
    except (SourceUnreadable, InvalidDocument):
        return {}
    return find_keys(data.decode("utf-8-sig"))


def find_keys(text: str) -> dict[str, Region]:
    """Return the region of every key in an object, and of those in the objects of its values.

    The text is valid JSON. An inner key is called ``outer.inner``, as findings name it.
    """
    lines = text.split("\n")
    found: dict[str, Region] = {}
    path: list[str] = []
    depth = line = position = 0
    key = None
    for token in _TOKEN.finditer(text):
        part = token.group()
        if part in "{[":
            path.append(key or "")
            depth += 1
        elif part in "}]":
            path.pop()
            depth -= 1
        elif part == ":" and depth <= 2 and key is not None:
            name = ".".join([*path[1:], key])
            found.setdefault(escape(name, limit=512), Region(line + 1, len(lines[line].rstrip("\r")) + 1))
        elif part.startswith('"'):
            line += text.count("\n", position, token.start())
            position = token.start()
            key = _unquote(part)
    return found


def _unquote(text: str) -> str:
    return str(json.loads(text))
