"""The benchmark of verification, and the page that shows its committed rows; no time is judged."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import verification
from benchmarks.pages import read_rows
from meteora_registry.fuser.gates import arrow_directions


def test_page_shows_the_committed_rows() -> None:
    assert verification.PAGE.read_text(encoding="utf-8") == verification.page_of(read_rows(verification.ROWS))


def test_committed_rows_hold_every_number_of_members() -> None:
    found = [row["members"] for row in read_rows(verification.ROWS) if row["subject"] == "verification"]
    assert found == list(verification.MEMBERS)


def test_benchmark_prints_a_row_for_each_subject(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        verification.main(["--members", "2", "3", "--features", "16"])
    finally:
        torch.set_num_threads(threads)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["subject"], row["members"]) for row in rows] == [
        ("verification", 2),
        ("verification", 3),
        ("arrow", 4),
    ]
    assert all(row["device"] and row["torch"] for row in rows)


def test_textbook_way_gives_the_shipped_direction() -> None:
    random = torch.Generator().manual_seed(3)
    A, B = torch.randn(4, 24, generator=random), torch.randn(16, 4, generator=random)
    assert torch.allclose(verification.by_svd(A, B), arrow_directions([(A, B)])[0], rtol=0, atol=1e-12)
