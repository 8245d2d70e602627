"""The overview of a report that every format shows: the worst first, and one issue for a rule and a reason.

An entry is one finding with its level and place. An issue gathers the entries of all adapters that break the
same rule for the same reason: the same way out, at the same kind of place.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from ...schemas.finding import Finding, Severity
from ...schemas.quotation import escape
from ...schemas.report import AdapterReport, Outcome, Report, Selection
from ..rules.rule import registered_rules
from .places import Place, Places

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
_MAX_PATH_CHARACTERS = 4096
_MAX_ERROR_CHARACTERS = 4096
# What a person has to act on comes first.
_WORST_FIRST = (Outcome.REFUSED, Outcome.UNREADABLE, Outcome.INCONCLUSIVE, Outcome.ACCEPTED)


@dataclass(frozen=True, slots=True)
class Setting:
    """The repository and the pages beside which a report is read.

    Attributes:
        places: the root that paths are shown relative to.
        docs_url: the address of the page that has a section for every rule.
    """

    places: Places = field(default_factory=Places)
    docs_url: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One finding as a report shows it; ``fingerprint`` is the same as long as rule, place and reason are."""

    finding: Finding
    level: Level
    place: Place
    fingerprint: str

    @property
    def file(self) -> str:
        """The path of its file, escaped for people; empty if it has none."""
        return escape(self.place.path, limit=_MAX_PATH_CHARACTERS)

    @property
    def reason(self) -> tuple[str | None, ...]:
        """What the entries of one issue have in common."""
        return _reason_of(self.finding)


@dataclass(frozen=True, slots=True)
class ShownAdapter:
    """One adapter: its path, escaped for people, its report, and its entries, the worst first."""

    path: str
    report: AdapterReport
    entries: tuple[Entry, ...]

    @property
    def heading(self) -> str:
        """The outcome and the verdict."""
        verdict = f" ({self.report.verdict})" if self.report.verdict else ""
        return f"{self.report.outcome}{verdict}"

    @property
    def is_clean(self) -> bool:
        """Whether it was accepted, and there is nothing to state of it."""
        return self.report.outcome is Outcome.ACCEPTED and not (self.entries or self.remarks)

    @property
    def error(self) -> str | None:
        """The reason why it could not be read, escaped for people; None if it could."""
        error = self.report.error
        return escape(error, limit=_MAX_ERROR_CHARACTERS) if error else None

    @property
    def remarks(self) -> list[str]:
        """What was not checked, and how many findings a baseline has."""
        known = len(self.report.known)
        counted = [f"{_findings(known)} of the baseline, not counted"] if known else []
        return [*counted, *(f"not checked: {what}" for what in self.report.unchecked)]


