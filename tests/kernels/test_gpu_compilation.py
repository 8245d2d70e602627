"""Each kernel compiles for the GPUs it is meant for, fits their shared memory and spills no registers.

No GPU is needed: the launches run on tensors without storage, their calls are recorded and compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from meteora_registry.kernels import gpu_launch, gpu_products, gpu_table
from meteora_registry.kernels.layout import layout_of
from meteora_registry.kernels.routing import Gate, Routing
from support.examples import TIMES
from support.gpu_compilation import Call, Recorder, compiled

KERNELS = ("shrink", "expand", "project", "route", "spread", "outer")
# The least that a GPU since sm80 gives one block (sm86 and sm89).
SHARED_BYTES = 99 * 1024
# Room for the compiler's own few bytes; a spilling fp32 tile takes thousands.
STACK_BYTES = 64
# A kernel takes a second to compile. In every run: the largest tiles, which could spill, the GPU with the
# least shared memory, and the launches of one token with sizes of one.
SIZES = [
    (4096, [64] * 28, torch.float32),
    (1, [8] * 28, torch.bfloat16),
    (1, [8] * 28, torch.float32),
    (4096, [8] * 28, torch.float32),
    (4096, [8] * 28, torch.bfloat16),
    (4096, [64] * 28, torch.bfloat16),
][: 1 if TIMES == 1 else None]
CAPABILITIES = [89, 80, 100][: 1 if TIMES == 1 else None]


def launches(
    monkeypatch: pytest.MonkeyPatch,
    T: int,
    dtype: torch.dtype,
    ranks: list[int],
    features: int = 4096,
    k: int = 2,
) -> list[Call]:
    """Return the distinct launches of every entry point for `T` tokens of a square linear."""
    calls: list[Call] = []
    for name in KERNELS:
        kernel = getattr(gpu_launch, f"{name}_kernel")
        monkeypatch.setattr(gpu_launch, f"{name}_kernel", Recorder(kernel, calls))
    monkeypatch.setattr(gpu_table, "architecture", lambda device: "default")
    offsets = [sum(ranks[:i]) for i in range(len(ranks) + 1)]
    layout = layout_of(offsets, [1.0] * len(ranks))
    with torch.device("meta"):
        x, out = torch.empty(2, T, features, dtype=dtype)
        A, Bt = torch.empty(2, layout.rows, features, dtype=dtype)
        routing = Routing(torch.empty(T, k, dtype=torch.int64), torch.empty(T, k))
        gate = Gate(torch.empty(len(ranks), features), torch.empty(len(ranks)), "normalised", k)
    gpu_products.gated_forward(x, A, Bt, layout, gate, out)
    _, z = gpu_products.forward_with_z(x, A, Bt, layout, routing)
    gpu_products.factors_gradient(z, x, layout, routing)
    return list({call.variant: call for call in calls}.values())


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile what several tests launch once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(("T", "ranks", "dtype"), SIZES)
def test_kernels_fit_a_gpu(
    T: int, ranks: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for call in launches(monkeypatch, T, dtype, ranks):
        binary = compiled(call, 90, tmp_path)
        assert binary.shared_bytes <= SHARED_BYTES, call.variant
        assert binary.stack_bytes <= STACK_BYTES, call.variant


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_for_other_gpus(
    capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for call in launches(monkeypatch, 32, torch.float16, [16] * 4):
        binary = compiled(call, capability, tmp_path)
        assert binary.shared_bytes <= SHARED_BYTES, call.variant
        assert binary.stack_bytes <= STACK_BYTES, call.variant


def test_sizes_of_one_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Triton makes a constant of an argument that is 1, which not every operation takes."""
    for call in launches(monkeypatch, 1, torch.bfloat16, [1], features=1, k=1):
        assert compiled(call, 90, tmp_path).stack_bytes <= STACK_BYTES, call.variant


@pytest.mark.skipif(TIMES == 1, reason="compiles for seconds: set METEORA_EXAMPLES=10")
def test_many_slots_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for call in launches(monkeypatch, 1, torch.bfloat16, [8] * 64, features=72, k=8):
        assert compiled(call, 90, tmp_path).shared_bytes <= SHARED_BYTES, call.variant
