"""A report as one HTML page that needs nothing else: no network, no other file, no script.

The page is a tree of elements, whose texts the library escapes, so text from adapters cannot become markup.
Its policy allows the one style sheet of this folder, by its digest, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib.resources import files
from xml.etree import ElementTree as Xml

from .overview import Entry, Issue, Overview, ShownAdapter, describe

_ISSUE_COLUMNS = ("level", "rule", "what", "adapters", "such as")
_ENTRY_COLUMNS = ("level", "rule", "where", "found", "why", "way out")


def format_html(overview: Overview) -> str:
    """Return the page: the total, the issues, and a section for each adapter, those refused opened."""
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    root = Xml.Element("html", lang="en")
    _add_head(root, style)
    body = Xml.SubElement(root, "body")
    _add(body, "h1", "Adapter validation")
    _add(body, "p", overview.total, "total")
    if issues := overview.issues:
        _add(body, "h2", "Findings")
        _add_table(body, _ISSUE_COLUMNS, map(_issue, issues))
    if overview.together:
        _add(body, "h2", "Together")
        _add_entries(body, overview.together)
    _add_adapters(body, overview)
    for remark in overview.remarks:
        _add(body, "p", remark, "note")
    return "<!DOCTYPE html>\n" + Xml.tostring(root, encoding="unicode", method="html") + "\n"


def _add_head(root: Xml.Element, style: str) -> None:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = Xml.SubElement(root, "head")
    Xml.SubElement(head, "meta", charset="utf-8")
    Xml.SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    Xml.SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    Xml.SubElement(head, "meta", name="referrer", content="no-referrer")
    Xml.SubElement(head, "meta", name="color-scheme", content="light dark")
    _add(head, "title", "Adapter validation")
    _add(head, "style", style)


def _add_adapters(body: Xml.Element, overview: Overview) -> None:
    if notable := overview.notable:
        _add(body, "h2", "Adapters")
        for adapter in notable:
            _add_adapter(body, adapter)
    if clean := overview.clean:
        _add(body, "h2", "Without findings")
        names = Xml.SubElement(body, "ul")
        for adapter in clean:
            _add(Xml.SubElement(names, "li"), "code", adapter.path)


def _add_adapter(body: Xml.Element, adapter: ShownAdapter) -> None:
    outcome = str(adapter.report.outcome)
    section = Xml.SubElement(body, "details", {"class": outcome})
    if outcome in ("refused", "unreadable"):
        section.set("open", "open")
    summary = Xml.SubElement(section, "summary")
    _add(summary, "code", adapter.path)
    _add(summary, "span", adapter.heading, "outcome")
    if adapter.error:
        _add(section, "p", adapter.error)
    if adapter.entries:
        _add_entries(section, adapter.entries)
    for remark in adapter.remarks:
        _add(section, "p", remark, "note")


def _add_entries(parent: Xml.Element, entries: Iterable[Entry]) -> None:
    rows = (
        (
            entry.level,
            f"{entry.finding.code} {entry.finding.title}",
            f"`{entry.finding.place}`",
            describe(entry.finding),
            entry.finding.why,
            entry.finding.remedy,
        )
        for entry in entries
    )
    _add_table(parent, _ENTRY_COLUMNS, rows)


def _issue(issue: Issue) -> tuple[str, ...]:
    finding = issue.example.finding
    path = issue.paths[0]
    example = f"`{path}`: {describe(finding)}" if path else describe(finding)
    return issue.level, finding.code, finding.title, str(len(issue.paths)), example


def _add_table(parent: Xml.Element, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    # A wide table scrolls by itself, not with the page.
    table = Xml.SubElement(Xml.SubElement(parent, "div", {"class": "scroll"}), "table")
    head = Xml.SubElement(Xml.SubElement(table, "thead"), "tr")
    for column in columns:
        _add(head, "th", column)
    body = Xml.SubElement(table, "tbody")
    for cells in rows:
        row = Xml.SubElement(body, "tr", {"class": cells[0]})
        for cell in cells:
            _add_spans(Xml.SubElement(row, "td"), cell)


def _add(parent: Xml.Element, tag: str, text: str, name: str | None = None) -> None:
    element = Xml.SubElement(parent, tag, {"class": name} if name else {})
    if tag in ("code", "style", "title"):
        element.text = text
    else:
        _add_spans(element, text)


def _add_spans(element: Xml.Element, text: str) -> None:
    """Put a message into an element; what is between backticks becomes code."""
    plain, *rest = text.split("`")
    element.text = plain
    for code, following in zip(rest[::2], [*rest[1::2], ""], strict=False):
        span = Xml.SubElement(element, "code")
        span.text, span.tail = code, following
