"""Members of a fused bundle: through PEFT, each computes what it computes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

import meteora_registry.runtime as runtime
from meteora_registry.kernels.reference import relative_error
from support.members import fuse, read_members
from support.models import (
    CORPUS,
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_alone,
    logits_of,
    make_llama_adapters,
    needs_corpus,
    some_tokens,
    tiny_gpt2,
    tiny_llama,
)

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
TOLERANCE = 1e-5


def assert_members_compute_what_they_do_alone(
    make_base: Callable[[], PreTrainedModel], adapters: Mapping[str, Path], bundle: Path
) -> None:
    tokens, base = some_tokens(), make_base()
    plain = logits_of(base, tokens)
    alone = {name: logits_alone(base, folder, tokens).double() for name, folder in adapters.items()}
    assert torch.equal(logits_of(base, tokens), plain)
    model = PeftModel.from_pretrained(base, bundle).eval()
    for name, expected in alone.items():
        # Else forcing could do nothing and still agree.
        assert relative_error(plain, expected) > 100 * TOLERANCE, name
        with runtime.force_adapter(model, name):
            assert relative_error(logits_of(model, tokens), expected) <= TOLERANCE, name


@pytest.mark.corpus
@needs_corpus
def test_three_real_adapters_for_gpt2_fuse_into_one_bundle_of_36_modules(tmp_path: Path) -> None:
    adapters = {
        name: CORPUS / "weights" / f"parikshit-06__domain-skeleton-gpt2__adapters-{name}"
        for name in ("legal", "medical", "sports")
    }
    bundle = fuse(read_members(adapters), tmp_path / "bundle")
    assert len(runtime.MeteoraConfig.from_pretrained(bundle).target_modules) == 36
    assert_members_compute_what_they_do_alone(lambda: tiny_gpt2(width=768, layers=12), adapters, bundle)


@pytest.mark.parametrize("gate", ["arrow", "normal"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_adapters_that_differ_in_everything_fuse_into_one_bundle(
    tmp_path: Path, gate: str, top_k: int
) -> None:
    adapters = make_llama_adapters(tmp_path / "adapters", base="org/base")
    bundle = fuse(read_members(adapters), tmp_path / "bundle", gate=gate, top_k=top_k)
    assert_members_compute_what_they_do_alone(tiny_llama, adapters, bundle)
