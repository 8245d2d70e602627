"""Bases that are not plain decoders: a state, a window, an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from meteora_registry.schemas.errors import UsageError
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_adapter, some_tokens
from support.scopes import REQUEST_SCOPES, SCOPES, answers

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return make().eval()

    return model


tiny_mamba = seeded(
    lambda: MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))
)
tiny_rwkv = seeded(
    lambda: RwkvForCausalLM(
        RwkvConfig(
            vocab_size=64,
            hidden_size=32,
            attention_hidden_size=32,
            num_hidden_layers=2,
            bos_token_id=1,
            eos_token_id=None,
        )
    )
)
tiny_recurrent_gemma = seeded(
    lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            lru_width=32,
            attention_window_size=4,
            block_types=("recurrent", "attention"),
        )
    )
)
tiny_gemma = seeded(
    lambda: Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=4,
        )
    )
)
tiny_t5 = seeded(
    lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    )
)


def bundle_for(base: Callable[[], nn.Module], folder: Path, scope: str, targets: list[str]) -> Path:
    members = {
        name: make_adapter(base, folder / name, seed=seed, r=4, target_modules=targets)
        for seed, name in enumerate(("one", "two"))
    }
    return write_bundle(folder / scope, members, top_k=1, scope=scope)


PROMPT = [[7, 9, 11, 5] * 3]


@pytest.mark.parametrize("scope", SCOPES)
def test_base_with_a_state_answers_alike_with_and_without_a_cache(tmp_path: Path, scope: str) -> None:
    model = PeftModel.from_pretrained(tiny_mamba(), bundle_for(tiny_mamba, tmp_path, scope, ["in_proj"]))
    assert answers(model, PROMPT) == answers(model, PROMPT, use_cache=False)


@pytest.mark.parametrize("scope", SCOPES)
def test_base_with_a_state_answers_alike_with_beams(tmp_path: Path, scope: str) -> None:
    model = PeftModel.from_pretrained(tiny_mamba(), bundle_for(tiny_mamba, tmp_path, scope, ["in_proj"]))
    assert answers(model, PROMPT, num_beams=2) == answers(model, PROMPT, num_beams=2, use_cache=False)


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_base_with_a_state_and_no_cache_is_refused_where_the_request_decides(
    tmp_path: Path, scope: str
) -> None:
    model = PeftModel.from_pretrained(tiny_rwkv(), bundle_for(tiny_rwkv, tmp_path, scope, ["key"]))
    with pytest.raises(UsageError) as caught:
        answers(model, PROMPT)
    assert str(caught.value) == (
        "`RwkvForCausalLM` has a state in place of a cache, but a decision of the bundle's scope "
        f"`{scope}` is kept on the cache"
    )


def test_base_that_returns_no_cache_is_refused_where_it_reads_on(tmp_path: Path) -> None:
    bundle = bundle_for(tiny_recurrent_gemma, tmp_path, "segment", ["linear_x", "q_proj"])
    model = PeftModel.from_pretrained(tiny_recurrent_gemma(), bundle)
    with pytest.raises(UsageError, match="`RecurrentGemmaModel` returned no cache, and without"):
        answers(model, PROMPT)


@pytest.mark.parametrize("scope", SCOPES)
def test_base_with_a_window_answers_alike_however_tokens_arrive(tmp_path: Path, scope: str) -> None:
    bundle = bundle_for(tiny_gemma, tmp_path, scope, ["q_proj", "down_proj"])
    model = PeftModel.from_pretrained(tiny_gemma(), bundle)
    expected = answers(model, PROMPT, use_cache=False)
    for options in ({}, {"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 4}):
        assert answers(model, PROMPT, **options) == expected


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_base_with_an_encoder_is_refused_where_the_request_decides(tmp_path: Path, scope: str) -> None:
    model = PeftModel.from_pretrained(tiny_t5(), bundle_for(tiny_t5, tmp_path, scope, ["q", "wo"]))
    message = "reads a text with an encoder and writes another with a decoder"
    with pytest.raises(UsageError, match=message):
        answers(model, PROMPT)
    with pytest.raises(UsageError, match=message):
        model(input_ids=some_tokens(), labels=some_tokens())
