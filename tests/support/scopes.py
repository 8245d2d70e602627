"""The scopes of a bundle by their definitions, written out in plain torch, and bundles that differ in it."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from meteora_registry.runtime.scopes.segment import INDEPENDENT_GATES, SWITCH_PROBABILITY
from support.bundles import write_bundle
from support.models import logits_of, save_base, some_tokens, tiny_llama
from support.routed_reference import PlainBundle, Weights, base_evidence, routed

SCOPES = ["token", "layer", "prompt", "prompt+token", "segment"]
REQUEST_SCOPES = ["prompt", "prompt+token", "segment"]
# Of a whole model in float32, where the softmax of a gate passes rounding on from layer to layer: measured
# up to 1.4e-5, and another processor rounds otherwise. A wrong choice or weight shows as 1e-2 and more.
MAX_ERROR = 5e-5
PROMPTS = [
    row[:length] for row, length in zip(some_tokens(batch=4, length=9).tolist(), (9, 4, 6, 2), strict=True)
]


def write_scope_bundles(folder: Path, adapters: dict[str, Path]) -> dict[str, Path]:
    """Return a bundle of the adapters for each scope; they differ in nothing else."""
    base = str(save_base(tiny_llama(), folder / "base"))
    return {
        scope: write_bundle(folder / scope, adapters, base=base, temperature=0.5, scope=scope)
        for scope in SCOPES
    }


def loaded(bundle: Path) -> PeftModel:
    """Return the tiny Llama with a bundle."""
    return PeftModel.from_pretrained(tiny_llama(), bundle)


def by_token(bundle: PlainBundle) -> Weights:
    """Return the weights of every token by the module's own gate."""
    return lambda path, x: bundle.top_k(bundle.logits(path, x))


def by_layer(bundle: PlainBundle) -> Weights:
    """Return the weights of every token by the gate of its layer's first module."""
    decided: dict[str, Tensor] = {}

    def weights(path: str, x: Tensor) -> Tensor:
        layer = ".".join(path.split(".")[:3])
        if path.endswith("q_proj"):
            decided[layer] = bundle.top_k(bundle.logits(path, x))
        return decided[layer]

    return weights


def by_prompt(bundle: PlainBundle, prompts: list[list[int]]) -> Tensor:
    """Return how much of each member every request takes, [B, L]."""
    base = tiny_llama()
    return torch.stack([bundle.top_k(base_evidence(base, bundle, prompt).mean(dim=0)) for prompt in prompts])


def by_segment(bundle: PlainBundle, tokens: list[int], prompt_tokens: int) -> Tensor:
    """Return how much of each member every token takes, [T, L]: forward-backward with the whole matrix."""
    evidence = (INDEPENDENT_GATES * base_evidence(tiny_llama(), bundle, tokens).double()).exp()
    members = evidence.shape[-1]
    identity, uniform = torch.eye(members, dtype=torch.float64), torch.full((members,), 1 / members).double()
    move = (1 - SWITCH_PROBABILITY) * identity + SWITCH_PROBABILITY * uniform
    forward, backward = [uniform * evidence[0]], [torch.ones_like(uniform)]
    for token in range(1, prompt_tokens):
        forward.append((forward[-1] @ move) * evidence[token])
    for token in reversed(range(1, prompt_tokens)):
        backward.insert(0, move @ (evidence[token] * backward[0]))
    found = [a * b / (a * b).sum() for a, b in zip(forward, backward, strict=True)]
    prior = (torch.stack(found).sum(dim=0) + 1) / (prompt_tokens + members)
    move = (1 - SWITCH_PROBABILITY) * identity + SWITCH_PROBABILITY * prior
    for token in range(prompt_tokens, len(tokens)):
        found.append((found[-1] @ move) * evidence[token])
        found[-1] /= found[-1].sum()
    return bundle.top_k(torch.stack(found).log()).float()


def expected_logits(scope: str, folder: Path, tokens: Tensor, prompt_tokens: int) -> Tensor:
    """Return what a scope computes for tokens [B, T] of which the first belong to the prompt."""
    bundle = PlainBundle(folder)
    if scope == "layer":
        weights = by_layer(bundle)
    elif scope == "token":
        weights = by_token(bundle)
    elif scope == "segment":
        segments = torch.stack([by_segment(bundle, row, prompt_tokens) for row in tokens.tolist()])

        def weights(path: str, x: Tensor) -> Tensor:
            return segments
    else:
        prompts = [row[:prompt_tokens] for row in tokens.tolist()]
        request = by_prompt(bundle, prompts).unsqueeze(1)

        def weights(path: str, x: Tensor) -> Tensor:
            decided = request.expand(*x.shape[:2], -1).clone()
            if scope == "prompt+token":
                decided[:, prompt_tokens:] = by_token(bundle)(path, x)[:, prompt_tokens:]
            return decided

    base = tiny_llama()
    with routed(base, (bundle, weights)):
        return logits_of(base, tokens)


def padded(prompts: list[list[int]]) -> dict[str, Tensor]:
    """Return a batch of prompts of different lengths, padded on the left."""
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


def answers(
    model: nn.Module, prompts: list[list[int]], tokens: int = 4, **options: object
) -> list[list[int]]:
    """Return the tokens of the greedy answer to each prompt, as one batch."""
    batch = padded(prompts)
    found = model.generate(**batch, max_new_tokens=tokens, do_sample=False, pad_token_id=0, **options)
    return [row[batch["input_ids"].shape[1] :] for row in found.tolist()]
