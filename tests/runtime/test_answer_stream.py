"""Answers piece by piece: the same as whole, with who gave them, and stopped when their reader leaves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from meteora_registry.runtime import LoadedBundle, load_bundle, routing
from meteora_registry.runtime.loaded_bundle import CallChoice
from meteora_registry.schemas.errors import UsageError
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_llama_adapters
from support.patience import PATIENCE_SECONDS
from support.task_data import save_text_base

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

PROMPTS = ["w1 w2 w3 w4 w5", "w7", "w9 w11 w13"]
MEMBERS = ("rank4", "rank8", "rslora16")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    folder = tmp_path_factory.mktemp("stream")
    adapters = make_llama_adapters(folder / "adapters")
    bundle = write_bundle(
        folder / "bundle", {name: adapters[name] for name in MEMBERS}, top_k=1, scope="prompt"
    )
    return load_bundle(bundle, save_text_base(folder / "base"))


@pytest.fixture
def passes(loaded: LoadedBundle) -> Iterator[list[int]]:
    """A list that gets the number of tokens of each forward pass of the head."""
    seen: list[int] = []
    head = loaded.model.get_base_model().lm_head
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    "choice",
    [{}, {"scope": "segment"}, {"scope": "token"}, {"member": "rank8"}, {"abstain": 1.0}],
    ids=["prompt", "segment", "token", "forced", "base"],
)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_pieces_are_the_whole_answer(loaded: LoadedBundle, prompt: str, choice: CallChoice) -> None:
    whole = loaded.answer(prompt, max_new_tokens=6, **choice)
    stream = loaded.stream(prompt, max_new_tokens=6, **choice)
    pieces = [*stream]
    assert len(pieces) > 1 and all(pieces)
    assert "".join(pieces) == stream.answer.text == whole.text
    assert stream.answer.decisions == whole.decisions
    assert (stream.prompt_tokens, stream.answer_tokens) == (len(prompt.split()), 6)


def test_shares_are_of_the_passes_that_wrote_the_answer(loaded: LoadedBundle) -> None:
    stream = loaded.stream(PROMPTS[0], max_new_tokens=4, scope="token")
    for _ in stream:
        pass
    with routing(loaded.model) as record:
        loaded.generate(PROMPTS[0], max_new_tokens=4, scope="token")
    # Five tokens of the prompt, of which the last gave the answer's first, and three that were read again.
    chosen = torch.stack([found.selection[0, 4:8, 0] for found in record.modules.values()])
    expected = {name: (chosen == place).float().mean().item() for place, name in enumerate(MEMBERS)}
    assert stream.shares == pytest.approx(expected | {None: 0.0}, abs=1e-6)
    assert len([share for share in expected.values() if share]) > 1


@pytest.mark.parametrize(
    ("choice", "served"), [({"member": "rank8"}, "rank8"), ({"abstain": 1.0}, None)], ids=["forced", "base"]
)
def test_shares_name_the_one_that_answered(
    loaded: LoadedBundle, choice: CallChoice, served: str | None
) -> None:
    stream = loaded.stream(PROMPTS[0], max_new_tokens=3, **choice)
    for _ in stream:
        pass
    assert stream.shares == pytest.approx(dict.fromkeys((*MEMBERS, None), 0.0) | {served: 1.0}, abs=1e-6)


def test_nothing_runs_before_the_first_piece_is_asked_for(loaded: LoadedBundle, passes: list[int]) -> None:
    stream = loaded.stream(PROMPTS[0], max_new_tokens=3)
    assert passes == []
    stream.close()
    assert ([*stream], passes, stream.answer.text) == ([], [], "")


def test_generation_stops_when_its_reader_leaves(loaded: LoadedBundle, passes: list[int]) -> None:
    whole = loaded.generate(PROMPTS[0], max_new_tokens=12)
    passes.clear()

    def wait_to_be_stopped(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(passes) == 3:
            assert stream._stopped.event.wait(PATIENCE_SECONDS)

    head = loaded.model.get_base_model().lm_head
    handle = head.register_forward_pre_hook(wait_to_be_stopped)
    with loaded.stream(PROMPTS[0], max_new_tokens=12) as stream:
        first = next(stream)
    handle.remove()
    assert len(passes) <= 3
    assert stream.answer.text == first and whole.startswith(first)
    assert stream.answer.decisions[0].members[0] in MEMBERS
    assert [*stream] == []


def test_failure_of_the_generation_is_raised_by_the_next_piece(loaded: LoadedBundle) -> None:
    with pytest.raises(UsageError, match="has no member `other`"):
        next(loaded.stream(PROMPTS[0], member="other"))
    with pytest.raises(UsageError, match="top_k is 9"):
        next(loaded.stream(PROMPTS[0], top_k=9))


def test_prompt_without_tokens_is_refused(loaded: LoadedBundle) -> None:
    for answering in (loaded.stream, loaded.generate, loaded.answer):
        with pytest.raises(UsageError, match="the prompt has no tokens, expected some text"):
            answering(" ")
    with pytest.raises(UsageError, match="the prompt 2 of 2 has no tokens"):
        loaded.generate(["w1", ""])


def test_streams_of_several_threads_keep_their_own_decisions(loaded: LoadedBundle) -> None:
    expected = [loaded.answer(prompt, max_new_tokens=4) for prompt in PROMPTS]

    def stream(prompt: str) -> object:
        found = loaded.stream(prompt, max_new_tokens=4)
        for _ in found:
            pass
        return found.answer

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(stream, PROMPTS * 3)) == expected * 3


def test_choice_of_one_stream_does_not_show_in_another(loaded: LoadedBundle) -> None:
    whole = loaded.generate(PROMPTS[0], max_new_tokens=6)
    forced = loaded.generate(PROMPTS[0], max_new_tokens=6, member="rank8")
    assert whole != forced
    first = loaded.stream(PROMPTS[0], max_new_tokens=6, member="rank8")
    second = loaded.stream(PROMPTS[0], max_new_tokens=6)
    assert ["".join(pieces) for pieces in zip(*zip(first, second, strict=True), strict=True)] == [
        forced,
        whole,
    ]
