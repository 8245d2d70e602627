"""lm_eval's log-likelihoods of a routed model: right in batches of one, and a batch of several is warned of.

lm_eval pads batches and passes no mask, so a decision about a whole request cannot know its tokens.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from meteora_registry.runtime import load_bundle
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_llama_adapters
from support.task_data import save_text_base

huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm_eval is not installed")
instances = pytest.importorskip("lm_eval.api.instance", reason="lm_eval is not installed")

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
REQUESTS = [("w1 w2 w3", " w4"), ("w7", " w30 w31 w32 w33 w34 w35"), ("w9 w11 w13 w15 w17", " w19 w21")]
UNMASKED = "a batch without `attention_mask`"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_base(tmp_path_factory.mktemp("base"), eos_token="<s>", pad_token="<unk>")


def bundle(folder: Path, scope: str) -> Path:
    return write_bundle(folder / "bundle", make_llama_adapters(folder / "adapters"), top_k=1, scope=scope)


def by_lm_eval(base: Path, folder: Path, batch_size: int) -> tuple[list[float], list[str]]:
    """Return the log-likelihood of each continuation, and the warnings of the runtime."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = huggingface.HFLM(
            pretrained=str(base), peft=str(folder), batch_size=batch_size, device="cpu", dtype="float32"
        )
        asked = [
            instances.Instance("loglikelihood", doc={}, arguments=pair, idx=place)
            for place, pair in enumerate(REQUESTS)
        ]
        found = [score for score, _ in model.loglikelihood(asked, disable_tqdm=True)]
    return found, [str(each.message) for each in caught if UNMASKED in str(each.message)]


def alone(base: Path, folder: Path) -> list[float]:
    """Return the same from a forward pass over each text by itself."""
    loaded = load_bundle(folder, base)

    def ids(text: str) -> Tensor:
        return loaded.tokenizer(text, return_tensors="pt")["input_ids"]

    found = []
    for context, continuation in REQUESTS:
        tokens, written = ids(context + continuation), ids(continuation).shape[1]
        with torch.no_grad():
            scores = loaded.model(tokens[:, :-1]).logits.log_softmax(dim=-1)
        own = scores.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        found.append(own[0, -written:].sum().item())
    return found


@pytest.mark.parametrize("scope", ["token", "layer", "prompt", "prompt+token", "segment"])
def test_batches_of_one_give_what_each_text_gives_alone(base: Path, tmp_path: Path, scope: str) -> None:
    folder = bundle(tmp_path, scope)
    found, warned = by_lm_eval(base, folder, 1)
    assert found == pytest.approx(alone(base, folder), abs=1e-4)
    assert warned == []


@pytest.mark.parametrize("scope", ["token", "layer"])
def test_larger_batches_are_right_where_tokens_decide(base: Path, tmp_path: Path, scope: str) -> None:
    folder = bundle(tmp_path, scope)
    found, warned = by_lm_eval(base, folder, 4)
    assert found == pytest.approx(alone(base, folder), abs=1e-4)
    assert warned == []


@pytest.mark.parametrize("scope", ["prompt", "prompt+token", "segment"])
def test_larger_batches_are_warned_of_where_requests_decide(base: Path, tmp_path: Path, scope: str) -> None:
    _, warned = by_lm_eval(base, bundle(tmp_path, scope), 4)
    assert warned
    assert "pass `attention_mask`" in warned[0]
