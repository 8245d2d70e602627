"""A tokenizer of bytes: every text has tokens, and characters beyond ASCII have several; and a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def byte_tokenizer(*merges: tuple[str, str], **options: Any) -> PreTrainedTokenizerFast:
    """Return a token for each byte, then one for each of the merges of two."""
    symbols = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(BPE({symbol: place for place, symbol in enumerate(symbols)}, merges=[*merges]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def save_byte_llama(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a tiny Llama of random weights, which reads bytes and a padding token, and its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
