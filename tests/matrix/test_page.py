"""The page of verdicts is that of the committed rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_page_of_verdicts_is_that_of_the_rows() -> None:
    spec = importlib.util.spec_from_file_location("generate_verdicts", DOCS / "generate_verdicts.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    page = (DOCS / "verdicts.md").read_text(encoding="utf-8")
    assert generator.render() == page, "run `python docs/generate_verdicts.py`"
