"""lm_eval's `local-completions` against the server: its log-likelihoods and answers are the bundle's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from meteora_registry.runtime import LoadedBundle, load_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.serving import NAME, make_served, serving_bundle

completions = pytest.importorskip("lm_eval.models.openai_completions", reason="lm_eval is not installed")
instances = pytest.importorskip("lm_eval.api.instance", reason="lm_eval is not installed")
pytest.importorskip("tenacity", reason="lm_eval is not installed with its extra `api`")

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
REQUESTS = [("w1 w2 w3", " w4"), ("w7", " w30 w31 w32 w33 w34 w35"), ("w9 w11 w13 w15 w17", " w19 w21")]


def alone(loaded: LoadedBundle, context: str, continuation: str) -> float:
    """Return the log-likelihood of a continuation by one pass over both."""
    ids = loaded.encode(context + continuation)["input_ids"]
    written = loaded.encode(continuation)["input_ids"].shape[1]
    with torch.no_grad():
        # All of it: where the prompt decides, its last token does so, too.
        scores = loaded.model(ids).logits[:, :-1].log_softmax(dim=-1)
    own: torch.Tensor = scores.gather(-1, ids[:, 1:, None])[0, -written:]
    return own.sum().item()


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_lm_eval_finds_what_the_bundle_computes(
    tmp_path: Path, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    bundle, base = make_served(tmp_path, scope=scope)
    loaded = load_bundle(bundle, base)
    with serving_bundle(loaded) as served:
        model = completions.LocalCompletionsAPI(
            model=NAME,
            base_url=f"{served.url}/v1/completions",
            tokenizer=str(base),
            tokenizer_backend="huggingface",
            batch_size=3,
            max_length=64,
        )
        pairs = [
            instances.Instance("loglikelihood", doc={}, arguments=pair, idx=place)
            for place, pair in enumerate(REQUESTS)
        ]
        found = [score for score, _ in model.loglikelihood(pairs, disable_tqdm=True)]
        options = {"until": ["w59 w58 w57 w56"], "max_gen_toks": 5, "temperature": 0}
        asked = [
            instances.Instance("generate_until", doc={}, arguments=(context, options), idx=place)
            for place, (context, _) in enumerate(REQUESTS)
        ]
        answers = model.generate_until(asked, disable_tqdm=True)
    assert found == pytest.approx([alone(loaded, *pair) for pair in REQUESTS], abs=1e-4)
    assert answers == loaded.generate([context for context, _ in REQUESTS], max_new_tokens=5)
