"""The table of detectors: generated from its rows, and what it promises about own prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.abstention_tables import END, PAGE, ROWS, START, average_rank, table
from benchmarks.pages import read_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return list(table(read_rows(ROOT / ROWS)))


def test_page_has_the_table_of_the_rows(lines: list[str]) -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    section = text.partition(START)[2].partition(END)[0]
    assert section.strip("\n") == "\n".join(lines).strip("\n")


def test_product_loses_few_of_the_own_prompts_that_chose_nothing(lines: list[str]) -> None:
    """At most 5 % in both forms on the test stage, the upper end of the interval included."""
    test = lines[next(place for place, line in enumerate(lines) if line.startswith("**Test**")) :]
    lost = [line.split("|")[3] for line in test if line.startswith("| **both, the product's**")]
    assert len(lost) == 2
    for cell in lost:
        upper = float(cell.partition("-")[2].partition(")")[0])
        assert upper <= 5.0, cell


def test_average_rank_is_that_of_split_conformal_prediction() -> None:
    assert [average_rank(count, 0.05) for count in (18, 19, 39, 288)] == [0, 1, 2, 14]
