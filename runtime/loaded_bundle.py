"""A bundle with its base and tokenizer in one call, and text in, text out."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, overload

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from ..bundle import Bundle
from ..schemas.bundle import BundleConfig
from ..schemas.errors import UsageError
from ..schemas.gate_choices import Scope
from .active_bundles import (
    UNCHANGED,
    Unchanged,
    called_with,
    force_adapter,
    force_tokens,
    only_router,
    routing,
)
from .answers import Answer, AnswerStream
from .base_model import context_of, read_pretrained
from .loaded_tensors import set_factor_dtype
from .offloading import placement
from .requirements import read_requirement, require
from .routing_record import RoutingRecord

_ENCODING = threading.Lock()


class CallChoice(TypedDict, total=False):
    """The choices that one call may make in place of the bundle's own."""

    member: str | None
    scope: Scope
    top_k: int
    temperature: float
    abstain: float | None


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle on its base, ready to run.

    Attributes:
        model: the base with the bundle on it; every function of ``meteora_registry.runtime`` takes it.
        tokenizer: the base's, which pads on the left.
        config: the bundle's.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    config: BundleConfig

    # A `str` is a sequence of `str` too; the first signature that fits counts.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: str, *, max_new_tokens: int = 128, **choice: Unpack[CallChoice]
    ) -> str: ...

    @overload
    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int = 128, **choice: Unpack[CallChoice]
    ) -> list[str]: ...

    def generate(
        self, prompts: str | Sequence[str], *, max_new_tokens: int = 128, **choice: Unpack[CallChoice]
    ) -> str | list[str]:
        """Return the greedy answer to a prompt, or a list of answers to a list of prompts.

        A chat template is not applied; `answer` also returns which members answered. Calls may come from
        several threads at once. What a call chooses holds for that call alone, and comes before the blocks
        that ``force`` and ``route_as`` open.

        Args:
            prompts: a text or several.
            max_new_tokens: the longest answer.
            choice: ``member`` answers with that member alone, or with the base alone if it is None;
                ``scope``, ``top_k``, ``temperature`` and ``abstain`` as for ``route_as``.

        Raises:
            UsageError: there are no prompts, the bundle's scope cannot decide for them, or a choice is not
                one that the bundle has.
        """
        return generate(self, prompts, max_new_tokens=max_new_tokens, **choice)

    @overload
    def answer(  # type: ignore[overload-overlap]
        self, prompts: str, *, max_new_tokens: int = 128, **choice: Unpack[CallChoice]
    ) -> Answer: ...

    @overload
    def answer(
        self, prompts: Sequence[str], *, max_new_tokens: int = 128, **choice: Unpack[CallChoice]
    ) -> list[Answer]: ...

    def answer(
        self, prompts: str | Sequence[str], *, max_new_tokens: int = 128, **choice: Unpack[CallChoice]
    ) -> Answer | list[Answer]:
        """Return what `generate` does, each answer with the decisions that were made for it.

        Args:
            prompts: a text or several.
            max_new_tokens: the longest answer.
            choice: as for `generate`.

        Raises:
            UsageError: as `generate`.
        """
        if isinstance(prompts, str):
            return self.answer([prompts], max_new_tokens=max_new_tokens, **choice)[0]
        with self.routing() as record:
            texts = generate(self, prompts, max_new_tokens=max_new_tokens, **choice)
        decisions = record.decisions
        return [
            Answer(text, tuple(each for each in decisions if each.sequence == row))
            for row, text in enumerate(texts)
        ]

    def stream(self, prompt: str, *, max_new_tokens: int = 128, **choice: Unpack[CallChoice]) -> AnswerStream:
        """Return the pieces of the answer to one prompt, as they are written.

        Iterate over what is returned; closing it stops the generation. Its ``answer`` is what `answer`
        returns, as far as the pieces were read::

            with model.stream("Which court decides?") as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
            print(pieces.answer.decisions)

        Args:
            prompt: a text; a chat template is not applied.
            max_new_tokens: the longest answer; it also ends where the base's context does.
            choice: as for `generate`.

        Raises:
            UsageError: the prompt has no tokens, or as many as the base takes. The first piece raises what
                `generate` does.
        """
        batch = _encode_prompts(self, [prompt])
        prompt_tokens = batch["input_ids"].shape[1]
        max_new_tokens = min(max_new_tokens, _room_behind(self, prompt_tokens))
        router = only_router(self.model)
        record = RoutingRecord(router.members)
        member = choice.pop("member", UNCHANGED)

        def run(streamer: BaseStreamer, criteria: StoppingCriteriaList) -> None:
            chosen = called_with(self.model, member=member, changes=choice)
            with chosen, router.records.made(record, for_call=True):
                generate_ids(
                    self, batch, max_new_tokens=max_new_tokens, stopping_criteria=criteria, streamer=streamer
                )

        return AnswerStream(
            run,
            self.tokenizer,
            record,
            prompt_tokens=prompt_tokens,
            max_new_tokens=max_new_tokens,
            ends=end_tokens(self.model.generation_config),
        )

    def encode(self, prompts: str | Sequence[str], **options: Any) -> BatchEncoding:
        """Return the tokens of prompts as tensors on the model's device, from one thread at a time."""
        # A tokenizer is set to padding, or to none, before each text: threads would change it for each other.
        with _ENCODING:
            batch: BatchEncoding = self.tokenizer(prompts, return_tensors="pt", **options)
        return place(batch, self.model)

    def force(self, name: str) -> AbstractContextManager[None]:
        """Send every token to the member ``name`` within a ``with`` block.

        Raises:
            UsageError: the bundle has no such member.
        """
        return force_adapter(self.model, name)

    def force_tokens(
        self, members: Sequence[Sequence[str | None]], *, beyond: str | Unchanged | None = UNCHANGED
    ) -> AbstractContextManager[None]:
        """Send each token to the member given for it within a ``with`` block; see ``force_tokens``.

        Args:
            members: [B, T], by name, None for the base alone; padding, on the left, counts.
            beyond: who serves the tokens behind those; by default they are refused.

        Raises:
            UsageError: the bundle has no such member, or the rows have unlike lengths.
        """
        return force_tokens(self.model, members, beyond=beyond)

    def routing(self) -> AbstractContextManager[RoutingRecord]:
        """Record within a ``with`` block which members each token takes; the block gets the record."""
        return routing(self.model)


