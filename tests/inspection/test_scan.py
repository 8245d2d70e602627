"""The pass over the weights: the digest, and the magnitudes in every dtype."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from meteora_registry.inspection import scan as scanning
from meteora_registry.inspection.header import read_header
from meteora_registry.inspection.scan import decode, scan_weights
from meteora_registry.schemas.errors import SourceUnreadable
from meteora_registry.schemas.inventory import Dtype

TORCH = {
    Dtype.F64: torch.float64,
    Dtype.F32: torch.float32,
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
}


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "w.safetensors")
    return folder / "w.safetensors"


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("size", [1, 7, 200_001])
def test_largest_magnitude_is_found_in_every_dtype(dtype: Dtype, size: int, tmp_path: Path) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(TORCH[dtype])
    values[-1] = -5.5
    path = write(tmp_path, a=values, b=torch.zeros(3), c=torch.arange(4, dtype=torch.int8))
    found = scan_weights(path, read_header(path))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.magnitudes["a"].largest == values.abs().max().item()
    assert found.magnitudes["a"].is_finite
    assert found.magnitudes["b"].is_zero
    assert "c" not in found.magnitudes


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize(
    ("value", "has_nan"), [(math.nan, True), (-math.nan, True), (math.inf, False), (-math.inf, False)]
)
def test_one_number_that_is_not_finite_is_found(
    dtype: Dtype, value: float, has_nan: bool, tmp_path: Path
) -> None:
    values = torch.ones(300_000, dtype=TORCH[dtype])
    values[150_001] = value
    path = write(tmp_path, a=values)
    found = scan_weights(path, read_header(path)).magnitudes["a"]
    assert (found.is_finite, found.has_nan) == (False, has_nan)


@given(
    bits=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=20),
    dtype=st.sampled_from([Dtype.F16, Dtype.BF16]),
)
def test_peak_of_any_bits_is_that_of_the_numbers(bits: list[int], dtype: Dtype) -> None:
    data = np.array(bits, dtype="<u2").tobytes()
    numbers = torch.frombuffer(bytearray(data), dtype=TORCH[dtype]).double().abs().numpy()
    peak = scanning._Peak(scanning._FORMATS[dtype])
    peak.see(memoryview(data))
    found = peak.magnitude()
    assert found.is_finite == bool(np.isfinite(numbers).all())
    assert found.largest == (numbers.max() if found.is_finite else math.inf)
    assert np.array_equal(np.abs(decode(data, dtype)), numbers, equal_nan=True)


def test_small_neighbours_are_told_apart(tmp_path: Path) -> None:
    numbers = [1.0, -2.0, 0.0, math.inf, -0.0, math.nan, -3.5]
    tensors = {f"t{n}": torch.full((1 + n % 3,), value) for n, value in enumerate(numbers)}
    path = write(
        tmp_path, **tensors, empty=torch.zeros(0), half=torch.ones(3).half(), wide=torch.ones(70_000)
    )
    found = scan_weights(path, read_header(path))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    seen = [found.magnitudes[f"t{n}"] for n in range(len(numbers))]
    assert [each.largest for each in seen] == [1.0, 2.0, 0.0, math.inf, 0.0, math.inf, 3.5]
    assert [each.has_nan for each in seen] == [False] * 5 + [True, False]
    assert [found.magnitudes[name].largest for name in ("empty", "half", "wide")] == [0.0, 1.0, 1.0]


def test_memory_is_one_buffer_however_large_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = np.frombuffer

    def recorded(data: memoryview, dtype: object) -> object:
        sizes.append(len(data))
        return real(data, dtype)

    path = write(tmp_path, a=torch.ones(1_000_000))
    header = read_header(path)
    monkeypatch.setattr(scanning.np, "frombuffer", recorded)
    scan_weights(path, header)
    assert max(sizes) <= scanning.CHUNK_BYTES


def test_file_that_changes_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, a=torch.ones(10))
    header = read_header(path)
    path.write_bytes(save({"a": torch.ones(9)}))
    with pytest.raises(SourceUnreadable, match="has changed while it was read"):
        scan_weights(path, header)
