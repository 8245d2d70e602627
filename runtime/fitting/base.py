"""The base that gates are fitted on: first its config and tokenizer, its weights once all else is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...schemas.errors import SourceUnreadable


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
        model: PreTrainedModel = _read(AutoModelForCausalLM, self.name, use_safetensors=True, **options)
        return model


def open_base(name: str) -> OpenedBase:
    """A base by its folder or its name on the Hub; no code of any repository is run.

    Raises:
        SourceUnreadable: it has no config or no tokenizer that transformers can read.
    """
    return OpenedBase(name, _read(AutoConfig, name), _read(AutoTokenizer, name))


def _read(kind: Any, name: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise SourceUnreadable(
            f"`{name}` cannot be loaded as the base: {first_line}",
            hint="name a folder or a Hub repository with model and tokenizer",
        ) from error
