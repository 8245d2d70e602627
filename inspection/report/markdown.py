"""A report as a comment on a pull request, or as the summary of a job.

Text from adapters is inside code spans, where it is neither markup nor a mention nor a link; text outside of
them is escaped as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape as escape_html

from ...schemas.finding import Finding
from ...schemas.quotation import escape
from .overview import Entry, Issue, Overview, ShownAdapter, describe

# A comment on GitHub has at most 65536 characters; the caller may put a line of its own before it.
MAX_BYTES = 65_000
_MAX_ISSUES = 50
_MAX_NAMED = 20
_SHOWN_CHARACTERS = 300
_SPAN = re.compile(r"`([^`]*)`")
_MARKUP = re.compile(r"[\\*_\[\]<>~|!]")
# GitHub looks for these in text that is rendered already; an empty comment keeps the parts separate.
_MENTION = re.compile(r"(?<=[@#])(?=\w)|(?<=:)(?=//)|(?<=www)(?=\.)")
_IN_CODE = str.maketrans({character: f"&#{ord(character)};" for character in "\\|*_[]~`!@#$:."})


def format_markdown(overview: Overview) -> str:
    """Return the total, a table of issues, and a folded section for each adapter with findings.

    Sections that do not fit a comment are left out, which the last line states.
    """
    head = [f"### {overview.total}", ""]
    if issues := overview.issues:
        head += [*_issues(issues, overview), ""]
    tail = _tail(overview)
    sections = [_section(each) for each in overview.notable]
    if overview.together:
        sections.insert(0, _folded("<b>together</b>", _table(overview.together)))
    kept, left_out = _fit(sections, MAX_BYTES - _size([*head, *tail]))
    if left_out:
        tail += ["", f"{left_out} more adapters with findings do not fit here: see the whole report."]
    return "\n".join([*head, *kept, *tail]).rstrip() + "\n"


def _fit(sections: Sequence[Sequence[str]], room: int) -> tuple[list[str], int]:
    kept: list[str] = []
    for number, section in enumerate(sections):
        room -= _size(section)
        if room < 0:
            return kept, len(sections) - number
        kept += section
    return kept, 0


def _size(lines: Iterable[str]) -> int:
    return sum(len(line.encode("utf-8")) + 1 for line in lines)


def _issues(issues: Sequence[Issue], overview: Overview) -> list[str]:
    lines = ["| | rule | what | adapters | such as |", "|---|---|---|---|---|"]
    lines += [_row(_issue(issue, overview)) for issue in issues[:_MAX_ISSUES]]
    if len(issues) > _MAX_ISSUES:
        lines += ["", f"{len(issues) - _MAX_ISSUES} more kinds of findings are in the whole report."]
    return lines


def _issue(issue: Issue, overview: Overview) -> tuple[str, ...]:
    finding = issue.example.finding
    where = f"{code(issue.paths[0])}: " if issue.paths[0] else ""
    return (
        f"**{issue.level}**" if issue.level == "error" else issue.level,
        _link(finding, overview),
        plain(finding.title),
        str(len(issue.paths)) if issue.paths[0] else "together",
        f"{where}{plain(describe(finding))}",
    )


def _link(finding: Finding, overview: Overview) -> str:
    link = overview.link_to(finding.code)
    return f"[{finding.code}]({link})" if link else finding.code


def _section(adapter: ShownAdapter) -> list[str]:
    # A summary is HTML, so nothing in it is read as Markdown.
    name = escape_html(escape(adapter.path, limit=_SHOWN_CHARACTERS))
    body = []
    if adapter.error:
        body += [plain(adapter.error)]
    if adapter.entries:
        body += _table(adapter.entries)
    if adapter.remarks:
        body += ["", *_remarks(adapter.remarks)]
    return _folded(f"<code>{name}</code>: {escape_html(adapter.heading)}", body)


def _folded(summary: str, body: Sequence[str]) -> list[str]:
    return [f"<details><summary>{summary}</summary>", "", *body, "", "</details>", ""]


def _table(entries: Iterable[Entry]) -> list[str]:
    rows = ["| | rule | where | what | way out |", "|---|---|---|---|---|"]
    for entry in entries:
        finding = entry.finding
        what = plain(f"{finding.title}: {describe(finding)}")
        rows.append(_row((entry.level, finding.code, code(str(finding.place)), what, plain(finding.remedy))))
    return rows


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _tail(overview: Overview) -> list[str]:
    lines = []
    if clean := overview.clean:
        named = ", ".join(code(each.path) for each in clean[:_MAX_NAMED])
        more = f" and {len(clean) - _MAX_NAMED} more" if len(clean) > _MAX_NAMED else ""
        lines += [f"Without findings: {named}{more}.", ""]
    return lines + _remarks(overview.remarks)


def _remarks(remarks: Iterable[str]) -> list[str]:
    return [f"- {plain(remark)}" for remark in remarks]


def code(text: str) -> str:
    """Return text as a code span that neither ends early nor ends the cell of a table."""
    shown = escape(text, limit=_SHOWN_CHARACTERS)
    if "|" in shown or "\\" in shown:
        # Whether a bar after a backslash ends a cell depends on the reader.
        return f"<code>{escape_html(shown, quote=False).translate(_IN_CODE)}</code>"
    return f"`{shown}`" if shown.strip() else "<code></code>"


def plain(text: str) -> str:
    """Return text with its code spans, and all other markup, mentions and links escaped."""
    parts = _SPAN.split(text)
    return "".join(code(part) if index % 2 else _escape(part) for index, part in enumerate(parts))


def _escape(text: str) -> str:
    return _MENTION.sub("<!-- -->", _MARKUP.sub(r"\\\g<0>", text))
