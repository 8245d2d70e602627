"""The table of block sizes: every row is one that Triton takes, and the file is what the tuner writes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from meteora_registry.kernels import gpu_table, gpu_tune
from meteora_registry.kernels.gpu_table import TABLE, Blocks, blocks_for, read_table

KERNELS = ("shrink", "expand", "project", "route", "spread", "outer")


@pytest.fixture
def _default_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_table, "architecture", lambda device: "sm12345")


@pytest.mark.usefixtures("_default_rows")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 65, 1024, 1025, 10**6])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_call_finds_a_row_of_powers_of_two(kernel: str, tokens: int, dtype: torch.dtype) -> None:
    row = blocks_for(kernel, tokens, torch.device("cuda"), dtype)
    for extent in (row.tokens, row.rank, row.features, row.bytes, row.warps):
        assert extent & (extent - 1) == 0
    assert min(row.tokens, row.rank, row.features) >= 16
    assert row.bytes // dtype.itemsize >= 16


def test_fp32_tiles_are_halved_but_never_below_what_a_product_takes() -> None:
    row = Blocks(tokens=64, warps=4, stages=2, rank=16, features=128).halved()
    assert (row.tokens, row.rank, row.features) == (32, 16, 64)


@pytest.mark.parametrize("name", read_table())
def test_rows_ascend_and_the_last_has_no_limit(name: str) -> None:
    for rows in read_table()[name].values():
        *limits, last = (row["max_tokens"] for row in rows)
        assert limits == sorted(limits)
        assert last is None


def test_file_is_what_the_tuner_writes() -> None:
    assert gpu_tune.formatted(read_table()) == TABLE.read_text(encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="would tune")
def test_tuner_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_tune.main([]) == 1
    assert capsys.readouterr().err == "there is no GPU to measure on\n"
