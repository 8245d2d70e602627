"""A report as the page of a job: a comment or a summary, within the length that the host takes."""

from __future__ import annotations

import re
from collections.abc import Callable

from ...inspection.report import Places, Setting, format_report
from ...schemas.quotation import escape
from .check import Checked

_SHORTENED = "**This page is shortened; the job's log and its files have all of it.**\n\n"
_OPENED, _CLOSED = re.compile(r"^<details\b", re.MULTILINE), "</details>"


def render(checked: Checked, form: str) -> str:
    """Return the report in one of the formats of ``validate``, with paths as the repository has them."""
    return format_report(checked.report, form, Setting(Places(checked.root), checked.docs_url))


def render_page(checked: Checked) -> str:
    """Return the report in markdown, with the remarks on how it was made below."""
    remarks = "\n".join(f"- {_plain(remark)}" for remark in checked.remarks)
    return f"{render(checked, 'markdown')}\n{remarks}\n" if remarks else render(checked, "markdown")


def shorten(text: str, limit: int, *, size: Callable[[str], int] = len) -> str:
    """Return the first lines of a page that fit into ``limit``, with what they open closed again."""
    if size(text) <= limit:
        return text
    room = limit - size(_SHORTENED)
    kept, used, is_open = [], 0, 0
    for line in text.splitlines(keepends=True):
        opened = is_open + len(_OPENED.findall(line)) - line.count(_CLOSED)
        used += size(line)
        if used + opened * (len(_CLOSED) + 1) > room:
            break
        kept.append(line)
        is_open = opened
    return _SHORTENED + "".join(kept) + f"{_CLOSED}\n" * is_open


def size_in_bytes(text: str) -> int:
    """Return the size of a text in UTF-8."""
    return len(text.encode("utf-8", errors="replace"))


def _plain(remark: str) -> str:
    # What is quoted is a code span, in which nothing is markup; the rest is ours.
    parts = remark.split("`")
    return "`".join(escape(part, limit=600) for part in parts)
