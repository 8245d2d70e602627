"""The base that gates are fitted on: first its config and tokenizer, its weights once all else is right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..loading import read_pretrained


@dataclass(frozen=True, slots=True)
class OpenedBase:
    """A base by name or folder, of which only config and tokenizer were read."""

    name: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase

    def load(self) -> PreTrainedModel:
        """The model in the element type of its files, on the GPUs if there are any.

        Raises:
            SourceUnreadable: it has no safetensors weights that transformers can load.
        """
        options = {"device_map": "auto"} if torch.cuda.is_available() else {}
        # A pickle is never loaded.
        model: PreTrainedModel = read_pretrained(
            AutoModelForCausalLM, self.name, use_safetensors=True, **options
        )
        return model


def open_base(name: str) -> OpenedBase:
    """A base by its folder or its name on the Hub; no code of any repository is run.

    Raises:
        SourceUnreadable: it has no config or no tokenizer that transformers can read.
    """
    return OpenedBase(name, read_pretrained(AutoConfig, name), read_pretrained(AutoTokenizer, name))


def context_of(config: PretrainedConfig) -> int | None:
    """How many tokens the base takes at once; None where its config states no bound."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
