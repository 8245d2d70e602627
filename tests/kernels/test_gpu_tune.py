"""The tuner's search: what it tries, what it keeps, and when it ends. No time is measured."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from meteora_registry.kernels import gpu_tune
from meteora_registry.kernels.gpu_table import Blocks, read_table
from meteora_registry.kernels.gpu_tune import Search, combined, neighbours
from support import warm

BASE = Blocks(tokens=16, warps=4, stages=2)
LATER = time.monotonic() + 1e6


@pytest.mark.parametrize("kernel", gpu_tune.TUNED)
def test_neighbours_differ_in_one_field_and_stay_near_the_tokens(kernel: str) -> None:
    rows = neighbours(kernel, BASE, 16)
    assert len(rows) == len(set(rows)) > 5
    assert max(row.tokens for row in rows) == 32
    for row in rows:
        changed = [f.name for f in dataclasses.fields(row) if getattr(row, f.name) != getattr(BASE, f.name)]
        assert len(changed) == 1


def test_best_values_of_all_fields_are_combined() -> None:
    def row(**fields: int) -> Blocks:
        return dataclasses.replace(BASE, **fields)

    times = {BASE: 5.0, row(warps=8): 4.0, row(rank=32): 3.0, row(rank=64): 2.0, row(stages=3): 6.0}
    assert combined(BASE, times) == row(warps=8, rank=64)


def searched(
    monkeypatch: pytest.MonkeyPatch,
    milliseconds: Callable[[Blocks], float],
    *,
    end: float = LATER,
    compiled: Callable[[str, int, Iterable[Blocks]], None] = gpu_tune.compile_nothing,
) -> Search:
    """Return a search over rows whose times are given; the present row is `BASE`."""
    monkeypatch.setattr(gpu_tune, "blocks_for", lambda *_: BASE)
    monkeypatch.setattr(gpu_tune, "time_of", lambda kernel, row, cases: milliseconds(row))
    return Search(lambda tokens: [SimpleNamespace(x=torch.zeros(tokens, 1))], compiled, end)  # type: ignore[misc,list-item]


def by_distance(row: Blocks) -> float:
    """Return least for the row of rank 64, 8 warps and 256 features."""
    return abs(row.rank - 64) + abs(row.warps - 8) + abs(row.features - 256)


def test_search_finds_what_several_fields_make_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Blocks] = []

    def milliseconds(row: Blocks) -> float:
        tried.append(row)
        return by_distance(row)

    best = searched(monkeypatch, milliseconds).fastest("expand", 16)
    assert best == dataclasses.replace(BASE, rank=64, warps=8, features=256)
    assert len(tried) == len(set(tried)) < 30


def test_rows_are_compiled_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ready: set[Blocks] = set()

    def milliseconds(row: Blocks) -> float:
        assert row in ready
        return by_distance(row)

    def compiled(kernel: str, tokens: int, rows: Iterable[Blocks]) -> None:
        ready.update(rows)

    assert searched(monkeypatch, milliseconds, compiled=compiled).fastest("shrink", 16) is not None


def test_search_without_time_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def milliseconds(row: Blocks) -> float:
        raise AssertionError(row)

    assert searched(monkeypatch, milliseconds, end=time.monotonic()).fastest("shrink", 16) is None


def test_no_row_is_kept_where_none_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert searched(monkeypatch, lambda row: math.inf).fastest("shrink", 16) is None


def test_table_is_written_after_each_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    written: list[Any] = []

    def milliseconds(row: Blocks) -> float:
        if path.exists():
            written.append(json.loads(path.read_text(encoding="utf-8"))["sm90"])
        if len(written) > 100:
            raise KeyboardInterrupt
        return by_distance(row)

    search = searched(monkeypatch, milliseconds)
    with pytest.raises(KeyboardInterrupt):
        gpu_tune.tune(search, "sm90", path)
    assert written[0].keys() == {"shrink"}
    table = json.loads(path.read_text(encoding="utf-8"))
    assert table["sm90"]["shrink"][0]["rank"] == 64
    assert [row["max_tokens"] for row in table["sm90"]["shrink"]] == list(gpu_tune.BUCKETS)
    assert table["default"] == read_table()["default"]


def test_other_buckets_keep_their_rows() -> None:
    rows = read_table()["default"]["project"]
    found = gpu_tune.with_row(rows, "project", 16, dataclasses.replace(BASE, programs=528))
    assert found[0] == {
        "max_tokens": 16, "tokens": 16, "rank": 16, "bytes": 128, "programs": 528, "warps": 4, "stages": 2
    }  # fmt: skip
    assert found[1] == {**rows[0], "max_tokens": 64}
    assert found[3] == rows[-1]


def test_row_that_cannot_run_is_not_the_fastest() -> None:
    from triton.runtime.errors import OutOfResources

    def is_right(kernel: str) -> bool:
        raise OutOfResources(300_000, 232_448, "shared memory")

    assert gpu_tune.time_of("shrink", BASE, [SimpleNamespace(is_right=is_right)]) == math.inf  # type: ignore[list-item]


def test_rows_are_tried_although_a_compiler_died() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert isinstance(pool.submit(os._exit, 1).exception(), BrokenExecutor)
        gpu_tune.Compilers(pool, LATER)("shrink", 16, [BASE])


def test_rehearsal_goes_through_the_kernels(tmp_path: Path) -> None:
    pytest.importorskip("numpy", reason="Triton's interpreter computes with numpy")
    path = tmp_path / "table.json"
    command = [sys.executable, "-P", "-m", gpu_tune.__name__, str(path), "--interpreted", "--minutes", "0.05"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = warm.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "shrink" in json.loads(path.read_text(encoding="utf-8"))["interpreter"]
