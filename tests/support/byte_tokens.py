"""A tokenizer of bytes: every text has tokens, and characters beyond ASCII have several."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(*merges: tuple[str, str], **options: Any) -> PreTrainedTokenizerFast:
    """Return a token for each byte, then one for each of the merges of two."""
    symbols = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(BPE({symbol: place for place, symbol in enumerate(symbols)}, merges=[*merges]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
