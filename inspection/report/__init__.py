"""A validation report in the formats that people and machines read, one module each.

All but the document itself are written from one ``Overview``.
"""

from __future__ import annotations

from collections.abc import Callable

from ...schemas.report import Report
from .github import format_github
from .gitlab import format_gitlab
from .html import format_html
from .junit import format_junit
from .markdown import format_markdown
from .overview import Overview, Setting
from .places import Places, find_root
from .sarif import format_sarif
from .text import format_text

__all__ = ["FORMATS", "Places", "Setting", "find_root", "format_report"]


def format_json(overview: Overview) -> str:
    """Return the report's own document, in its canonical spelling."""
    return overview.report.to_bytes().decode("ascii")


FORMATS: dict[str, Callable[[Overview], str]] = {
    "text": format_text,
    "json": format_json,
    "sarif": format_sarif,
    "junit": format_junit,
    "markdown": format_markdown,
    "github": format_github,
    "gitlab": format_gitlab,
    "html": format_html,
}
# Read by a person at a prompt, or by a program that knows the paths that it gave.
_AS_GIVEN = frozenset({"text", "json"})


def format_report(report: Report, name: str, setting: Setting | None = None) -> str:
    """Return a report in one of the ``FORMATS``; text and JSON have the paths as they were given."""
    given = setting or Setting()
    if name in _AS_GIVEN:
        given = Setting(docs_url=given.docs_url)
    return FORMATS[name](Overview.of(report, given))
