"""The bounds of triton and numpy in pyproject.toml are those that were measured in the interpreter."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from benchmarks.pages import read_rows

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "interpreter-versions.jsonl"


@pytest.fixture(scope="module")
def allowed() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["kernels"]]
    return {found.name: found for found in map(Requirement, texts)}


def takes(allowed: dict[str, Requirement], row: dict[str, Any]) -> bool:
    return all(allowed[name].specifier.contains(row[name]) for name in ("triton", "numpy"))


def test_every_pair_that_the_bounds_take_works_without_a_warning(allowed: dict[str, Requirement]) -> None:
    taken = [row for row in read_rows(ROWS) if takes(allowed, row)]
    assert {(row["triton"], row["numpy"]) for row in taken} >= {("3.7.0", "1.26.4"), ("3.9.0", "2.4.6")}
    assert {row["outcome"] for row in taken} == {"clean"}


def test_bounds_refuse_no_triton_that_works_everywhere(allowed: dict[str, Requirement]) -> None:
    refused = [row for row in read_rows(ROWS) if not takes(allowed, row)]
    assert {row["triton"] for row in refused} == {"3.6.0"}
    assert {row["outcome"] for row in refused} == {"warns", "fails"}
