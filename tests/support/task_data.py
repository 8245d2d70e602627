"""A tokenizer of a few dozen words for the tiny models, and task data that differ in their words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from support.models import VOCABULARY, make_llama_adapters, save_base, tiny_llama

TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def save_text_base(folder: Path, **tokens: str) -> Path:
    """Write the tiny Llama with a tokenizer of its vocabulary, as ``from_pretrained`` finds them."""
    tiny_tokenizer(**tokens).save_pretrained(save_base(tiny_llama(), folder))
    return folder


def tiny_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """Return words ``w0`` to ``w59``, the rest of the vocabulary special; unknown words are ``<unk>``."""
    special = ["<unk>", "<s>", "<user>", "<assistant>"]
    words = [*special, *(f"w{number}" for number in range(VOCABULARY - len(special)))]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **options)


def write_task_data(
    folder: Path, members: Sequence[str], *, samples: int = 12, seed: int = 0, length: int = 10
) -> Path:
    """Return a file for each member, whose words mostly come from a part of the vocabulary of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    own = 60 // len(members)
    for place, member in enumerate(members):
        lines = []
        for _ in range(samples):
            numbers = random.integers(place * own, (place + 1) * own, size=length)
            words = [f"w{number}" for number in numbers]
            lines.append(
                {"prompt": " ".join(words[: length // 2]), "response": " ".join(words[length // 2 :])}
            )
        write_lines(folder / f"{member}.jsonl", lines)
    return folder


def make_fit_workplace(folder: Path, members: Sequence[str], *, samples: int = 12, **tokens: str) -> Path:
    """Return a folder with a base, the adapters of ``LLAMA_MEMBERS``, and data of these members."""
    save_text_base(folder / "base", **tokens)
    write_task_data(folder / "data", members, samples=samples)
    make_llama_adapters(folder / "adapters", base="org/base")
    return folder


def write_lines(path: Path, values: Iterable[Any]) -> Path:
    """Return a JSONL file of these values."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path
