"""The words for what a check established: the table of the page has exactly those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from meteora_registry.schemas.verification import ATTACHED, FROM_MEMBERS, INTACT, Level

PAGE = Path(__file__).parents[2] / "docs" / "verification.md"


def test_table_of_the_page_has_the_words_of_the_code() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("<!-- words:")[2].partition("\n\n")[0]
    words = re.findall(r"^\| \*([^*]+)\* \|", table, re.MULTILINE)
    assert words == [INTACT, FROM_MEMBERS, ATTACHED, "signed by", "claimed by"]
    assert Level.INTEGRITY.establishes == (INTACT,)
    assert Level.SOURCE.establishes == (INTACT, FROM_MEMBERS)
