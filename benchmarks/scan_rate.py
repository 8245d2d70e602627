"""The speed of the weights scan beside SHA-256 of the same file: ``python benchmarks/scan_rate.py``.

Prints one line per dtype: the rates of scanning alone, hashing alone, and the shared pass, in GB/s
(the best of several runs each, the file in the page cache), and the ratio of the first two.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from meteora_registry.inspection.header import Header, read_header
from meteora_registry.inspection.scan import CHUNK_BYTES, scan_stream, scan_weights

MODULES = 400
RANK, FEATURES = 16, 4096
RUNS = 5


def main() -> None:
    """Measure every dtype that numpy can write; bfloat16 is scanned as float16 is."""
    numbers = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        for dtype in ("float16", "float32", "float64"):
            tensors = {}
            for module in range(MODULES):
                tensors[f"m.{module}.lora_A.weight"] = numbers.standard_normal((RANK, FEATURES)).astype(dtype)
                tensors[f"m.{module}.lora_B.weight"] = numbers.standard_normal((FEATURES, RANK)).astype(dtype)
            save_file(tensors, path)
            print(measure(path, dtype))


def measure(path: Path, dtype: str) -> str:
    """Return one line of results."""
    header = read_header(path)
    scanning, hashing = best(lambda: scan(path, header)), best(lambda: digest(path))
    shared = best(lambda: scan_weights(path, header))
    size = header.file_bytes / 1e9
    return (
        f"{dtype}: {size * 1e3:.0f} MB, scan {size / scanning:.2f} GB/s, sha256 {size / hashing:.2f} GB/s, "
        f"ratio {hashing / scanning:.2f}, both in one pass {size / shared:.2f} GB/s"
    )


def best(work: Callable[[], object]) -> float:
    """Return the shortest time of several runs, in seconds."""
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def scan(path: Path, header: Header) -> None:
    """Look at every number, without a digest."""
    with path.open("rb") as file:
        scan_stream(file, header, None)


def digest(path: Path) -> None:
    """Hash the file in chunks of the same size."""
    found = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb") as file:
        while count := file.readinto(buffer):
            found.update(buffer[:count])


if __name__ == "__main__":
    main()
