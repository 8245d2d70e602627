"""A routed model in use: threads, guessed tokens, copied caches, trainers, offload.

Each stands for a kind of fault that once was there.
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import route_as
from meteora_registry.schemas.errors import MeteoraError, UsageError
from support.bundles import write_bundle
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_of,
    some_tokens,
    tiny_llama,
)
from support.patience import PATIENCE_SECONDS
from support.scopes import MAX_ERROR, PROMPTS, answers, loaded

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

AHEAD = ["prompt", "segment"]  # Scopes that decide before the routed pass.


def in_step(model: nn.Module, calls: list[Callable[[], Any]]) -> list[Any]:
    """Make these calls in threads that wait for each other before the layers and inside each of them.

    So every call is set up before any of them routes, which chance alone would seldom bring about.
    """
    together = threading.Barrier(len(calls))

    def wait(*_: object) -> None:
        # Broken once a thread has failed or finished: the others go on alone.
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(PATIENCE_SECONDS)

    def carry_out(call: Callable[[], Any]) -> Any:
        try:
            return call()
        finally:
            together.abort()

    places = [part for name, part in model.named_modules() if name.endswith((".self_attn", ".v_proj"))]
    hooks = [place.register_forward_pre_hook(wait) for place in places]
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            return [future.result() for future in [pool.submit(carry_out, call) for call in calls]]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("scope", ["token", "layer", *AHEAD])
def test_passes_in_two_threads_are_those_of_each_alone(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    requests = [some_tokens(batch=1, seed=seed) for seed in (5, 9)]
    alone = [logits_of(model, tokens) for tokens in requests]
    found = in_step(model, [lambda tokens=tokens: logits_of(model, tokens) for tokens in requests])
    assert all(relative_error(*pair) <= MAX_ERROR for pair in zip(found, alone, strict=True))


def test_answers_in_a_pool_of_threads_are_those_of_each_alone(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    requests = [some_tokens(batch=1, seed=seed).tolist() for seed in (5, 9)]
    alone = [answers(model, prompts) for prompts in requests]
    assert in_step(model, [lambda prompts=prompts: answers(model, prompts) for prompts in requests]) == alone


def repetitive_prompts() -> list[list[int]]:
    """Return prompts that repeat themselves, so that guessing from the prompt proposes tokens."""
    rows = some_tokens(batch=3, length=9, seed=3).tolist()
    return [row[:5] + row[5:] + row[:5] + row[5:] + row[:5] for row in rows]


@pytest.mark.parametrize("scope", ["token", *AHEAD])
def test_tokens_guessed_from_the_prompt_change_no_answer(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    for prompt in repetitive_prompts():
        guessed = answers(model, [prompt], 8, prompt_lookup_num_tokens=4)
        assert guessed == answers(model, [prompt], 8)


@pytest.mark.parametrize("scope", AHEAD)
def test_copied_cache_of_a_shared_prefix_answers_as_the_whole_prompt_or_is_refused(
    bundles: dict[str, Path], scope: str
) -> None:
    model = loaded(bundles[scope])
    prefix = some_tokens(batch=1, length=6)
    with torch.no_grad():
        cache = model(prefix, use_cache=True).past_key_values
    for seed in range(4):
        prompt = torch.cat([prefix, some_tokens(batch=1, length=8, seed=seed)], dim=1)
        try:
            found = answers(model, prompt.tolist(), past_key_values=copy.deepcopy(cache))
        except UsageError:
            continue
        assert found == answers(model, prompt.tolist())


@pytest.mark.parametrize("scope", AHEAD)
def test_batch_without_a_mask_is_right_or_warned_of(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    width = max(map(len, PROMPTS))
    rows = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in PROMPTS])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        together = logits_of(model, rows)
    if any("attention_mask" in str(warning.message) for warning in caught):
        return
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert relative_error(row[: len(prompt)], logits_of(model, torch.tensor([prompt]))[0]) <= MAX_ERROR


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_continuous_batching_answers_as_each_prompt_alone_or_is_refused(
    bundles: dict[str, Path], scope: str
) -> None:
    model = loaded(bundles[scope])
    greedy = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = ContinuousBatchingConfig(
        num_blocks=16, page_size=32, max_batch_tokens=64, use_async_batching=False
    )
    try:
        found = model.base_model.model.generate_batch(
            inputs=PROMPTS, generation_config=greedy, continuous_batching_config=small, progress_bar=False
        )
    except UsageError:
        return
    in_order = sorted(found, key=lambda request: int(request.rpartition("_")[2]))
    alone = [answers(model, [prompt], 4)[0] for prompt in PROMPTS]
    assert [found[request].generated_tokens for request in in_order] == alone


def gradients(model: nn.Module, loss_of: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Return the gradients of gates and experts for a loss."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "meteora_gate" in name or "meteora_B" in name
    model.zero_grad()
    loss_of().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("scope", ["token", "layer", *AHEAD])
def test_two_passes_before_one_backward_have_their_own_gradients_or_are_refused(
    bundles: dict[str, Path], scope: str
) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundles[scope], is_trainable=True).train()
    batches = [some_tokens(seed=seed) for seed in (5, 9)]

    def both() -> Tensor:
        first, second = (model(input_ids=tokens, labels=tokens).loss for tokens in batches)
        return first + second

    plain = gradients(model, both)
    model.base_model.model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    try:
        recomputed = gradients(model, both)
    except MeteoraError:
        return
    assert plain.keys() == recomputed.keys()
    assert all(relative_error(recomputed[name], plain[name]) <= MAX_ERROR for name in plain)


def test_training_gates_that_get_no_gradient_is_warned_of(bundles: dict[str, Path]) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundles["token"], is_trainable=True).train()
    tokens = some_tokens()
    with route_as(model, top_k=1), pytest.warns(UserWarning, match="top_k"):
        model(input_ids=tokens, labels=tokens).loss.backward()


def test_training_that_cannot_reach_the_gates_is_refused_in_words(bundles: dict[str, Path]) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundles["prompt"], is_trainable=True).train()
    tokens = some_tokens()
    with pytest.raises(MeteoraError):
        model(input_ids=tokens, labels=tokens).loss.backward()


def test_gates_that_were_trained_are_not_saved_as_fitted(adapters: dict[str, Path], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", adapters, base="org/base", gate_bias=True)
    model = PeftModel.from_pretrained(tiny_llama(), bundle, is_trainable=True).train()
    tokens = some_tokens()
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    model.save_pretrained(tmp_path / "trained", save_embedding_layers=False)
    fitted = [
        json.loads((folder / "adapter_config.json").read_text())["gate"]["fitted"]
        for folder in (bundle, tmp_path / "trained")
    ]
    assert fitted[0] != fitted[1]


def test_offloaded_model_computes_what_it_did(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"]).eval()
    before = logits_of(model)
    cpu_offload(model, "cpu")
    assert relative_error(logits_of(model), before) <= MAX_ERROR
