"""Random pairs of adapters: `fuse --dry-run` accepts those that `validate --for fuse --with` accepts."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from support.models import save_base, tiny_llama
from support.small_adapters import make_adapter

SPELLINGS = [
    "org/base",
    "Org/Base",
    "https://huggingface.co/org/base",
    f"/cache/models--org--base/snapshots/{'3f1c9ab0' * 5}",
    "gpt2",
    "openai-community/gpt2",
    "org/other",
    "org/base-bnb-4bit",
    "/models/base",
    "models/of/base",
    None,
]
TARGETS = [("q_proj", "v_proj"), ("q_proj",), ("down_proj",), ("o_proj", "gate_proj"), ("k_proj", "up_proj")]
OPTIONS: list[dict[str, Any]] = [
    *[{}] * 8,
    {"task_type": "FEATURE_EXTRACTION"},
    {"task_type": None, "auto_mapping": {"base_model_class": "LlamaModel", "parent_library": "transformers"}},
    {"task_type": "SEQ_CLS"},
    {"layers": 3},
    {"alpha": 0},
    {"alpha": 1e30},
    {"alpha": -8},
    {"rslora": True},
    {"rank_pattern": {"q_proj": 2}},
    {"bias": "all"},
    {"use_dora": True},
    {"modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"]},
    {"target_modules": ["nothing"]},
    {"peft_type": "LOHA"},
]


def in_front(text: str) -> Callable[[str], str]:
    return lambda name: text + name


RENAMES: list[Callable[[str], str] | None] = [
    *[None] * 8,
    in_front("thinker."),
    lambda name: name.replace("model.model.layers", "model.layers"),
    lambda name: name.replace("model.model.layers", "model.language_model.model.layers"),
    lambda name: name.replace(".lora_A.", ".lora_A.default."),
    lambda name: name.replace(".lora_", ".base_layer.lora_"),
]


@dataclass(frozen=True)
class Drawn:
    """An adapter of random files, and the name under which the catalog took it; None if it did not."""

    folder: Path
    description: str
    name: str | None


def draw_adapter(numbers: random.Random, folder: Path) -> Drawn:
    """Write an adapter of random options and add it to the catalog."""
    base, options, rename = (numbers.choice(each) for each in (SPELLINGS, OPTIONS, RENAMES))
    values = {
        "base": base,
        "targets": numbers.choice(TARGETS),
        "rank": numbers.choice([2, 4, 8]),
        "dtype": numbers.choice(["float32", "float32", "float16", "float64"]),
        "seed": numbers.randrange(2),
    } | options
    make_adapter(folder, **values)
    if rename is not None:
        path = folder / "adapter_model.safetensors"
        save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    code, _ = call("add", folder, "--name", folder.name)
    renamed = "" if rename is None else f", names like {rename('base_model.model.model.layers.0.x')}"
    return Drawn(folder, f"{values}{renamed}", folder.name if code == 0 else None)


def call(*arguments: object) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return code, out.getvalue() + err.getvalue()


def draw_base(numbers: random.Random, folder: Path) -> list[object]:
    """Return the options of the base, the same for both commands."""
    return numbers.choice(
        [
            [],
            [],
            [],
            ["--base", "org/base"],
            ["--base", "openai-community/gpt2"],
            ["--base", folder],
            ["--base-folder", folder],
            ["--base", "org/base", "--base-folder", folder],
        ]
    )


def test_validate_and_fuse_agree_on_random_pairs(
    tmp_path: Path, home: Home, request: pytest.FixtureRequest
) -> None:
    numbers = random.Random(15)
    base = save_base(tiny_llama(), tmp_path / "base")
    count = request.config.getoption("--pairs")
    pool = [draw_adapter(numbers, tmp_path / f"a{index}") for index in range(24)]
    disagreements, fused = [], 0
    for index in range(count):
        one, other = numbers.sample(pool, 2)
        if index % 8 == 0:
            pool[numbers.randrange(len(pool))] = draw_adapter(numbers, tmp_path / f"b{index}")
        told = draw_base(numbers, base)
        validated, reasons = call("validate", one.folder, "--for", "fuse", "--with", other.folder, *told)
        planned, conflicts = 1, "not in the catalog"
        if one.name and other.name:
            planned, conflicts = call("fuse", one.name, other.name, "--dry-run", *told)
        # 3: nothing is refused, and the base could not be looked at.
        accepts = validated in (0, 3)
        fused += planned == 0
        if accepts is not (planned == 0) or {validated, planned} & {2}:
            disagreements.append(
                f"validate {validated}, fuse {planned}, {told}\n  {one.description}\n  {other.description}\n"
                f"  {reasons}\n  {conflicts}"
            )
    assert not disagreements, f"{len(disagreements)} of {count}:\n" + "\n".join(disagreements[:5])
    # Two commands that refuse everything agree as well.
    assert fused >= count // 20
