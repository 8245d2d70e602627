"""A generate loop on a Llama with the shapes of Llama-3-8B and random weights, in three forms.

It needs transformers, peft for one form, and of this project the kernels alone: every linear of the layers is
wrapped in a module that adds what `gated_lora_` routes to its members.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pages import Row
from meteora_registry.kernels.routed_lora import gated_lora_
from meteora_registry.kernels.routing import Gate

SHAPES = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 2048,
}
DRY_SHAPES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MEMBERS, RANK, TOP_K = 28, 8, 2
PROMPT_TOKENS, NEW_TOKENS = 32, 48
BATCHES = (1, 16)


class Routed(nn.Module):
    """A linear and what its members add, by its own gate."""

    def __init__(self, base: nn.Linear, members: int) -> None:
        super().__init__()
        self.base = base
        h, D = base.in_features, base.out_features

        def draw(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(*shape, device=base.weight.device, dtype=dtype).normal_(0, 0.02)

        self.A = draw(members * RANK, h, dtype=base.weight.dtype)
        self.Bt = draw(members * RANK, D, dtype=base.weight.dtype)
        self.gate = Gate(draw(members, h, dtype=torch.float32), None, "linear", TOP_K)
        self.offsets, self.scaling = tuple(range(0, (members + 1) * RANK, RANK)), (2.0,) * members

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output with the members' added."""
        out: Tensor = self.base(x)
        gated_lora_(out, x, self.A, self.Bt, self.offsets, self.scaling, self.gate)
        return out


def rates(device: str, *, dry: bool, has_time: Callable[[], bool]) -> Iterator[Row]:
    """Yield tokens per second of each form, and of each batch."""
    model = llama(device, DRY_SHAPES if dry else SHAPES)
    new = 2 if dry else NEW_TOKENS
    routed = functools.partial(with_members, members=4 if dry else MEMBERS)
    for form, prepare in (("base", None), ("one_lora_peft", with_one_lora), ("members", routed)):
        if not has_time():
            return
        try:
            served = model if prepare is None else prepare(model)
            for batch in BATCHES[: 1 if dry else None]:
                yield {"form": form, "batch": batch, "new_tokens": new, **rate(served, batch, new)}
            if form == "one_lora_peft":
                model = served.unload()
        except (ImportError, RuntimeError, ValueError, TypeError) as error:
            yield {"form": form, "failed": f"{type(error).__name__}: {str(error)[:200]}"}


def llama(device: str, shapes: dict[str, int]) -> Any:
    """Return a Llama of these shapes with random weights, bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**shapes))
    finally:
        torch.set_default_dtype(kept)
    return model.eval()


def with_one_lora(model: Any) -> Any:
    """Return the model with one LoRA on every linear of its layers, in PEFT."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(LINEARS), init_lora_weights=False)
    return get_peft_model(model, config).eval()


def with_members(model: Any, members: int) -> Any:
    """Return the model with every linear of its layers routed."""
    for module in list(model.modules()):
        for name in LINEARS:
            base = getattr(module, name, None)
            if isinstance(base, nn.Linear):
                setattr(module, name, Routed(base, members))
    return model


def rate(model: Any, batch: int, new: int) -> Row:
    """Return the tokens per second of greedy decoding, all rows of the batch counted, and the first run's."""
    device = next(model.parameters()).device
    prompt = torch.randint(5, 100, (batch, PROMPT_TOKENS), device=device)

    def run(tokens: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    run(2)
    # The prompt's pass is in both, and not in their difference.
    short, long = run(2), run(2 + new)
    return {"tokens_per_second": batch * new / max(1e-9, long - short), "seconds": long}
