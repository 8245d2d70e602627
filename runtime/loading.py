"""A bundle with its base and tokenizer in one call, and text in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from ..bundle import Bundle
from ..schemas.bundle import BundleConfig
from ..schemas.errors import UsageError
from .base_config import check_base_config, translated_failures


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle on its base, ready to run."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    config: BundleConfig


def load_bundle(
    folder: Path, base: str | Path | PreTrainedModel, *, dtype: torch.dtype | None = None
) -> LoadedBundle:
    """Load a bundle's folder on a base: its name, its folder, or the model itself.

    The tokenizer is the base's, padded on the left. No code of any repository is run.

    Args:
        folder: the bundle; its config and tensors are checked before the base is loaded.
        base: what it was fused for. A model is used as it is, and its tokenizer comes from where it was
            loaded.
        dtype: what a base is loaded in; by default what its files say.

    Raises:
        BundleRefused: it is no bundle of a known format, or does not fit the base.
        InvalidDocument: its config breaks the schema.
        SourceUnreadable: a file of the bundle or the base is missing or cannot be read.
        UsageError: a dtype was given for a base that is loaded already.
    """
    config = Bundle.open(folder).config
    if isinstance(base, PreTrainedModel):
        if dtype is not None and dtype != base.dtype:
            raise UsageError(f"the base is loaded in `{base.dtype}`, found also `dtype={dtype}`")
        model, named = base, str(base.name_or_path)
    else:
        named = str(base)
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        model = read_pretrained(AutoModelForCausalLM, named, **options)
    tokenizer = read_pretrained(AutoTokenizer, named)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        # Masked out wherever it stands, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return LoadedBundle(PeftModel.from_pretrained(model, folder).eval(), tokenizer, config)


def generate(loaded: LoadedBundle, prompts: Sequence[str], *, max_new_tokens: int = 128) -> list[str]:
    """The greedy answer to each prompt, as one batch; special tokens are left out.

    The prompts are taken as they are: a chat template is the caller's to apply.

    Raises:
        UsageError: there are no prompts, or the model's scope cannot decide for them.
    """
    if not prompts:
        raise UsageError("there are no prompts to answer")
    batch = loaded.tokenizer(list(prompts), return_tensors="pt", padding=True).to(loaded.model.device)
    answers = generate_ids(loaded, batch, max_new_tokens=max_new_tokens)[:, batch["input_ids"].shape[1] :]
    return list(loaded.tokenizer.batch_decode(answers, skip_special_tokens=True))


def generate_ids(
    loaded: LoadedBundle,
    batch: BatchEncoding,
    *,
    max_new_tokens: int,
    stopping_criteria: StoppingCriteriaList | None = None,
) -> Tensor:
    """The tokens of each prompt and its greedy answer, int64 ``[B, T + N]``, padded behind an early end."""
    with torch.no_grad():
        ids: Tensor = loaded.model.generate(  # type: ignore[no-untyped-call]  # PEFT leaves it untyped
            **batch,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=loaded.tokenizer.pad_token_id,
            stopping_criteria=stopping_criteria,
        )
    return ids


def read_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """What one of transformers' auto classes makes of a base's name or folder; no code of it is run.

    Raises:
        SourceUnreadable: there is nothing there that transformers can read.
    """
    if Path(name).is_dir():
        check_base_config(Path(name))
    with translated_failures(
        f"`{name}` cannot be loaded as the base",
        hint="name a folder or a Hub repository with model and tokenizer",
    ):
        return kind.from_pretrained(name, trust_remote_code=False, **options)
