"""The ways to install the package that any text names: from its source, until an index has a release."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Bundles of older versions are never rewritten.
SKIPPED = ("tests/golden/", "CHANGELOG.md", "tests/docs/test_install.py")
PRUNED = {"build", "dist", "demo-output", "__pycache__", "node_modules"}
SUFFIXES = (".py", ".md", ".toml", ".yml", ".yaml", ".html", "Containerfile", "Makefile")
FROM_AN_INDEX = re.compile(
    r"""(pip|pipx|uv)3?\s(tool\s|pip\s)?install\s(?:[^\n]*?["'\s])?meteora[-_]registry(?!\s*@)"""
)


def texts() -> dict[str, str]:
    """Return the files of the tree that a person may read."""
    found = {}
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in PRUNED and name != ".git" and not name.startswith(".venv")
        ]
        for name in names:
            path = Path(folder, name).relative_to(ROOT).as_posix()
            if name.endswith(SUFFIXES) and not path.startswith(SKIPPED):
                found[path] = (ROOT / path).read_text(encoding="utf-8", errors="replace")
    return found


def test_no_text_tells_anyone_to_install_the_name_from_an_index() -> None:
    found = texts()
    assert {"README.md", "fuser/bundle_card.py", "docs/store.md"} <= set(found)
    assert [path for path, text in found.items() if FROM_AN_INDEX.search(text)] == []


def test_installing_by_name_is_recognised() -> None:
    for text in (
        "pip install 'meteora-registry[runtime]'",
        "pip install --quiet meteora-registry",
        "uv tool install meteora-registry",
        "python -m pip install meteora_registry",
    ):
        assert FROM_AN_INDEX.search(text), text
    for text in (
        'pip install ".[runtime]"',
        "pip install 'meteora-registry @ git+https://host/meteora-registry'",
    ):
        assert not FROM_AN_INDEX.search(text), text
