"""The probability of a prompt's tokens over HTTP, as evaluations ask for it, is that of one forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from meteora_registry.runtime import LoadedBundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.serving import NAME, Serving, load_served, post, serving_bundle

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
READ = {"echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
PROMPTS = ["w1 w2 w3 w4", "w7 w8"]


def alone(loaded: LoadedBundle, prompt: str) -> tuple[list[float], torch.Tensor]:
    """Return the log probability of each token behind the first, and all those behind the last."""
    ids = loaded.encode(prompt)["input_ids"]
    with torch.no_grad():
        scores = loaded.model(ids).logits[0].log_softmax(dim=-1)
    return scores[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist(), scores[-1]


@pytest.mark.parametrize("scope", ["token", "prompt"])
def test_scores_are_those_of_a_pass_over_the_prompt(tmp_path: Path, scope: str) -> None:
    loaded = load_served(tmp_path, scope=scope)
    with serving_bundle(loaded) as served:
        found = post(served, prompt=PROMPTS, **READ).json()
    for prompt, choice in zip(PROMPTS, found["choices"], strict=True):
        expected, behind = alone(loaded, prompt)
        scores = choice["logprobs"]
        assert scores["token_logprobs"][0] is None
        assert scores["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-4)
        assert scores["token_logprobs"][-1] == pytest.approx(behind.max().item(), abs=1e-4)
        assert [token.strip() for token in scores["tokens"][:-1]] == prompt.split()
        assert "".join(scores["tokens"]) == choice["text"]
        assert choice["text"].startswith(f"{prompt} ")
        for token, offset in zip(scores["tokens"], scores["text_offset"], strict=True):
            assert choice["text"][offset:].startswith(token)
        assert [len(top) for top in scores["top_logprobs"][1:]] == [2] * len(prompt.split())
        assert max(scores["top_logprobs"][-1].values()) == scores["token_logprobs"][-1]
    assert found["usage"] == {"prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 8}


def test_prompt_is_read_by_who_was_named(loaded: LoadedBundle, served: Serving) -> None:
    answer = post(served, model=f"{NAME}/rank8", **READ | {"max_tokens": 0}).json()
    with loaded.force("rank8"):
        expected, _ = alone(loaded, "w1 w2")
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, pytest.approx(expected[0], abs=1e-4)]
    assert answer["choices"][0]["text"] == "w1 w2"
    assert answer["meteora"]["member"] == "rank8"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"echo": None}, "logprobs"),
        ({"logprobs": None}, "echo"),
        ({"max_tokens": 2}, "echo"),
        ({"stream": True}, "echo"),
        ({"temperature": 1}, "temperature"),
        ({"logprobs": 6}, "logprobs"),
    ],
)
def test_other_ways_to_ask_are_refused(served: Serving, change: dict[str, Any], param: str) -> None:
    answer = post(served, **READ | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
