"""A trace recorded from a model that answers one prompt, with the text of each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...kernels.routing import Routing
from ...schemas.errors import UsageError
from ...schemas.trace import (
    MAX_TRACE_ENTRIES,
    MAX_TRACE_TOKENS,
    NO_MEMBER,
    Trace,
    TraceDecision,
    TraceModule,
    TraceRouting,
    TraceToken,
)
from ..active_bundles import only_router
from ..fitting import context_of
from ..loaded_bundle import LoadedBundle, generate_ids
from ..routing_record import RoutingRecord

# Enough digits for the page and the terminal, in a tenth of the size.
_WEIGHT_DECIMALS = 4


def trace(loaded: LoadedBundle, prompt: str, *, max_new_tokens: int, bundle: str) -> Trace:
    """Trace which members serve each token of ``prompt`` and of its greedy answer.

    The bundle routes by its rule of the moment, so within ``route_as`` another one is traced.

    Args:
        loaded: the bundle on its base.
        prompt: used as it is.
        max_new_tokens: the longest answer; 0 reads the prompt alone.
        bundle: its name in the trace.

    Raises:
        UsageError: the prompt has no tokens, is longer with its answer than the base takes, or the trace
            would be larger than ``MAX_TRACE_TOKENS`` and ``MAX_TRACE_ENTRIES``.
    """
    router = only_router(loaded.model)
    batch = loaded.encode(prompt)
    prompt_tokens = batch["input_ids"].shape[1]
    _check_size(loaded, prompt_tokens, max_new_tokens, top_k=router.rule.top_k)
    record = RoutingRecord(router.members)
    # Of this call alone: a trace may be made while other threads use the model.
    with torch.no_grad(), router.records.made(record, for_call=True):
        if max_new_tokens:
            ids = generate_ids(loaded, batch, max_new_tokens=max_new_tokens)[0].tolist()
        else:
            loaded.model(**batch)
            ids = batch["input_ids"][0].tolist()
        modules, routings = _tables(record.modules, tokens=len(ids))
        decisions = tuple(
            TraceDecision(
                start=each.start,
                end=each.end,
                members=each.members,
                confidence=round(each.confidence, _WEIGHT_DECIMALS),
            )
            for each in record.decisions
        )
    return Trace(
        meteora_trace=1,
        bundle=bundle,
        base=loaded.config.base_model_name_or_path,
        scope=router.rule.scope,
        top_k=router.rule.top_k,
        temperature=router.rule.temperature,
        gate_fitted=loaded.config.gate.is_fitted,
        members=loaded.config.names,
        tokens=tuple(
            TraceToken(id=token, text=text, generated=place >= prompt_tokens)
            for place, (token, text) in enumerate(zip(ids, token_texts(loaded.tokenizer, ids), strict=True))
        ),
        modules=modules,
        routings=routings,
        decisions=decisions,
    )


def _check_size(loaded: LoadedBundle, prompt_tokens: int, max_new_tokens: int, *, top_k: int) -> None:
    tokens = prompt_tokens + max_new_tokens
    if not prompt_tokens:
        raise UsageError("the prompt has no tokens, expected some text")
    context = context_of(loaded.model.config)
    if context is not None and tokens > context:
        raise UsageError(
            f"the prompt has {prompt_tokens} tokens and the answer up to {max_new_tokens}, the base takes "
            f"{context} together"
        )
    most = min(MAX_TRACE_TOKENS, MAX_TRACE_ENTRIES // (len(loaded.config.target_modules) * top_k))
    if tokens > most:
        raise UsageError(
            f"the prompt has {prompt_tokens} tokens and the answer up to {max_new_tokens}, a trace of this "
            f"bundle holds at most {most}",
            hint="trace a shorter prompt or answer",
        )


def _tables(
    found: Mapping[str, Routing], *, tokens: int
) -> tuple[tuple[TraceModule, ...], tuple[TraceRouting, ...]]:
    # Modules that share a decision have equal tables, and one of them is kept.
    routings: dict[TraceRouting, int] = {}
    modules = []
    for path, routed in found.items():
        table = TraceRouting(
            selection=_rows(routed.selection[0], tokens, NO_MEMBER),
            weights=_rows(routed.weights[0].double(), tokens, 0.0),
        )
        modules.append(TraceModule(path=path, routing=routings.setdefault(table, len(routings))))
    return tuple(modules), tuple(routings)


def _rows(table: Tensor, tokens: int, value: float) -> tuple[tuple[Any, ...], ...]:
    # The last token of an answer was written and never read.
    padded = torch.nn.functional.pad(table, (0, 0, 0, tokens - len(table)), value=value)
    rounded = padded.round(decimals=_WEIGHT_DECIMALS) if padded.is_floating_point() else padded
    return tuple(map(tuple, rounded.tolist()))


# What a decoder puts in place of bytes that are not yet a whole character.
_INCOMPLETE = "\ufffd"
# No character of UTF-8 has more bytes; after that it is a byte that is not part of a character.
_MAX_PENDING_TOKENS = 4


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds to those before it; together they are a UTF-8 text's whole.

    A token decoded alone would lose the space before its word, and part of a character would be a
    question mark. So a token is decoded with those before it, and where a character takes several tokens
    the last of them gets it and the others get nothing.
    """
    texts: list[str] = []
    # The tokens from `anchor` on are decoded together; the text of those before `done` was handed out.
    anchor = done = 0
    for end in range(1, len(ids) + 1):
        before = _decode(tokenizer, ids[anchor:done])
        text = _decode(tokenizer, ids[anchor:end])
        if text.endswith(_INCOMPLETE) and end - done < _MAX_PENDING_TOKENS and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        anchor, done = done, end
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
