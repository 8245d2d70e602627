"""A batch of every known defect beside good adapters: each gets the answer that it gets alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.registry.workflows.companion_sources import Companion
from meteora_registry.registry.workflows.validation import ValidateOptions, find_adapters, validate
from meteora_registry.schemas.policy import Policy
from meteora_registry.schemas.report import AdapterReport
from support.adapters import AdapterFiles
from support.defects import DEFECTS
from support.models import make_adapter, tiny_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every defect in a folder of its own, between two good adapters."""
    folder = tmp_path_factory.mktemp("tree")
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    good = make_adapter(tiny_llama, folder / "0-good", seed=1, base="org/base", **options)
    make_adapter(tiny_llama, folder / "z-good", seed=2, base="org/base", **options)
    files = AdapterFiles.read(good)
    for defect in DEFECTS:
        changed = copy.deepcopy(files)
        defect.change(changed)
        changed.write(folder / defect.name)
    return folder


def judge(
    paths: list[Path], options: ValidateOptions, companions: Mapping[str, Companion]
) -> list[AdapterReport]:
    return list(validate(paths, options, companions=companions).adapters)


@pytest.mark.parametrize("jobs", [1, 4])
def test_batch_gives_each_adapter_the_answer_that_it_gets_alone(tree: Path, base: Path, jobs: int) -> None:
    policy = Policy(meteora_policy=1, max_rank=2, allowed_licenses=("mit",))
    options = ValidateOptions(base=str(base), policy=policy, deep=True, jobs=jobs)
    companions = {
        "shipped": Companion(
            inspect_adapter(tree / "0-good"), "org/base", tree / "0-good" / "adapter_model.safetensors"
        )
    }
    paths = find_adapters([tree])
    # One defect leaves no file, and one has its adapter a folder further down.
    assert len(paths) >= len(DEFECTS)
    # One after the other they do not meet, so a third of them show it.
    paths = paths[:: 3 if jobs == 1 else 1]
    together = {report.name: report for report in judge(paths, options, companions)}
    assert len(together) == len(paths)
    for path in paths[:: 4 if jobs == 1 else 12]:
        assert judge([path], replace(options, jobs=1), companions) == [together[str(path)]]
