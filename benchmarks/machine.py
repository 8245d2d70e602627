"""The facts of a row about the machine and the software it was measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch


def description(device: str) -> dict[str, object]:
    """Return device, threads and versions; no host name and no path."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "omp_proc_bind": os.environ.get("OMP_PROC_BIND"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "meteora_registry": version_of("meteora-registry"),
    }


def processor() -> str:
    """Return the processor's name, with the arithmetic that decides how bf16 runs."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    extras = [
        label
        for label, check in (("AMX", "_is_amx_tile_supported"), ("avx512_bf16", "_is_avx512_bf16_supported"))
        if getattr(torch.cpu, check, bool)()
    ]
    return ", ".join([name, *extras])


def version_of(package: str) -> str | None:
    """Return an installed package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
