"""Adapters of parameters that hold the weights of all experts of a layer, made without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

EXPERTS, HIDDEN, INNER = 4, 32, 16
LAYER = "base_model.model.model.layers.0.mlp.experts."
PATH = "model.layers.0.mlp.experts"


def write_ones(folder: Path, tensors: dict[str, tuple[int, int]], **config: Any) -> Path:
    """Write an adapter of tensors of these shapes, all ones."""
    folder.mkdir(parents=True)
    ones = {name: np.ones(shape, dtype=np.float32) for name, shape in tensors.items()}
    save_file(ones, folder / "adapter_model.safetensors", {"format": "pt"})
    value = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/base",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": [],
    }
    (folder / "adapter_config.json").write_text(json.dumps(value | config))
    return folder


def both_parameters(folder: Path) -> Path:
    """Write what PEFT makes of the names of separate experts: the first parameter is wrapped first."""
    tensors = {
        f"{LAYER}base_layer.lora_A.weight": (EXPERTS * 8, HIDDEN),
        f"{LAYER}base_layer.lora_B.weight": (2 * INNER, EXPERTS * 8),
        f"{LAYER}lora_A.weight": (EXPERTS * 4, INNER),
        f"{LAYER}lora_B.weight": (HIDDEN, EXPERTS * 4),
    }
    patterns = {r".*\.gate_up_proj": 8}
    alphas = {r".*\.gate_up_proj": 32}
    parameters = ["down_proj", "gate_up_proj"]
    return write_ones(
        folder, tensors, target_parameters=parameters, rank_pattern=patterns, alpha_pattern=alphas
    )