def load_bundle(
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str] | PreTrainedModel,
    *,
    dtype: torch.dtype | None = None,
    factor_dtype: torch.dtype | None = None,
    verify: str | None = None,
) -> LoadedBundle:
    """Load a bundle on its base.

    The tokenizer is the base's, padded on the left. No code of any repository is run.

    Args:
        folder: the bundle; its config and tensors are checked before the base is loaded.
        base: the base model: its folder, its name on the Hub, or the model itself, which is used as it is
            with the tokenizer from where it was loaded.
        dtype: the element type in which a base is loaded; by default that of its files.
        factor_dtype: the element type in which A and B compute. By default that of the bundle, but float32
            for half precision, as PEFT computes LoRA. On a GPU, that of a half-precision base is the faster
            choice; factors that are rounded for it cannot be saved.
        verify: `intact` verifies the bundle by itself before anything is loaded; METEORA_REQUIRE asks the
            same of every load in the process.

    Raises:
        BundleRefused: it is not a bundle of a known format, does not show what is required, or does not fit
            the base.
        InvalidDocument: its config breaks the schema.
        SourceUnreadable: a file of the bundle or the base is missing or cannot be read.
        UsageError: a dtype was given for a base that is loaded already, factors cannot compute in one, or
            ``verify`` names no requirement.
    """
    requirement = None if verify is None else read_requirement(verify, "`verify`")
    bundle = Bundle.open(folder)
    if requirement is not None:
        require(bundle.folder, requirement)
    if isinstance(base, PreTrainedModel):
        if dtype is not None and dtype != base.dtype:
            raise UsageError(f"the base is loaded in `{base.dtype}`, found also `dtype={dtype}`")
        model, named = base, str(base.name_or_path)
    else:
        named = os.fspath(base)
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        model = read_pretrained(AutoModelForCausalLM, named, **options)
    tokenizer = read_pretrained(AutoTokenizer, named)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        # Always masked out, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    loaded: PeftModel = PeftModel.from_pretrained(model, bundle.folder, **placement(model)).eval()
    if factor_dtype is not None:
        set_factor_dtype(loaded, loaded.active_adapter, factor_dtype)
    return LoadedBundle(loaded, tokenizer, bundle.config)


