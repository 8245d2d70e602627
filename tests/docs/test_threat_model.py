"""The pages on security name tests that exist, and every hostile party has some."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from support.source_tree import ROOT

PAGES = {name: ROOT / name for name in ("docs/threat-model.md", "docs/signing.md", "SECURITY.md")}
PARTIES = {
    "The author of an adapter",
    "The publisher of a bundle",
    "A mirror, or a Hub that was taken over",
    "A writer of the catalog or of the store",
    "The author of a pull request",
    "A client of the server",
}
_NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


@pytest.mark.parametrize("page", PAGES)
def test_page_on_security_names_tests_that_exist(page: str) -> None:
    named = _NAMED.findall(PAGES[page].read_text(encoding="utf-8"))
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file() or (name and name not in names_of_tests(ROOT / file))
    ]
    assert missing == []
    assert named or page == "SECURITY.md"


def test_threat_model_has_every_party_with_a_test_in_each_row_and_what_is_not_protected() -> None:
    text = PAGES["docs/threat-model.md"].read_text(encoding="utf-8")
    sections = [part.split("\n", 1) for part in text.split("\n## ")[1:]]
    assert sorted(party for party, _ in sections) == sorted(PARTIES)
    for party, section in sections:
        rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
        assert rows, party
        assert [row for row in rows if not _NAMED.search(row)] == [], party
        assert "\nNot protected" in section, party


def test_security_page_leads_to_the_threat_model_and_the_readme_to_both() -> None:
    assert "(docs/threat-model.md)" in PAGES["SECURITY.md"].read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"(SECURITY.md)", "(docs/threat-model.md)", "(docs/signing.md)"} <= set(
        re.findall(r"\([^)]*\)", readme)
    )
