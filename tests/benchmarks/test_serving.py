"""The benchmark of serving, and the page that shows its committed rows; no time is judged."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import servers, serving, serving_tables
from benchmarks.pages import read_rows
from support import warm
from support.task_data import save_text_base


def test_page_shows_the_committed_rows() -> None:
    assert serving_tables.PAGE.read_text(encoding="utf-8") == serving_tables.page_of(
        read_rows(serving_tables.ROWS)
    )


def test_every_request_of_the_committed_rows_is_answered_refused_or_cancelled() -> None:
    rows = [row for row in read_rows(serving_tables.ROWS) if row["stage"] == "load"]
    assert rows
    for row in rows:
        assert sum(row["outcomes"].values()) == row["requests"]
        assert "broken" not in row["outcomes"]
        assert row["afterwards"] == "answered"


def test_committed_rows_say_that_the_server_answers_as_the_runtime_does() -> None:
    rows = [row for row in read_rows(serving_tables.ROWS) if row["stage"] == "agreement"]
    assert len(rows) == serving.Sizes().prompts
    assert [row["serve"] for row in rows] == [row["runtime"] for row in rows]
    assert [row["vllm"]["member"] for row in rows] == [row["runtime"]["member"] for row in rows]


@pytest.mark.slow
def test_benchmark_measures_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "QUESTIONS", ("w40 w{} w41", "w42 w{} w43 w44"))
    # A process for each stage, which would import the same again.
    start = SimpleNamespace(
        Popen=warm.RuntimePopen, STDOUT=subprocess.STDOUT, TimeoutExpired=subprocess.TimeoutExpired
    )
    monkeypatch.setattr(servers, "subprocess", start)
    setup = serving.prepare(save_text_base(tmp_path / "base"), tmp_path / "made")
    sizes = serving.Sizes(2, 3, at_once=6, cancelled=2, in_all=4, sample_every=2)
    rows = {
        row["stage"]: row for row in serving.measure(setup, ("agreement", "load", "memory"), tmp_path, sizes)
    }
    assert rows["agreement"]["serve"] == rows["agreement"]["runtime"]
    assert rows["load"]["afterwards"] == "answered"
    assert sum(rows["load"]["outcomes"].values()) == sizes.at_once
    assert [each["requests"] for each in rows["memory"]["samples"]] == [2, 4]
