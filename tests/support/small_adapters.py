"""LoRA adapters as PEFT would have saved them for a small Llama, made without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN = 32
# Output and input features of each module kind, and the block that contains it.
SHAPES = {
    "q_proj": (HIDDEN, HIDDEN, "self_attn"),
    "k_proj": (HIDDEN // 2, HIDDEN, "self_attn"),
    "v_proj": (HIDDEN // 2, HIDDEN, "self_attn"),
    "o_proj": (HIDDEN, HIDDEN, "self_attn"),
    "gate_proj": (48, HIDDEN, "mlp"),
    "up_proj": (48, HIDDEN, "mlp"),
    "down_proj": (HIDDEN, 48, "mlp"),
}


def make_adapter(
    folder: Path,
    *,
    rank: int = 4,
    alpha: float = 8,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    layers: int = 2,
    dtype: str = "float32",
    rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    base: str | None = "org/base",
    seed: int = 0,
    card: str | None = None,
    **config: Any,
) -> Path:
    """Write an adapter and give back its folder.

    Patterns are keyed by module kind; ``config`` adds to the config or replaces its fields;
    ``card`` is the text of README.md.
    """
    ranks = dict(rank_pattern or {})
    numbers = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for kind in targets:
            out_features, in_features, block = SHAPES[kind]
            path = f"base_model.model.model.layers.{layer}.{block}.{kind}"
            r = ranks.get(kind, rank)
            tensors[f"{path}.lora_A.weight"] = numbers.normal(size=(r, in_features)).astype(dtype)
            tensors[f"{path}.lora_B.weight"] = numbers.normal(size=(out_features, r)).astype(dtype)
    value = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "target_modules": list(targets),
        "rank_pattern": ranks,
        "alpha_pattern": dict(alpha_pattern or {}),
        "bias": "none",
        "peft_version": "0.21.2",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(value | config))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder
