"""A validation report in the formats that people and machines read, one module each."""

from __future__ import annotations

from collections.abc import Callable

from ...schemas.report import Report
from .github import format_github
from .junit import format_junit
from .markdown import format_markdown
from .sarif import format_sarif
from .text import format_text


def format_json(report: Report) -> str:
    """Return the report's own document, in its canonical spelling."""
    return report.to_bytes().decode("ascii")


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": format_text,
    "json": format_json,
    "sarif": format_sarif,
    "junit": format_junit,
    "markdown": format_markdown,
    "github": format_github,
}
