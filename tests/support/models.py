"""Tiny base models of seeded random weights, and LoRA adapters that PEFT itself makes for them."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

CORPUS = Path(os.environ.get("METEORA_CORPUS", Path(__file__).resolve().parents[3] / "shared" / "corpus"))
VOCABULARY = 64

# What PEFT and a bundle with a fresh gate say at every load; any other warning fails the test.
LOADS_UNFITTED = pytest.mark.filterwarnings("ignore::meteora_registry.runtime.GateNotFittedWarning")
LOADS_WITH_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
needs_corpus = pytest.mark.skipif(
    not CORPUS.is_dir(), reason=f"no folder of real adapters at `{CORPUS}`; name one with METEORA_CORPUS"
)

# Adapters that differ in everything a LoRA can differ in, by name.
LLAMA_MEMBERS: dict[str, dict[str, Any]] = {
    "rank4": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "rank8": {"r": 8, "lora_alpha": 4, "target_modules": "all-linear"},
    "rslora16": {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ["k_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj", "gate_proj"],
        "rank_pattern": {"o_proj": 6, "layers.1.self_attn.q_proj": 12},
        "alpha_pattern": {"gate_proj": 3, "layers.0.self_attn.q_proj": 32},
    },
    "last-layer": {
        "r": 5,
        "lora_alpha": 7,
        "use_rslora": True,
        "rank_pattern": {"up_proj": 9},
        "target_modules": ["q_proj", "up_proj"],
        "layers_to_transform": [1],
    },
}


def tiny_llama(
    dtype: torch.dtype = torch.float32, *, layers: int = 2, attention_dropout: float = 0.0
) -> PreTrainedModel:
    """Return a Llama of a few layers with grouped keys and values; the same weights at every call."""
    model, chance = _tiny_llama(layers, attention_dropout, torch.get_default_device())
    torch.set_rng_state(chance)
    return copy.deepcopy(model).to(dtype)


@cache
def _tiny_llama(layers: int, attention_dropout: float, _: torch.device) -> tuple[PreTrainedModel, Tensor]:
    """Return the model to copy, which takes half of the time, and the state of chance that it leaves."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=attention_dropout,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval(), torch.get_rng_state()


def wide_llama() -> PreTrainedModel:
    """Return a Llama whose modules have the paths of the other, and other shapes."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    return LlamaForCausalLM(config)


def tiny_gpt2(*, width: int = 32, layers: int = 2) -> PreTrainedModel:
    """Return a GPT-2, whose linear layers are ``Conv1D``; the same weights at every call."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


def save_base(model: PreTrainedModel, folder: Path) -> Path:
    """Write a base model where ``from_pretrained`` finds it."""
    model.save_pretrained(folder)
    return folder


def make_adapter(
    make_base: Callable[[], PreTrainedModel],
    folder: Path,
    *,
    seed: int,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Path:
    """Make PEFT write a LoRA adapter whose A and B are random, so that every module's delta shows."""
    key = (make_base, seed, base, dtype, repr(sorted(options.items())))
    if key not in _adapters:
        _adapters[key] = _make_adapter(make_base, seed, base, dtype, options)
    files, chance = _adapters[key]
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    torch.set_rng_state(chance)
    return folder


# The files of each adapter, and the state of chance that making it left: many tests have the same adapters.
_adapters: dict[tuple[object, ...], tuple[dict[str, bytes], Tensor]] = {}


def _make_adapter(
    make_base: Callable[[], PreTrainedModel],
    seed: int,
    base: str | None,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> tuple[dict[str, bytes], Tensor]:
    base_model = make_base()
    torch.manual_seed(seed)
    model = get_peft_model(base_model, LoraConfig(**{"task_type": "CAUSAL_LM"} | options))
    model.peft_config["default"].base_model_name_or_path = base
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    with tempfile.TemporaryDirectory() as folder:
        # Else PEFT asks the Hub whether the base is there.
        model.to(dtype).save_pretrained(folder, save_embedding_layers=False)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return files, torch.get_rng_state()


def make_llama_adapters(
    folder: Path, *, base: str | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, Path]:
    """Return the adapters of ``LLAMA_MEMBERS``, each in a folder of its own."""
    return {
        name: make_adapter(tiny_llama, folder / name, seed=seed, base=base, dtype=dtype, **options)
        for seed, (name, options) in enumerate(LLAMA_MEMBERS.items(), start=1)
    }


def logits_of(model: nn.Module, tokens: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
    """Return the logits of one forward pass over these tokens, ``some_tokens`` unless stated."""
    with torch.no_grad():
        logits: torch.Tensor = model(some_tokens() if tokens is None else tokens, **inputs).logits
    return logits


def logits_alone(base: PreTrainedModel, adapter: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits that PEFT gives with one adapter alone; the base is then as it was."""
    model = PeftModel.from_pretrained(base, adapter)
    found = logits_of(model, tokens)
    model.unload()
    return found


def some_tokens(*, batch: int = 3, length: int = 9, seed: int = 5) -> torch.Tensor:
    """Return token ids, int64 ``[batch, length]``."""
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