@dataclass(frozen=True, slots=True)
class Issue:
    """The entries of one rule and one reason: the first, the paths of its adapters, and their number."""

    level: Level
    example: Entry
    paths: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Overview:
    """A report, ordered for reading."""

    report: Report
    adapters: tuple[ShownAdapter, ...]
    together: tuple[Entry, ...]
    docs_url: str | None

    @classmethod
    def of(cls, report: Report, setting: Setting) -> Overview:
        """Return the overview of a report."""
        shown = [_show(adapter, report, setting.places) for adapter in report.adapters]
        shown.sort(key=lambda each: _WORST_FIRST.index(each.report.outcome))
        places = [Place(finding.place.file or "") for finding in report.together]
        together = _entries("", report.together, places, report)
        return cls(report, tuple(shown), together, setting.docs_url)

    @property
    def total(self) -> str:
        """The number of adapters of each outcome, the worst first."""
        counts = Counter(each.report.outcome for each in self.adapters)
        listed = ", ".join(f"{counts[each]} {each}" for each in _WORST_FIRST if counts[each])
        adapters = "1 adapter" if len(self.adapters) == 1 else f"{len(self.adapters)} adapters"
        return f"{adapters}: {listed}" if listed else adapters

    @property
    def remarks(self) -> list[str]:
        """Which adapters were chosen, what is known of them together, and what was not checked."""
        report = self.report
        known = len(report.known_together)
        counted = [f"{_findings(known)} of the baseline against fusing, not counted"] if known else []
        chosen = [_describe_selection(report.selection)] if report.selection else []
        return [*chosen, *counted, *(f"not checked: {what}" for what in report.not_asked)]

    @property
    def entries(self) -> Iterator[tuple[str, Entry]]:
        """The path of the adapter and the entry of every finding; those against fusing have no path."""
        own = ((each.path, entry) for each in self.adapters for entry in each.entries)
        return chain(own, (("", entry) for entry in self.together))

    @property
    def worst_first(self) -> list[tuple[str, Entry]]:
        """All entries by level, and of each level first one of every issue."""
        seen: set[tuple[object, ...]] = set()
        ranked = []
        for path, entry in self.entries:
            key = (entry.level, entry.reason)
            ranked.append((LEVELS.index(entry.level), key in seen, path, entry))
            seen.add(key)
        ranked.sort(key=lambda each: each[:2])
        return [(path, entry) for _, _, path, entry in ranked]

    @property
    def issues(self) -> list[Issue]:
        """The issues: by level, then those of the most adapters."""
        groups: dict[tuple[object, ...], list[tuple[str, Entry]]] = defaultdict(list)
        for path, entry in self.entries:
            groups[entry.level, entry.reason].append((path, entry))
        found = [_issue(group) for group in groups.values()]
        return sorted(found, key=lambda each: (LEVELS.index(each.level), -len(each.paths)))

    @property
    def clean(self) -> list[ShownAdapter]:
        """The accepted adapters without findings and remarks."""
        return [each for each in self.adapters if each.is_clean]

    @property
    def notable(self) -> list[ShownAdapter]:
        """All other adapters."""
        return [each for each in self.adapters if not each.is_clean]

    def link_to(self, code: str) -> str | None:
        """Return the address of a rule's section on the page of rules, if that is known."""
        names = (rule.name for rule in registered_rules() if rule.code == code)
        return f"{self.docs_url}#{code.lower()}-{next(names, '')}" if self.docs_url else None


def level_of(finding: Finding, report: Report) -> Level:
    """Return error for a finding against the purpose; a refusal for another purpose is only a note."""
    if report.counts_against(finding):
        return "error"
    return "warning" if finding.severity is Severity.WARN else "note"


def describe(finding: Finding) -> str:
    """Return what was found and what was expected."""
    return f"found {finding.found}, expected {finding.expected}"


def _findings(count: int) -> str:
    return "1 finding" if count == 1 else f"{count} findings"


def _describe_selection(selection: Selection) -> str:
    since = f"since the commit `{selection.commit[:12]}`"
    if selection.reason:
        return f"all adapters, not only those that changed {since}: {selection.reason}"
    gone = f", {len(selection.removed)} removed" if selection.removed else ""
    return f"adapters that changed {since}; {selection.unchanged} unchanged{gone}"


def _show(adapter: AdapterReport, report: Report, places: Places) -> ShownAdapter:
    path = escape(places.path_of(adapter.name), limit=_MAX_PATH_CHARACTERS)
    located = places.locate(adapter.name, adapter.findings)
    return ShownAdapter(path, adapter, _entries(path, adapter.findings, located, report))


def _entries(
    path: str, findings: tuple[Finding, ...], places: Iterable[Place], report: Report
) -> tuple[Entry, ...]:
    """Return the entries of one adapter, the worst first; of one rule and reason each has its number."""
    numbers: Counter[str] = Counter()
    found = []
    for finding, place in zip(findings, places, strict=True):
        digest = _digest(path, finding)
        numbers[digest] += 1
        entry = Entry(finding, level_of(finding, report), place, f"{digest}:{numbers[digest]}")
        found.append(entry)
    return tuple(sorted(found, key=lambda entry: LEVELS.index(entry.level)))


def _reason_of(finding: Finding) -> tuple[str | None, ...]:
    """Return the parts of a finding that do not change with its numbers; the first tensor of many does."""
    place = finding.place
    field = place.field.partition(".")[0] if place.field and place.tensor is None else None
    return finding.code, finding.remedy, place.file, field


def _digest(path: str, finding: Finding) -> str:
    # Not the way out, which a later version may word otherwise.
    code, _, file, field = _reason_of(finding)
    return digest_of(path, code, file, field)


def digest_of(*parts: str | None) -> str:
    """Return a short digest of what makes up a fingerprint."""
    text = "\0".join(part or "" for part in parts)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def _issue(group: list[tuple[str, Entry]]) -> Issue:
    paths = tuple(dict.fromkeys(path for path, _ in group))
    first = group[0][1]
    return Issue(first.level, first, paths, len(group))
