"""The memory of ``validate``: that of one adapter, however many are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from support.small_adapters import make_adapter

# Peak memory is that of a whole process, so it is asked for in one of its own; not by `getrusage`, which
# also counts the process that started it.
PROGRAM = """
import re, sys
from pathlib import Path
from meteora_registry.registry.cli.main import run
code = run(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(code, 1024 * int(peak), file=sys.stderr)
"""
MODULES = 1000
FEW, MORE = 5, 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters with large headers and configs of their own; they share the bytes of weights."""
    place = tmp_path_factory.mktemp("many")
    first = place / "weights"
    save_file(
        {
            f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{name}.weight": np.full(
                (1, 1), 0.5, "float32"
            )
            for layer in range(MODULES)
            for name in "AB"
        },
        first,
        {"format": "pt"},
    )
    for number in range(FEW + MORE + 1):
        folder = place / "adapters" / f"{number:02}"
        make_adapter(folder, rank=1, targets=["q_proj"], layers=1, lora_alpha=number + 1)
        (folder / "adapter_model.safetensors").unlink()
        os.link(first, folder / "adapter_model.safetensors")
    return place


def peak_bytes(folders: Path, count: int, *more: object) -> int:
    """Return the peak memory of a run on the first ``count`` adapters."""
    paths = sorted((folders / "adapters").iterdir())[:count]
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "validate",
        *map(str, paths),
        *map(str, more),
        "--format",
        "json",
    ]
    environment = os.environ | {"METEORA_HOME": str(folders / "home")}
    done = subprocess.run(command, cwd=folders, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    assert len(json.loads(done.stdout)["adapters"]) == count
    return int(done.stderr.split()[-1])


@pytest.mark.parametrize("more", [(), ("--with", f"adapters/{FEW + MORE}")], ids=["alone", "with another"])
def test_peak_memory_does_not_depend_on_the_number_of_adapters(folders: Path, more: tuple[str, ...]) -> None:
    few, many = (peak_bytes(folders, count, *more) for count in (FEW, FEW + MORE))
    # What could be kept of each such adapter, its header or its inventory, takes more than a MB.
    assert many - few < MORE * 300_000, f"{few} bytes for {FEW} adapters, {many} for {FEW + MORE}"
