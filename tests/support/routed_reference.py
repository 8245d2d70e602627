"""The computation of a routed model, written out once more: plain torch, every member's delta in full.

Nothing of the runtime or the kernels is used. A bundle is read from its files, the base's linear modules get
forward hooks, and ``weights`` is how much of each member a token takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

_PREFIX = "base_model.model."
# A module's path and input [B, T, in] to how much of each member every token takes, [B, T, L].
Weights = Callable[[str, Tensor], Tensor]


class PlainBundle:
    """A bundle's files: each member's delta in each module, and the gates' log posteriors."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "adapter_config.json").read_text())
        self.tensors = load_file(folder / "adapter_model.safetensors")
        self.paths: list[str] = self.config["target_modules"]
        self.members: list[str] = [member["name"] for member in self.config["members"]]

    def deltas(self, path: str, x: Tensor) -> Tensor:
        """Return every member's contribution, [..., L, out]."""
        A, B = (self.tensors[f"{_PREFIX}{path}.meteora_{name}"].float() for name in "AB")
        row, found = 0, []
        for member in self.config["members"]:
            own = member["overrides"].get(path, member)
            rows = slice(row, row + own["rank"])
            row += math.ceil(own["rank"] / 8) * 8
            found.append(own["scaling"] * (x @ A[rows].T) @ B[rows])
        return torch.stack(found, dim=-2)

    def logits(self, path: str, x: Tensor) -> Tensor:
        """Return the gate's logits of a linear gate, [..., L]; a module that has none uses its source's."""
        source = self.config["gate"]["sources"].get(path, path)
        bias = self.tensors.get(f"{_PREFIX}{source}.meteora_gate_bias", torch.zeros(()))
        return x @ self.tensors[f"{_PREFIX}{source}.meteora_gate"].T + bias

    def top_k(self, logits: Tensor) -> Tensor:
        """Return how much of each member these logits [..., L] give."""
        k, temperature = self.config["top_k"], self.config["temperature"]
        kept, chosen = logits.sort(dim=-1, descending=True, stable=True)
        weights = torch.zeros_like(logits)
        return weights.scatter(-1, chosen[..., :k], torch.softmax(kept[..., :k] / temperature, dim=-1))


@contextmanager
def routed(base: nn.Module, *bundles: tuple[PlainBundle, Weights]) -> Iterator[None]:
    """Make the base's modules add the bundle's members with these weights, within the block."""
    handles = []
    for bundle, weights in bundles:
        for path in bundle.paths:

            def add(
                module: nn.Module,
                args: tuple[Tensor],
                out: Tensor,
                bundle: PlainBundle = bundle,
                weights: Weights = weights,
                path: str = path,
            ) -> Tensor:
                parts = weights(path, args[0]).unsqueeze(-1) * bundle.deltas(path, args[0])
                return out + parts.sum(dim=-2)

            handles.append(base.get_submodule(path).register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def base_evidence(base: PreTrainedModel, bundle: PlainBundle, tokens: Sequence[int]) -> Tensor:
    """Return the mean over modules of the gates' log posteriors of one sequence on the plain base, [T, L]."""
    seen: list[Tensor] = []
    gate = bundle.config["gate"]
    handles = [
        base.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: seen.append(bundle.logits(path, args[0]).log_softmax(dim=-1))
        )
        for path in gate.get("evidence") or bundle.paths
        if path not in gate["sources"]
    ]
    with torch.no_grad():
        base(torch.tensor([list(tokens)]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen).mean(dim=0)[0]
