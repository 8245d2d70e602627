"""Engines for the tests of this folder, which are skipped unless METEORA_VLLM names the `vllm` program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.vllm_engine import PROGRAM_VARIABLE, Engine, find_vllm, serve_base
from support.vllm_matrix import LLAMA, MAX_RANK, save_served_base

BASE_NAME = "org/base"


@dataclass(frozen=True)
class Served:
    """An engine, the folder of the base that it serves, and the home that its resolver has."""

    engine: Engine
    base: Path
    home: Path


@pytest.fixture(scope="session")
def program() -> Path:
    found = find_vllm()
    if found is None:
        pytest.skip(f"{PROGRAM_VARIABLE} names no `vllm`: run `make test-vllm`")
    return found


@pytest.fixture(scope="session")
def llama(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An engine that serves a tiny Llama and resolves names in a catalog."""
    folder = tmp_path_factory.mktemp("vllm")
    base = save_served_base(LLAMA, folder / "base")
    environment = {"METEORA_HOME": str(folder / "home"), "METEORA_BASE": BASE_NAME}
    options = ("--max-lora-rank", str(MAX_RANK), "--max-loras", "4", "--max-cpu-loras", "8")
    with serve_base(program, base, folder / "engine", *options, environment=environment) as engine:
        yield Served(engine, base, folder / "home")
