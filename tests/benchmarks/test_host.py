"""The host's time for a call: the benchmark runs without a GPU, and the page shows its committed rows."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from benchmarks import host
from benchmarks.pages import read_rows


def test_page_shows_the_committed_rows() -> None:
    assert host.page_of(host.PAGE.read_text(encoding="utf-8"), read_rows(host.ROWS)) == (
        host.PAGE.read_text(encoding="utf-8")
    )


def test_plans_cost_less_than_half_of_what_was_there_before() -> None:
    own = {(row["form"], row["operator"], row["T"]): row["own"] for row in read_rows(host.ROWS)}
    keys = [key[1:] for key in own if key[0] == "before"]
    assert len(keys) == 4
    assert all(own["plans", *key] < own["before", *key] / 2 for key in keys)


def test_both_operators_are_measured_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "CALLS", 2)
    monkeypatch.setattr(host, "TOKENS", (1,))
    rows = list(host.measure(1))
    assert [row["operator"] for row in rows] == ["gated_lora_", "routed_lora_"]
    assert all(row["own"] > 0 and row["buffers"] > 0 and row["scale"] > 0 for row in rows)
