"""The page on the Python face: written from the docstrings, complete, and without leftovers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import meteora_registry as meteora

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "api.md").read_text(encoding="utf-8")


def test_api_page_is_that_of_the_docstrings() -> None:
    spec = importlib.util.spec_from_file_location("generate_api", DOCS / "generate_api.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.render() == PAGE, "run `python docs/generate_api.py`"


def test_api_page_describes_each_public_name_once() -> None:
    titles = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert sorted(titles) == list(meteora.__all__)


def test_api_page_leaves_nothing_without_a_text() -> None:
    assert re.findall(r"^#{2,4} [^\n]+\n+(?=#|\Z)", PAGE.replace("## Start here", ""), re.MULTILINE) == [
        "## Routing\n\n",
        "## Values\n\n",
        "## Errors\n\n",
    ]
    assert "``" not in PAGE.replace("```", "")
