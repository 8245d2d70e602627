"""The memory of ``validate``: that of one adapter, however many are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from support.small_adapters import make_adapter

# Peak memory is that of a whole process, so it is asked for in one of its own; not by `getrusage`, which
# also counts the process that started it.
PROGRAM = """
import json, re, sys
from pathlib import Path
from meteora_registry.registry.cli.main import run
for arguments in json.loads(sys.argv[1]):
    run(arguments)
    print()
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    print(1024 * int(peak), file=sys.stderr)
"""
MODULES = 1000
FEW, MORE = 3, 10


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


def peak_bytes(folders: Path, counts: Sequence[int], *more: object) -> list[int]:
    """Return the peak memory of one process after a run on the first adapters for each of these counts."""
    paths = [str(path) for path in sorted((folders / "adapters").iterdir())]
    commands = [["validate", *paths[:count], *map(str, more), "--format", "json"] for count in counts]
    environment = os.environ | {"METEORA_HOME": str(folders / "home")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        cwd=folders,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    decoder, found, end = json.JSONDecoder(), [], 0
    while rest := done.stdout[end:].lstrip():
        end = len(done.stdout) - len(rest)
        document, end = decoder.raw_decode(done.stdout, end)
        found.append(len(document["adapters"]))
    assert found == list(counts)
    return [int(line) for line in done.stderr.splitlines() if line.isdecimal()]


@pytest.mark.parametrize("more", [(), ("--with", f"adapters/{FEW + MORE}")], ids=["alone", "with another"])
def test_peak_memory_does_not_depend_on_the_number_of_adapters(folders: Path, more: tuple[str, ...]) -> None:
    few, many = peak_bytes(folders, (FEW, FEW + MORE), *more)
    # What could be kept of each such adapter, its header or its inventory, takes more than a MB.
    assert many - few < MORE * 300_000, f"{few} bytes for {FEW} adapters, {many} for {FEW + MORE}"
