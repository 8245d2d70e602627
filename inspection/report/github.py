"""A report as GitHub workflow commands, which become annotations of the changed files."""

from __future__ import annotations

from collections.abc import Iterator

from .overview import LEVELS, Entry, Level, Overview, describe

# GitHub shows so many of each kind for a step, and drops the others without a word.
MAX_ANNOTATIONS = 10
_COMMANDS: dict[Level, str] = {"error": "error", "warning": "warning", "note": "notice"}


def format_github(overview: Overview) -> str:
    """Return the worst ten commands of each kind, the last of which names how many there are beyond them."""
    commands: dict[Level, list[tuple[str, str]]] = {level: [] for level in LEVELS}
    commands["error"] += _unreadable(overview)
    for path, entry in overview.worst_first:
        commands[entry.level].append((_properties(path, entry), _message(entry)))
    return "".join(f"{line}\n" for level in LEVELS for line in _bound(_COMMANDS[level], commands[level]))


def _bound(command: str, found: list[tuple[str, str]]) -> Iterator[str]:
    rest = len(found) - MAX_ANNOTATIONS
    for number, (properties, message) in enumerate(found[:MAX_ANNOTATIONS], start=1):
        more = f" ({rest} more: see the report)" if rest > 0 and number == MAX_ANNOTATIONS else ""
        yield f"::{command} {properties}::{_data(message + more)}"


def _unreadable(overview: Overview) -> Iterator[tuple[str, str]]:
    for adapter in overview.adapters:
        if adapter.error:
            yield f"file={_property(adapter.path)},title=unreadable", adapter.error


def _properties(path: str, entry: Entry) -> str:
    file = entry.file or path
    properties = {"file": file} if file else {}
    if entry.place.region:
        properties["line"] = str(entry.place.region.line)
    properties["title"] = f"{entry.finding.code} {entry.finding.title}"
    return ",".join(f"{name}={_property(value)}" for name, value in properties.items())


def _message(entry: Entry) -> str:
    finding = entry.finding
    detail = finding.place.tensor or finding.place.field
    where = f"{detail}: " if detail else ""
    return f"{where}{describe(finding)}; {finding.remedy}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
