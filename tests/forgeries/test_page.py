"""The page of forgeries is that of the committed rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_page_of_forgeries_is_that_of_the_rows() -> None:
    spec = importlib.util.spec_from_file_location("generate_forgeries", DOCS / "generate_forgeries.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    page = (DOCS / "forgeries.md").read_text(encoding="utf-8")
    assert generator.render() == page, "run `python docs/generate_forgeries.py`"
