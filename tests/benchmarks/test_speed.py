"""The benchmark of speed, and the page that shows its committed rows; no time is judged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import speed
from benchmarks.pages import read_rows
from support.task_data import save_text_base


def test_page_shows_the_committed_rows() -> None:
    assert speed.PAGE.read_text(encoding="utf-8") == speed.page_of(read_rows(speed.ROWS))


def test_committed_rows_hold_every_variant_that_has_a_goal() -> None:
    rows = read_rows(speed.ROWS)
    for phase, goals in speed.GOALS.items():
        found = {row["variant"] for row in rows if row["phase"] == phase}
        assert {*goals, "base", speed.ONE_LORA, "Arrow (PEFT)", "X-LoRA (PEFT)"} <= found


def test_benchmark_measures_every_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PROMPT_TOKENS", 6)
    monkeypatch.setattr(speed, "DECODED_TOKENS", 2)
    monkeypatch.setattr(speed, "MEMBERS", 2)
    monkeypatch.setattr(speed, "QUESTIONS", ("w40 w{} w41", "w42 w{} w43 w44"))
    threads = torch.get_num_threads()
    setup = speed.prepare(save_text_base(tmp_path / "base"), tmp_path / "made")
    try:
        rows = list(speed.measure(setup, torch.float32, [1], None, seconds=0))
    finally:
        torch.set_num_threads(threads)
    for phase in speed.GOALS:
        found = {row["variant"]: row["ratio"] for row in rows if row["phase"] == phase}
        assert found[speed.ONE_LORA] == 1
        assert {*speed.SCOPES, "forced", "base", "Arrow (PEFT)", "X-LoRA (PEFT)"} < {*found}