@overload
def generate(  # type: ignore[overload-overlap]  # as in LoadedBundle
    loaded: LoadedBundle, prompts: str, *, max_new_tokens: int = 128, **choice: Unpack[CallChoice]
) -> str: ...


@overload
def generate(
    loaded: LoadedBundle, prompts: Sequence[str], *, max_new_tokens: int = 128, **choice: Unpack[CallChoice]
) -> list[str]: ...


def generate(
    loaded: LoadedBundle,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 128,
    **choice: Unpack[CallChoice],
) -> str | list[str]:
    """Return the greedy answer to a prompt, or to each of several as one batch, without special tokens.

    The prompts are taken as they are: a chat template is the caller's to apply. ``choice`` as for
    ``LoadedBundle.generate``.

    Raises:
        UsageError: there are no prompts, the model's scope cannot decide for them, or a choice is not one
            that the bundle has.
    """
    # A `str` is a sequence too, of its characters.
    if isinstance(prompts, str):
        return generate(loaded, [prompts], max_new_tokens=max_new_tokens, **choice)[0]
    if not prompts:
        raise UsageError("there are no prompts to answer")
    batch = _encode_prompts(loaded, prompts)
    member = choice.pop("member", UNCHANGED)
    with called_with(loaded.model, member=member, changes=choice):
        answers = generate_ids(loaded, batch, max_new_tokens=max_new_tokens)
    written = answers[:, batch["input_ids"].shape[1] :]
    return list(loaded.tokenizer.batch_decode(written, skip_special_tokens=True))


def _encode_prompts(loaded: LoadedBundle, prompts: Sequence[str]) -> BatchEncoding:
    batch = loaded.encode(list(prompts), padding=True)
    for row, mask in enumerate(batch["attention_mask"]):
        if not mask.any():
            which = "" if len(prompts) == 1 else f" {row + 1} of {len(prompts)}"
            raise UsageError(f"the prompt{which} has no tokens, expected some text")
    return batch


def _room_behind(loaded: LoadedBundle, prompt_tokens: int) -> int:
    """Return how many tokens an answer may have.

    Raises:
        UsageError: none.
    """
    context = context_of(loaded.model.config)
    if context is not None and prompt_tokens >= context:
        raise UsageError(
            f"the prompt has {prompt_tokens} tokens, the base takes {context} together with the answer"
        )
    return sys.maxsize if context is None else context - prompt_tokens


def place(batch: BatchEncoding, model: PeftModel) -> BatchEncoding:
    """Return a batch of tensors on a model's device."""
    # Offloaded tensors are nowhere until they are used; the base then moves its input.
    if model.device.type != "meta":
        batch.to(model.device)
    return batch


def end_tokens(config: GenerationConfig) -> frozenset[int]:
    """Return the tokens that end an answer."""
    found = config.eos_token_id
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def generate_ids(
    loaded: LoadedBundle,
    batch: BatchEncoding,
    *,
    max_new_tokens: int,
    stopping_criteria: StoppingCriteriaList | None = None,
    streamer: BaseStreamer | None = None,
    logits_processor: LogitsProcessorList | None = None,
) -> Tensor:
    """Generate greedily: each prompt with its answer, int64 ``[B, T + N]``, padded behind an early end."""
    with torch.no_grad():
        ids: Tensor = loaded.model.generate(  # type: ignore[no-untyped-call]  # PEFT leaves it untyped
            **batch,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=loaded.tokenizer.pad_token_id,
            stopping_criteria=stopping_criteria,
            streamer=streamer,
            logits_processor=logits_processor,
        )
    return ids
