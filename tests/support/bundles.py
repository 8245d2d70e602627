"""A bundle written straight from the format contract: short, plain, and with no line of the fuser's."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from meteora_registry.schemas.bundle import BundleConfig
from support.models import make_adapter, tiny_llama

_PREFIX = "base_model.model."
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def write_bundle(
    folder: Path,
    members: dict[str, Path],
    *,
    base: str | None = None,
    top_k: int = 2,
    temperature: float = 1.0,
    gate_kind: str = "linear",
    gate_bias: bool = False,
    scope: str = "token",
    sources: dict[str, str] | None = None,
    abstain: float | None = None,
    evidence: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write config and weights of a bundle of PEFT adapters; the gate is random normal."""
    sources = sources or {}
    features = {
        "gate-abstain": abstain is not None,
        "gate-evidence": evidence is not None,
        "gate-scope": scope != "token",
        "gate-sources": sources,
    }
    factors = {name: read_factors(path) for name, path in members.items()}
    configs = {name: json.loads((path / "adapter_config.json").read_text()) for name, path in members.items()}
    paths = sorted({path for own in factors.values() for path in own})
    is_fresh = gate_kind == "linear" and not gate_bias
    config = {
        "peft_type": "METEORA",
        "meteora_format": 1,
        "required_features": [feature for feature, needed in features.items() if needed],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "target_modules": paths,
        "members": [_describe_member(name, configs[name], factors[name], paths) for name in members],
        "rank_alignment": 8,
        "top_k": top_k,
        "temperature": temperature,
        "gate": {
            "kind": gate_kind,
            "scope": scope,
            "bias": gate_bias,
            "eps": 1e-6,
            "sources": sources,
            "abstain": abstain,
            "evidence": evidence,
            # Only a linear gate without a bias can still have the values that were drawn for it.
            "initialisation": {"method": "normal", "seed": seed} if is_fresh else None,
            "fitted": "not fitted" if is_fresh else {"method": "imported", "data": []},
        },
    }
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        pairs = [own.get(path) for own in factors.values()]
        in_features = next(pair for pair in pairs if pair is not None)[0].shape[1]
        tensors[f"{_PREFIX}{path}.meteora_A"] = torch.cat([_pad(pair[0]) for pair in pairs if pair]).to(dtype)
        tensors[f"{_PREFIX}{path}.meteora_B"] = torch.cat([_pad(pair[1].T) for pair in pairs if pair]).to(
            dtype
        )
        gate = torch.randn(len(members), in_features, generator=generator)
        bias = torch.randn(len(members), generator=generator) if gate_bias else None
        # Drawn all the same, so that the other modules' gates are those of a bundle without sources.
        if path not in sources:
            tensors[f"{_PREFIX}{path}.meteora_gate"] = gate
            tensors |= {} if bias is None else {f"{_PREFIX}{path}.meteora_gate_bias": bias}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_bytes(BundleConfig.from_value(config, what="config").to_bytes())
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"meteora_format": "1"})
    return folder


def make_config(folder: Path, names: Sequence[str], *, modules: str | list[str]) -> BundleConfig:
    """Return the config of a bundle of adapters of rank 4 on these modules of the tiny Llama."""
    adapters = {
        name: make_adapter(tiny_llama, folder / name, seed=seed, r=4, target_modules=modules)
        for seed, name in enumerate(names)
    }
    bundle = write_bundle(folder / "bundle", adapters, top_k=min(2, len(names)))
    return BundleConfig.read((bundle / "adapter_config.json").read_bytes())


def read_factors(adapter: Path) -> Factors:
    """Return each module's A ``[r, in]`` and B ``[out, r]`` of a PEFT adapter."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    paths = {name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in tensors}
    return {
        path: (
            tensors[f"{_PREFIX}{path}.lora_A.weight"].float(),
            tensors[f"{_PREFIX}{path}.lora_B.weight"].float(),
        )
        for path in paths
    }


def _describe_member(name: str, config: dict[str, Any], own: Factors, paths: list[str]) -> dict[str, Any]:
    usual = (config["r"], _scaling(config, "", config["r"]))
    overrides = {}
    for path in paths:
        rank = own[path][0].shape[0] if path in own else 0
        found = (rank, _scaling(config, path, rank) if rank else usual[1])
        if found != usual:
            overrides[path] = {"rank": found[0], "scaling": found[1]}
    return {"name": name, "rank": usual[0], "scaling": usual[1], "overrides": overrides}


def _scaling(config: dict[str, Any], path: str, rank: int) -> float:
    patterns = config["alpha_pattern"]
    alpha = patterns.get(get_pattern_key(patterns.keys(), path), config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config["use_rslora"] else rank))


def _pad(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, rows.new_zeros(-len(rows) % 8, rows.shape[1])])
